"""ResNets for 32 px images (He et al. 2016, arXiv 1512.03385, section 4.2), as the distillation literature uses them.

Three stages of basic blocks. Shortcuts of the distillation papers are 1x1 convolutions (option B); option A, a stride-2
slice padded with zeros, is what many published CIFAR-10 checkpoints have.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                ZeroPad(outputs - inputs, stride) if shortcut == "A" else Projection(inputs, outputs, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Projection(nn.Sequential):
    """Option B: 1x1 convolution and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ZeroPad(nn.Module):
    """Option A: every second pixel, missing channels are zeros on both sides."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before = extra // 2
        self.after = extra - extra // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        widths: channels of the stem and of the three stages.
        shortcut: A or B.
    """

    def __init__(
        self, depth: int, widths: Sequence[int], num_classes: int = 10, in_chans: int = 3, shortcut: str = "B"
    ) -> None:
        super().__init__()
        if (depth - 2) % 6 or depth < 8:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be A or B, got {shortcut!r}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[3]
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.feature_info = []
        inputs = widths[0]
        for i, outputs in enumerate(widths[1:], start=1):
            blocks = []
            for j in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, outputs, 2 if i > 1 and j == 0 else 1, shortcut))
                inputs = outputs
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": outputs, "reduction": 2 ** (i - 1), "module": f"layer{i}"})
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes, device=self.fc.weight.device)

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """timm's form: the final feature map and the chosen stage outputs, (B, C, H, W) each."""
        if isinstance(indices, int):
            indices = list(range(3 - indices, 3))
        wanted = {i % 3 for i in (range(3) if indices is None else indices)}
        out = []
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(3):
            x = self.get_submodule(f"layer{i + 1}")(x)
            if i in wanted:
                out.append(x)
        return out if intermediates_only else (x, out)

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.forward_intermediates(x, indices=[])[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x).flatten(1)
        return x if pre_logits else torch.as_tensor(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _create(depth: int, widths: Sequence[int], pretrained: bool, options: dict[str, Any]) -> CifarResNet:
    if pretrained:
        raise ValueError("the CIFAR networks have no published weights in timm; train one, or load a file")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    width = options.pop("width", None)
    if width is not None:
        widths = [width * w // widths[0] for w in widths]
    return CifarResNet(depth, widths, **options)


def _register(name: str, depth: int, widths: Sequence[int]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> CifarResNet:
        return _create(depth, widths, pretrained, options)

    entry.__name__ = name
    entry.__module__ = __name__
    globals()[name] = entry
    __all__.append(name)
    register_model(entry)


__all__ = ["CifarResNet"]
for _depth in (8, 14, 20, 32, 44, 56, 110):
    _register(f"resnet{_depth}", _depth, (16, 16, 32, 64))
