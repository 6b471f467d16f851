"""What authors give their runs, as conf/paper/recipes/<paper>.yaml lists it, held against what experiments are."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from kdrun.config.nodes import dump
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.paths import CONF_DIR
from kdrun.core.schema import Schema, build
from kdrun.core.texts import line_of, mapping_of

FOLDER = CONF_DIR / "paper" / "recipes"
STEPS = "steps"  # a key that no config has: the length of a run on so many labeled images
ELSEWHERE = re.compile(r"paper|digest")
PLACE = re.compile(r"paper, (abstract|algorithm|appendix|equation|figure|section|table)\b.*")
FILE = re.compile(r"(?P<repository>[\w.-]+(/[\w.-]+)?), (?P<file>[^\s:]+)(:(?P<line>[1-9]\d*))?( \S.*)?")
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{7,40}|\d+(\.\d+)+)$")]  # of a package: its version


class Argument(Schema):
    """One value of the authors'."""

    key: str
    """Dotted path in the configuration of a run as its record has it, e.g. students.0.name; `steps`: see `labeled`."""
    value: Any
    source: str
    """`owner/name, file:line what stands there`; `paper, table 3`; `digest: ...`: known second hand."""
    unread: bool = False
    """The repository's file was not at hand: its line is not known, and the value is second hand."""
    labeled: int | None = Field(None, gt=0)
    """Labeled images of the run that takes so many `steps`."""

    @model_validator(mode="after")
    def _names_its_place(self) -> "Argument":
        file = self.file
        if self.unread and (file is None or file["line"]):
            raise ValueError(f"unread is said of a repository's file without a line, and the source is {self.source!r}")
        if file is None and not PLACE.fullmatch(self.source) and not re.fullmatch(r"digest: \S.*", self.source):
            raise ValueError(
                f"the source {self.source!r} names no place (allowed: owner/name, file:line; paper, table 3, or an "
                "abstract, algorithm, appendix, equation, figure, section; digest: what is known second hand)"
            )
        if file is not None and not file["line"] and not self.unread:
            raise ValueError(f"the source {self.source!r} names no line; write {file['file']}:<line>, or unread: true")
        return self

    @property
    def file(self) -> re.Match[str] | None:
        """Groups repository, file and line, where a repository's or a package's file is the source."""
        return None if ELSEWHERE.match(self.source) else FILE.fullmatch(self.source)


class Deviation(Schema):
    """A key of `arguments` at which ours is another value."""

    key: str
    ours: Any
    why: str = Field(min_length=8)


class Gap(Schema):
    """What the authors do and no key of ours can say."""

    what: str
    why: str = Field(min_length=8)


class Entry(Schema):
    """Arguments that some experiments have in common. An experiment may be in several entries."""

    experiments: list[str] = Field(min_length=1)
    """Names below conf/experiment; * stands for anything."""
    overrides: list[str] = Field(default_factory=list)
    """What is given beside the experiment, e.g. teacher=tip_adapter."""
    arguments: list[Argument] = Field(min_length=1)
    deviations: list[Deviation] = Field(default_factory=list)
    gaps: list[Gap] = Field(default_factory=list)


class Recipes(Schema):
    """conf/paper/recipes/<paper>.yaml."""

    repositories: dict[str, Commit] = Field(default_factory=dict)
    """owner/name, or a file or folder below it that was read at another commit -> the commit whose lines are meant."""
    entries: list[Entry] = Field(default_factory=list)
    ours: dict[str, str] = Field(default_factory=dict)
    """Experiments that follow no paper's recipe, or patterns of their names, and why."""

    @model_validator(mode="after")
    def _knows_each_commit(self) -> "Recipes":
        used = set()
        for k, entry in enumerate(self.entries):
            for i, argument in enumerate(entry.arguments):
                if argument.file is None:
                    continue
                parts = f"{argument.file['repository']}/{argument.file['file']}".split("/")
                known = [name for n in range(len(parts)) if (name := "/".join(parts[: n + 1])) in self.repositories]
                if not known:
                    raise ValueError(
                        f"entries.{k}.arguments.{i}: repositories names no commit of {argument.file['repository']}"
                        f"{allowed(argument.file['repository'], self.repositories)}"
                    )
                used.add(known[-1])
        if unused := self.repositories.keys() - used:
            raise ValueError(f"repositories.{min(unused)}: no source is in it; take it out")
        return self


