"""Classes of one set among those of another: by what they are called."""

from collections.abc import Mapping, Sequence


def places(names: Sequence[str], among: Mapping[str, int] | Sequence[str]) -> list[int | None]:
    """The number of each name among others; None: it is not one of them.

    Args:
        among: in the order of their numbers, or with them.
    """
    number = among if isinstance(among, Mapping) else {name: k for k, name in enumerate(among)}
    return [number.get(name) for name in names]
