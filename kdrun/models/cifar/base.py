"""What the CIFAR networks of the distillation literature share: stages, features, classifier, registration in timm."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """A stem, stages, a tail, average pooling and a linear classifier `fc`, behind timm's interface.

    A subclass defines `stem`, and `tail` where something stands between the last stage and the pooling. Its
    constructor calls `add_stage` for each stage and `add_classifier`, in the order in which the weights are to be
    drawn.
    """

    fc: nn.Linear
    pretrained_cfg: dict[str, Any]
    """timm's: the input of exported weights; other networks have none."""
    stem_chs: int = 0
    """Channels of what goes into the first stage, the feature `stem`; 0: that is the image itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_info: list[dict[str, Any]] = []

    def add_stage(
        self, modules: Iterable[nn.Module], num_chs: int, reduction: int, act: str = "", norm: str = ""
    ) -> None:
        """The next stage, `layer1` ...; its output has `num_chs` channels and 1 / `reduction` of the image's side.

        Args:
            act: name within the stage of the activation that ends it; none: something else does.
            norm: likewise of the batch normalization before that; see `kdrun.models.interface.last_activations`.
        """
        name = f"layer{len(self.feature_info) + 1}"
        self.add_module(name, nn.Sequential(*modules))
        told = {key: f"{name}.{part}" for key, part in (("act", act), ("norm", norm)) if part}
        self.feature_info.append({"num_chs": num_chs, "reduction": reduction, "module": name, **told})

    def add_classifier(self, num_features: int) -> None:
        self.num_features = self.head_hidden_size = num_features
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(num_features, self.num_classes)
        self.init_classifier()

    def init_classifier(self) -> None:
        """Redraw the classifier where the original does not use torch's default."""

    def init_convolutions(self) -> None:
        """He initialization by fan-out, standard deviation sqrt(2 / (k * k * out)); biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def tail(self, x: Tensor) -> Tensor:
        return x

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes, device=self.fc.weight.device)
        self.init_classifier()

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """timm's form: the final feature map and the chosen stage outputs, (B, C, H, W) each, in the network's order.

        Args:
            indices: stages, negative ones from the end; an integer n means the last n; None means all.
            norm: has no effect, as in timm's convolutional networks.
            stop_early: skip what comes after the last chosen stage; only together with `intermediates_only`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        count = len(self.feature_info)
        chosen = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if any(not -count <= i < count for i in chosen):
            raise ValueError(f"indices must choose among {count} stages, got {indices}")
        wanted = {i % count for i in chosen}
        out = []
        x = self.stem(x)
        for i, info in enumerate(self.feature_info):
            if stop_early and intermediates_only and i > max(wanted, default=-1):
                break
            x = self.get_submodule(info["module"])(x)
            if i in wanted:
                out.append(x)
        return out if intermediates_only else (self.tail(x), out)

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.forward_intermediates(x, indices=[])[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x).flatten(1)
        return x if pre_logits else torch.as_tensor(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def register(module: str, name: str, network: Callable[..., CifarNetwork], **fixed: Any) -> None:
    """Register `network(**fixed)` with timm as `name`, an entry point of `module` (`__name__` of the caller).

    Weights come from a folder alone that kdrun exported (`local-dir:<folder>`, or `hf-hub:<name>` once it is there).
    """

    def entry(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> CifarNetwork:
        for key in ("pretrained_cfg_overlay", "pretrained_model_args", "cache_dir"):
            options.pop(key, None)
        described = isinstance(pretrained_cfg, dict) and "source" in pretrained_cfg
        if pretrained and not described:
            raise ValueError("the CIFAR networks have no published weights in timm; train one, or load a file")
        built = network(**fixed, **options)
        if described:
            built.pretrained_cfg = pretrained_cfg
        if pretrained:
            load_pretrained(
                built, pretrained_cfg, num_classes=built.num_classes, in_chans=pretrained_cfg["input_size"][0]
            )
        return built

    entry.__name__ = name
    entry.__module__ = module
    setattr(sys.modules[module], name, entry)
    register_model(entry)
