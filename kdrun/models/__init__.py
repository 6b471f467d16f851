"""Networks: timm's, and the CIFAR networks of the distillation literature registered into timm."""

from kdrun.models import (  # noqa: F401  (each registers its networks)
    cifar_mobilenet,
    cifar_resnet,
    cifar_shufflenet,
    cifar_vgg,
    cifar_wideresnet,
    clip,
)
from kdrun.models.network import Network, Output, build_network

__all__ = ["Network", "Output", "build_network"]
