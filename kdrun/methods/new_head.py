"""A head on the student's features beside its classifier, which learns with the student and is not kept."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from kdrun.config.run import RunConfig
from kdrun.core.seeding import subseed
from kdrun.losses.term import width
from kdrun.models.network import Network

PRELOGITS = "prelogits"
H = TypeVar("H", bound=nn.Module)


def new_head(config: RunConfig, network: Network, name: str, make: Callable[[int], H]) -> H:
    """Raises ConfigError for a network without `prelogits`.

    Args:
        name: seeds its first weights.
        make: of the width of the features.
    """
    dim = width(network.dims, PRELOGITS, "student")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(config.seed, "init", "head", name))
        return make(dim)


def with_prelogits(features: tuple[str, ...]) -> tuple[str, ...]:
    return features if PRELOGITS in features else (*features, PRELOGITS)
