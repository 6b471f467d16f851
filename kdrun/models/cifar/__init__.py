"""The CIFAR networks of the distillation literature."""

import timm  # noqa: F401  first: it registers what is here, see `kdrun.models`
