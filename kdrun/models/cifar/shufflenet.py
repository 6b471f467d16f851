"""ShuffleNets for 32 px images, in the distillation literature's form (Tian et al. 2020, arXiv 1910.10699).

V1: Zhang et al. 2018, arXiv 1707.01083. V2: Ma et al. 2018, arXiv 1807.11164. The stem is a 1x1 convolution of stride 1
without pooling; convolutions keep torch's default initialization.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.cifar.base import CifarNetwork, register

STEM = 24


class ConvNorm(nn.Sequential):
    """Convolution of kernel size 1 or 3 and batch normalization."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))


class V1Block(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolution. With stride 2 the pooled input is concatenated.

    Args:
        outputs: channels of the block; with stride 2 those of the input are among them.
    """

    # deviates: the ShuffleNet paper has no ReLU after the depthwise convolution; the distillation literature has one.

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        own = outputs - inputs if stride == 2 else outputs
        middle = own // 4
        self.groups = 1 if inputs == STEM else groups
        self.reduce = ConvNorm(inputs, middle, 1, groups=self.groups)
        self.depthwise = ConvNorm(middle, middle, 3, stride, groups=middle)
        self.expand = ConvNorm(middle, own, 1, groups=groups)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = F.channel_shuffle(F.relu(self.reduce(x)), self.groups)
        out = self.expand(F.relu(self.depthwise(out)))
        if self.stride == 1:
            return torch.as_tensor(self.act(out + x))
        return torch.as_tensor(self.act(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)))


class V2Branch(nn.Sequential):
    """1x1, depthwise 3x3 and 1x1 convolution, without the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            ConvNorm(inputs, outputs, 1),
            nn.ReLU(),
            ConvNorm(outputs, outputs, 3, stride, groups=outputs),
            ConvNorm(outputs, outputs, 1),
        )


class V2DownBlock(nn.Module):
    """Two branches of stride 2, each giving half of the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(ConvNorm(inputs, inputs, 3, 2, groups=inputs), ConvNorm(inputs, half, 1), nn.ReLU())
        self.right = V2Branch(inputs, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        return joined(self.left(x), F.relu(self.right(x)))


class V2Block(nn.Module):
    """The first half of the channels passes, the second goes through the branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = V2Branch(width // 2, width // 2, 1)
        self.act = V2Activation()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.as_tensor(self.act(left, self.branch(right)))


class V2Activation(nn.Module):
    """ReLU of the second half; the first has come through one."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return joined(left, F.relu(right))

    def before(self, left: Tensor, right: Tensor) -> Tensor:
        """The map that ReLU would make the output of."""
        return joined(left, right)


def joined(left: Tensor, right: Tensor) -> Tensor:
    return F.channel_shuffle(torch.cat([left, right], 1), 2)


class CifarShuffleNetV1(CifarNetwork):
    """ShuffleNet V1.

    Args:
        widths, depths: channels and blocks of the three stages.
        groups: of the 1x1 convolutions.
    """

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], groups: int, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes)
        self.conv1 = ConvNorm(in_chans, STEM, 1)
        self.stem_chs = inputs = STEM
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [V1Block(inputs, width, 2, groups), *(V1Block(width, width, 1, groups) for _ in range(1, depth))]
            last = depth - 1
            self.add_stage(blocks, width, 2 ** (i + 1), f"{last}.act", f"{last}.expand.1")
            inputs = width
        self.add_classifier(inputs)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1(x))


class CifarShuffleNetV2(CifarNetwork):
    """ShuffleNet V2.

    Args:
        widths: channels of the three stages.
        depths: split blocks of the three stages, after the block of stride 2.
        last: channels of the last convolution.
    """

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], last: int, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes)
        self.conv1 = ConvNorm(in_chans, STEM, 1)
        self.stem_chs = inputs = STEM
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [V2DownBlock(inputs, width), *(V2Block(width) for _ in range(depth))]
            self.add_stage(blocks, width, 2 ** (i + 1), f"{depth}.act")
            inputs = width
        self.conv2 = ConvNorm(inputs, last, 1)
        self.add_classifier(last)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1(x))

    def tail(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(x))


__all__ = ["CifarShuffleNetV1", "CifarShuffleNetV2"]
register(__name__, "shufflenetv1", CifarShuffleNetV1, widths=(240, 480, 960), depths=(4, 8, 4), groups=3)
register(__name__, "shufflenetv2", CifarShuffleNetV2, widths=(116, 232, 464), depths=(3, 7, 3), last=1024)
