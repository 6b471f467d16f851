"""Networks: timm's, and the CIFAR networks of the distillation literature registered into timm."""

from kdrun.models import cifar_resnet  # noqa: F401  (registers its networks)
from kdrun.models.network import Network, Output, build_network

__all__ = ["Network", "Output", "build_network"]