def read_recipes(folder: Path = FOLDER) -> dict[str, Recipes]:
    """File -> what it lists. Raises ConfigError, with the lines, for what a file may not say."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        where = f"{path.parent.name}/{path.name}"
        try:
            found[where] = build(Recipes, mapping_of(path), where)
        except ConfigError as error:
            told = [line.removeprefix(where).lstrip(".: ") for line in error.lines]
            raise ConfigError(
                *(f"{where}, line {line_of(path, line.partition(': ')[0].split('.'))}: {line}" for line in told)
            ) from None
    return found


def experiments_of(folder: Path = CONF_DIR / "experiment") -> list[str]:
    """All that can be run; a base alone cannot."""
    names = (str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if name.rpartition("/")[2] != "base")


def mistakes(
    recipes: Mapping[str, Recipes], experiments: Sequence[str], typed: Callable[[list[str]], RunConfig]
) -> list[str]:
    """One line for each thing in which the lists and what is composed do not agree; none: all is as listed.

    Args:
        typed: the configuration of overrides.
    """
    lines: list[str] = []
    told: set[str] = set()
    for where, listed in recipes.items():
        for k, entry in enumerate(listed.entries):
            place = f"{where}, entries.{k}"
            for pattern in entry.experiments:
                names = [name for name in experiments if fnmatchcase(name, pattern)]
                lines += (
                    [] if names else [f"{place}: no experiment is called {pattern!r}{allowed(pattern, experiments)}"]
                )
                told |= {*names}
                for name in names:
                    try:
                        config = typed([f"experiment={name}", *entry.overrides])
                    except ConfigError as error:
                        lines += [f"{place}, experiment={name}: {line}" for line in error.lines]
                        continue
                    lines += [f"{place}, experiment={name}: {line}" for line in _differences(entry, config)]
        for pattern in listed.ours:
            names = [name for name in experiments if fnmatchcase(name, pattern)]
            lines += (
                [] if names else [f"{where}, ours: no experiment is called {pattern!r}{allowed(pattern, experiments)}"]
            )
            told |= {*names}
    lines += [
        f"experiment={name}: has no recipe; list what its authors give in conf/paper/recipes/<paper>.yaml (entries: "
        "experiments, arguments with key, value and source), or say under ours why there is none"
        for name in experiments
        if name not in told
    ]
    return lines


def _differences(entry: Entry, config: RunConfig) -> Iterator[str]:
    node, deviations = dump(config), {deviation.key: deviation for deviation in entry.deviations}
    for argument in entry.arguments:
        deviation = deviations.pop(argument.key, None)
        try:
            found = _value(node, config, argument)
        except ConfigError as error:
            yield str(error)
            continue
        if deviation is None and found != argument.value:
            yield (
                f"{argument.key} is {found!r}, and {argument.source} has {argument.value!r}; mend it, or list a "
                "deviation"
            )
        elif deviation is not None and found == argument.value:
            yield f"{argument.key} is {found!r} as in {argument.source}: it no longer deviates; take out the deviation"
        elif deviation is not None and found != deviation.ours:
            yield f"{argument.key} is {found!r}, and the deviation says {deviation.ours!r}"
    yield from (f"{key}: a deviation from nothing; list the authors' value under arguments" for key in deviations)


def _value(node: Mapping[str, Any], config: RunConfig, argument: Argument) -> Any:
    if argument.key == STEPS:
        if argument.labeled is None:
            raise ConfigError("steps: of how many labeled images? give labeled")
        return config.schedule.clock(argument.labeled).total_steps
    at: Any = node
    for part in argument.key.split("."):
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        elif isinstance(at, Mapping) and part in at:
            at = at[part]
        else:
            known = at if isinstance(at, Mapping) else ()
            raise ConfigError(f"{argument.key}: no such key in its configuration{allowed(part, known)}")
    return at
