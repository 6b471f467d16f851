"""One composer for a file of tests. A list of overrides is typed once for all laws that look at it: configs are frozen."""

from collections.abc import Iterator, Sequence

import pytest

from kdrun.config.compose import Composer
from kdrun.config.run import RunConfig

TYPED: dict[tuple[str, ...], RunConfig] = {}


class Remembering(Composer):
    def typed(self, overrides: Sequence[str]) -> RunConfig:
        key = tuple(overrides)
        if key not in TYPED:
            TYPED[key] = super().typed(overrides)
        return TYPED[key]


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with Remembering() as made:
        yield made
