"""ResNets for 32 px images (He et al. 2016, arXiv 1512.03385, section 4.2), as the distillation literature uses them.

Three stages of basic blocks. Shortcuts of the distillation papers are 1x1 convolutions (option B); option A, a stride-2
slice padded with zeros, is what many published CIFAR-10 checkpoints have. resnet8x4 and resnet32x4 are wider.
resnet50_cifar is the ImageNet network of bottleneck blocks with a stem for small images.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.cifar.base import CifarNetwork, register


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                ZeroPad(outputs - inputs, stride) if shortcut == "A" else Projection(inputs, outputs, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return torch.as_tensor(self.act2(self.bn2(self.conv2(out)) + self.shortcut(x)))


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


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution; four times as many channels go out as stand in the middle."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.act3 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = Projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return torch.as_tensor(self.act3(self.bn3(self.conv3(out)) + self.shortcut(x)))


class CifarResNet(CifarNetwork):
    """ResNet of depth 6n + 2.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        widths: channels of the stem and of the three stages.
        shortcut: A or B.
        width: channels of the stem; the stages change in proportion. None leaves `widths` as they are.
    """

    def __init__(
        self, depth: int, widths: Sequence[int], num_classes: int = 10, in_chans: int = 3, shortcut: str = "B",
        width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(num_classes)
        if (depth - 2) % 6 or depth < 8:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be A or B, got {shortcut!r}")
        if width is not None:
            widths = [width * w // widths[0] for w in widths]
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stem_chs = inputs = widths[0]
        for i, outputs in enumerate(widths[1:]):
            blocks = []
            for j in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, outputs, 2 if i > 0 and j == 0 else 1, shortcut))
                inputs = outputs
            self.add_stage(blocks, outputs, 2**i, f"{len(blocks) - 1}.act2", f"{len(blocks) - 1}.bn2")
        self.add_classifier(widths[3])
        self.init_convolutions()

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class CifarBottleneckResNet(CifarNetwork):
    """ResNet of bottleneck blocks with a 3x3 stem of stride 1 and no max pooling.

    Args:
        depths: blocks of each stage; stage i has 64 * 2**i channels in the middle of its blocks, i from 0.
    """

    def __init__(self, depths: Sequence[int], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.stem_chs = inputs = 64
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, 64 * 2**i, 2 if i > 0 and j == 0 else 1))
                inputs = 4 * 64 * 2**i
            self.add_stage(blocks, inputs, 2**i, f"{depth - 1}.act3", f"{depth - 1}.bn3")
        self.add_classifier(inputs)
        self.init_convolutions()

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


__all__ = ["CifarBottleneckResNet", "CifarResNet"]
for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(__name__, f"resnet{_depth}", CifarResNet, depth=_depth, widths=(16, 16, 32, 64))
for _depth in (8, 32):
    register(__name__, f"resnet{_depth}x4", CifarResNet, depth=_depth, widths=(32, 64, 128, 256))
register(__name__, "resnet50_cifar", CifarBottleneckResNet, depths=(3, 4, 6, 3))
