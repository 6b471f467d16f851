"""Networks: timm's, and the CIFAR networks of the distillation literature, which importing this registers into timm."""

from kdrun.core.registry import load

load("model")
