"""CLIPs behind timm's interface (Radford et al. 2021, arXiv 2103.00020): a whole one of any size, to be trained from
nothing, and the image encoder of a published one with a linear classifier.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.models import open_clip as clips

__all__ = ["Clip", "ImageClassifier", "clip", "open_clip"]


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
        super().__init__()
        if in_chans not in (1, 3):
            raise ValueError(f"a CLIP takes images of 1 or 3 channels, got {in_chans}")
        self.clip: Any = clips.open_clip().CLIP(embed_dim, dict(vision_cfg), dict(text_cfg))
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


class ImageClassifier(nn.Module):
    """An image encoder of open_clip and a linear layer on its embedding, which is the space of the texts, not of length
    1.

    Args:
        in_chans: 3, or 1: gray images are shown as color.
    """

    def __init__(self, visual: nn.Module, num_classes: int, in_chans: int, dim: int) -> None:
        super().__init__()
        if in_chans not in (1, 3):
            raise ValueError(f"a CLIP takes images of 1 or 3 channels, got {in_chans}")
        self.visual = visual
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        found = self.visual(x.expand(-1, 3, -1, -1))
        embedding: Tensor = found[0] if isinstance(found, tuple) else found  # of a CoCa, tokens stand behind it
        logits: Tensor = self.head(embedding)
        return logits

    def get_classifier(self) -> nn.Module:
        return self.head


@register_model
def open_clip(
    pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, pretrained_cfg_overlay: Any = None,
    embed_dim: int = 0, vision_cfg: Any = None, quick_gelu: bool = False, **options: Any,
) -> ImageClassifier:  # fmt: skip
    """`kdrun.models.open_clip.student` fills in embed_dim, vision_cfg and quick_gelu; the rest tells whose weights."""
    for key in ("pretrained_cfg", "cache_dir"):
        options.pop(key, None)
    if pretrained:
        given = pretrained_cfg_overlay or {}
        model = ModelConfig(name="open_clip", args=options, pretrained=True, file=given.get("file"))
        visual = clips.image_encoder(model.replace(entry=given.get("entry")))
    else:
        clips.open_clip()
        from open_clip.model import _build_vision_tower

        visual = _build_vision_tower(embed_dim, dict(vision_cfg), quick_gelu)
    return ImageClassifier(visual, num_classes, in_chans, embed_dim)
