"""MobileNetV2 for 32 px images (Sandler et al. 2018, arXiv 1801.04381), in the distillation literature's form.

That form (Tian et al. 2020, arXiv 1910.10699) has ReLU in place of ReLU6, an expansion in the first block too, stride 1
in the second group of blocks, and no dropout.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.cifar.base import CifarNetwork, register

# Expansion, channels at width 1, blocks, stride of the first block; a stage ends before the next stride of 2.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
LAST = 1280


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return x + out if self.residual else out


class CifarMobileNetV2(CifarNetwork):
    """MobileNetV2 of stride 16.

    Args:
        width: factor on the channels of the stem and of the blocks; the last convolution keeps its 1280.
    """

    def __init__(self, width: float, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(num_classes)
        self.stem_chs = inputs = int(32 * width)
        self.conv1 = nn.Conv2d(in_chans, inputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for i, groups in enumerate(STAGES):
            blocks = []
            for expansion, channels, depth, stride in groups:
                widths = [inputs, *[int(channels * width)] * depth]
                for j, (before, after) in enumerate(pairwise(widths)):
                    blocks.append(InvertedResidual(before, after, stride if j == 0 else 1, expansion))
                inputs = widths[-1]
            self.add_stage(blocks, inputs, 2 ** (i + 1))
        self.conv2 = nn.Conv2d(inputs, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.add_classifier(LAST)
        self.init_convolutions()

    def init_classifier(self) -> None:
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))

    def tail(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)))


__all__ = ["CifarMobileNetV2"]
register(__name__, "mobilenetv2_half", CifarMobileNetV2, width=0.5)
