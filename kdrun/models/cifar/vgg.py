"""VGG for 32 px images (Simonyan & Zisserman 2015, arXiv 1409.1556) with batch normalization and one linear layer.

The form of the distillation literature (Tian et al. 2020, arXiv 1910.10699): adaptive average pooling in place of the
hidden fully connected layers, no pooling between the last two stages.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kdrun.models.cifar.base import CifarNetwork, register

WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(CifarNetwork):
    """VGG of five stages. A feature is the output of a stage before it is pooled.

    Args:
        depths: convolutions of each stage.
    """

    # deviates: the literature's code pools between the last two stages at 64 px; ours never does, so that a stage's
    # reduction does not depend on the image.

    def __init__(self, depths: Sequence[int], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(num_classes)
        inputs = in_chans
        for i, (depth, outputs) in enumerate(zip(depths, WIDTHS, strict=True)):
            modules: list[nn.Module] = [nn.MaxPool2d(2)] if 1 <= i <= 3 else []
            for _ in range(depth):
                modules += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            last = len(modules) - 1
            self.add_stage(modules, outputs, 2 ** min(i, 3), str(last), str(last - 1))
        self.add_classifier(inputs)
        self.init_convolutions()

    def init_classifier(self) -> None:
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def stem(self, x: Tensor) -> Tensor:
        return x


__all__ = ["CifarVGG"]
for _name, _depths in {
    "vgg8_cifar": (1, 1, 1, 1, 1),
    "vgg11_cifar": (1, 1, 2, 2, 2),
    "vgg13_cifar": (2, 2, 2, 2, 2),
    "vgg16_cifar": (2, 2, 3, 3, 3),
    "vgg19_cifar": (2, 2, 4, 4, 4),
}.items():
    register(__name__, _name, CifarVGG, depths=_depths)
