"""A CLIP of any size behind timm's interface, to be trained from nothing (Radford et al. 2021, arXiv 2103.00020)."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

__all__ = ["Clip", "clip"]


class Clip(nn.Module):
    """open_clip's CLIP; its logits are exp(logit_scale) times the cosines to `class_embeddings`.

    Args:
        embed_dim, vision_cfg, text_cfg: as in open_clip's JSON files.
        in_chans: 3, or 1: gray images are shown as color.
    """

    class_embeddings: Tensor
    """(classes, D) of length 1, of the texts that stand for the classes; 0 until somebody sets them."""

    def __init__(
        self, num_classes: int, in_chans: int, embed_dim: int, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]
    ) -> None:
        from kdrun.clip import open_clip

        super().__init__()
        if in_chans not in (1, 3):
            raise ValueError(f"a CLIP takes images of 1 or 3 channels, got {in_chans}")
        self.clip: Any = open_clip().CLIP(embed_dim, dict(vision_cfg), dict(text_cfg))
        self.register_buffer("class_embeddings", torch.zeros(num_classes, embed_dim))

    def image_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, D) of length 1."""
        return F.normalize(self.clip.encode_image(x.expand(-1, 3, -1, -1)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.clip.logit_scale.exp() * self.image_features(x) @ self.class_embeddings.T)

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


@register_model
def clip(pretrained: bool = False, **options: Any) -> Clip:
    if pretrained:
        raise ValueError("teacher.source=open_clip loads published CLIPs; this one is trained from nothing")
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    return Clip(**options)
