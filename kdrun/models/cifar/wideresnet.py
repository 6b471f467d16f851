"""Wide ResNets for small images: of the distillation literature, and of FixMatch.

wrn_16_*, wrn_40_*: Zagoruyko & Komodakis 2016, arXiv 1605.07146. wrn_28_2, wrn_28_8: Sohn et al. 2020 (FixMatch),
arXiv 2001.07685, which differs in slope, batch normalization, shortcuts and the classifier's initialization; wrn_37_2:
wrn_28_2 with a fourth stage, for the 96 px of STL-10. FixMatch counts the convolutions of shortcuts, one a stage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.cifar.base import CifarNetwork, register


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization as FixMatch sets it: in TensorFlow's convention the momentum is 0.999."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3, momentum=0.001)


class PreactBlock(nn.Module):
    """Batch normalization, activation, convolution, twice.

    Args:
        activate_first: the shortcut, too, starts from the activated input.
        norm: batch normalization of so many channels.
        slope: of the activation below zero.
        drop_rate: dropout between the two convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, activate_first: bool, norm: type[nn.BatchNorm2d], slope: float,
        drop_rate: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activate_first, self.slope, self.drop_rate = activate_first, slope, drop_rate
        self.bn1 = norm(inputs)
        self.act1 = nn.LeakyReLU(slope)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        if self.activate_first:
            x = out
        out = F.leaky_relu(self.bn2(self.conv1(out)), self.slope)
        out = F.dropout(out, self.drop_rate, self.training)
        total: Tensor = self.conv2(out) + self.shortcut(x)
        return total


class WideResNet(CifarNetwork):
    """Wide ResNet of depth 6n + 4. A shortcut with a convolution starts from the activated input.

    Args:
        depth: 16, 22, 28, 40, ...; of another number of stages: stages (2n + 1) + 1.
        widen: factor on the widths 16, 32, 64, ... of the stages.
        drop_rate: dropout between the convolutions of a block.
    """

    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d
    slope = 0.0

    def __init__(
        self, depth: int, widen: int, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0,
        stages: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(num_classes)
        units, left = divmod(depth - 1 - stages, 2 * stages)
        if left or units < 1:
            raise ValueError(f"depth must be {2 * stages}n + {stages + 1}, got {depth}")
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.stem_chs = inputs = 16
        for i in range(stages):
            outputs = 16 * widen * 2**i
            blocks = []
            for j in range(units):
                stride = 2 if i > 0 and j == 0 else 1
                activate_first = self.activates_first(i, j, inputs, outputs)
                blocks.append(PreactBlock(inputs, outputs, stride, activate_first, self.norm, self.slope, drop_rate))
                inputs = outputs
            self.add_stage(blocks, outputs, 2**i)
        self.bn1 = self.norm(inputs)
        self.act1 = nn.LeakyReLU(self.slope)
        behind = [f"layer{i + 1}.0." for i in range(1, stages)] + [""]
        for info, place in zip(self.feature_info, behind, strict=True):
            info.update(act=f"{place}act1", norm=f"{place}bn1")
        self.add_classifier(inputs)
        self.init_convolutions()

    @staticmethod
    def activates_first(stage: int, block: int, inputs: int, outputs: int) -> bool:
        return inputs != outputs

    def init_classifier(self) -> None:
        nn.init.zeros_(self.fc.bias)

    def stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(x)
        return out

    def tail(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.act1(self.bn1(x)))


class FixMatchWideResNet(WideResNet):
    """The wide ResNet of FixMatch's code.

    Its convolutions have biases, which the batch normalization after each path takes out again: here they are left out.
    """

    # deviates: the code (TensorFlow) pads stride-2 convolutions at the right and bottom only, we on all sides, as every
    # port to PyTorch does; its Glorot normal is cut off at two standard deviations, ours is not.
    norm = BatchNorm
    slope = 0.1

    @staticmethod
    def activates_first(stage: int, block: int, inputs: int, outputs: int) -> bool:
        return stage == 0 and block == 0

    def init_classifier(self) -> None:
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


__all__ = ["FixMatchWideResNet", "WideResNet"]
for _depth, _widen in ((16, 1), (16, 2), (40, 1), (40, 2)):
    register(__name__, f"wrn_{_depth}_{_widen}", WideResNet, depth=_depth, widen=_widen)
for _widen in (2, 8):
    register(__name__, f"wrn_28_{_widen}", FixMatchWideResNet, depth=28, widen=_widen)
register(__name__, "wrn_37_2", FixMatchWideResNet, depth=37, widen=2, stages=4)
