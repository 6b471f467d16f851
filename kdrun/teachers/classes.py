"""A teacher of other classes than the dataset's: which of its outputs are the dataset's classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdrun.config.model import ModelConfig
from kdrun.config.teacher import NetworkConfig
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.schema import FileContent
from kdrun.core.texts import text_of
from kdrun.data.classes import places
from kdrun.models.factory import NetworkFactory
from kdrun.models.network import outline

AUTO = "auto"


class ClassesConfig(NetworkConfig):
    classes: Annotated[
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2)] | str | None, FileContent(or_name=True)
    ] = None
    """Which of the teacher's classes are the dataset's, in the order of the labels: their numbers; a text file with a
    number on each line, or with the names of all the teacher's classes in their order; auto: of a network of ImageNet,
    by WordNet ids or names; null: both have the same classes."""

    @property
    def reads_names(self) -> bool:
        """Whether it depends on the names of the dataset's classes."""
        return isinstance(self.classes, str)


def heads_of(factory: NetworkFactory, model: ModelConfig) -> list[str]:
    """Names of a network's tensors that have a row for each class."""
    few, more = (
        outline(replace(factory, num_classes=factory.num_classes + extra).spec_of(model)).net.state_dict()
        for extra in (0, 1)
    )
    return [name for name, value in few.items() if more[name].shape != value.shape]


def cut(
    state: Mapping[str, Tensor], heads: Sequence[str], asked: list[int] | str, factory: NetworkFactory, key: str,
    notes: list[str],
) -> dict[str, Tensor]:  # fmt: skip
    """Weights whose classifier has the dataset's classes alone, in the order of the labels.

    Args:
        heads: of `heads_of`.
        asked: `teacher.classes`; `key` says whose.
        notes: takes a line.

    Raises:
        ConfigError, DataError: classes that the teacher has not, or cannot be told.
    """
    rows = [len(state[name]) for name in heads if name in state and state[name].ndim]
    if not rows or len(set(rows)) > 1:
        raise ConfigError(f"{key}: the weights have no one classifier to cut; leave it out")
    chosen = numbers(asked, rows[0], factory, key)
    notes.append(
        f"of its {rows[0]} classes {len(chosen)} are the dataset's: {', '.join(map(str, chosen[:12]))}"
        + (", ..." if len(chosen) > 12 else "")
    )
    return {name: value[chosen] if name in heads else value for name, value in state.items()}


def numbers(asked: list[int] | str, count: int, factory: NetworkFactory, key: str) -> list[int]:
    """The teacher's class of each class of the dataset.

    Args:
        count: of the teacher's classes.
    """
    found = asked if isinstance(asked, list) else _told(asked, count, factory, key)
    if len(found) != factory.num_classes:
        raise ConfigError(
            f"{key}: {len(found)} classes for the dataset's {factory.num_classes}; give one for each label"
        )
    if high := [number for number in found if number >= count]:
        raise ConfigError(f"{key}: {high[0]}: the teacher has {count} classes, 0 to {count - 1}")
    if twice := [number for number in found if found.count(number) > 1]:
        raise ConfigError(f"{key}: {twice[0]} stands twice; each class of the dataset has its own")
    return found


def _told(asked: str, count: int, factory: NetworkFactory, key: str) -> list[int]:
    if asked == AUTO:
        return _among(_imagenet(count, key), factory, key)
    path = Path(asked).expanduser()
    if not path.is_file():
        raise DataError(f"{key}: {asked}: no such file; give auto, numbers, or a text file")
    lines = [line.strip() for line in text_of(path, key).splitlines() if line.strip()]
    if all(line.isdecimal() for line in lines):
        return [int(line) for line in lines]
    if len(lines) != count:
        raise DataError(f"{key}: {asked}: {len(lines)} names for the teacher's {count} classes; give all of them")
    return _among([[line] for line in lines], factory, key)


def _imagenet(count: int, key: str) -> list[list[str]]:
    """Of each class of a network of ImageNet its WordNet id, and what it is called."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        raise ConfigError(f"{key}: auto knows ImageNet's classes, and the teacher has {count}; give numbers or a file")
    info = ImageNetInfo(subset)
    pairs = zip(info.label_names(), info.label_descriptions(), strict=True)
    return [[wnid, *words.split(",")] for wnid, words in pairs]


def _among(theirs: Sequence[Sequence[str]], factory: NetworkFactory, key: str) -> list[int]:
    """The number of each class of the dataset among the teacher's, each of which has some names."""
    if not factory.class_names:
        raise ConfigError(f"{key}: the dataset's classes have no names; give dataset.class_names, or numbers")
    known: dict[str, set[int]] = {}
    for number, names in enumerate(theirs):
        for name in names:
            known.setdefault(_plain(name), set()).add(number)
    names = [_plain(name) for name in factory.class_names]
    several = [name for name in names if len(known.get(name, ())) > 1]
    if several:
        both = ", ".join(map(str, sorted(known[several[0]])))
        raise ConfigError(
            f"{key}: {several[0]!r} is what several of the teacher's classes are called: {both}; give numbers"
        )
    only = {name: next(iter(found)) for name, found in known.items() if len(found) == 1}
    found = places(names, only)
    lost = [name for name, place in zip(factory.class_names, found, strict=True) if place is None]
    if lost:
        told = f"{len(lost)} of the dataset's {len(names)} classes are none of the teacher's, e.g. {lost[0]!r}"
        raise ConfigError(f"{key}: {told}; give numbers or a file, or dataset.class_names as the teacher has them")
    return [place for place in found if place is not None]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
