"""Hydra's loader, which puts values on a copy of what the same picks of groups came to before.

Hydra composes in two parts: the files that groups pick are merged, and then values are set on what that came to, one
after the other. Cells of a table and jobs of a sweep differ in values more often than in groups.
"""

import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdrun.config.repository import ParsedOnce
from kdrun.core.errors import ConfigError


@dataclass(frozen=True)
class Picked:
    """What groups alone come to."""

    files: list[ResultDefault]
    """In the order of merging."""
    config: bytes
    """Pickled, which is copied in a tenth of the time."""
    where: ParsedOnce
    """Where the files were looked for: `hydra.searchpath` adds folders."""
    stamps: list[str]

    @classmethod
    def stamps_of(cls, files: Sequence[ResultDefault], where: ParsedOnce) -> list[str]:
        return [where.stamp(str(file.config_path)) for file in files]

    @property
    def stays(self) -> bool:
        """Whether no file has changed."""
        return self.stamps == self.stamps_of(self.files, self.where)


INSTEAD = {
    "tracker": "write tracker={first} tracker.also=[{rest}]",
    "student": "write students=[{all}]",
    "loss": "write loss={first} +loss/term@loss.{last}={last} for a further term",
}
"""What to write in place of a list, for groups of which there may be several."""
STEERING = ("engine", "objective", "search")
BEGUN = ResultDefault(config_path="")
"""Stands for Hydra's own files."""


class Loader(ConfigLoaderImpl):
    """Hydra's, which remembers. Where one of the files has changed on disk, all is composed anew."""

    def __init__(self, config_search_path: Any) -> None:
        parse_once()
        super().__init__(config_search_path)
        self.repository = ParsedOnce(config_search_path)
        self._known: dict[tuple[str | None, ...], Picked] = {}
        self._merged: tuple[list[ResultDefault], ParsedOnce] = [], self.repository
        self._own: dict[str, bytes] = {}

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:  # fmt: skip
        """As Hydra's."""
        composed = None
        if run_mode == RunMode.RUN and validate_sweep_overrides:
            with suppress(Exception):  # Hydra says below what is wrong
                composed = self._on_picked(config_name, overrides)
        if composed is None:
            composed = super().load_configuration(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        return composed

    def files(self, config_name: str, overrides: Sequence[str]) -> list[ResultDefault]:
        """The YAML files that these overrides pick, in the order of merging."""
        parsed = self._parsed(overrides)
        if any(word.is_hydra_override() for word in parsed):
            return self.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
        return self._picked(config_name, [word for word in parsed if self._picks(word)]).files

    def steering(self, overrides: Sequence[str]) -> list[str]:
        """Those that say which files there are and how runs are made, without the values of the runs."""
        words = self._parsed(overrides)
        kept = [w for w in words if self._picks(w) or w.is_hydra_override() or w.key_or_group.startswith(STEERING)]
        return [str(word.input_line) for word in kept]

    # --------------------------------------------------------------------------------------------------- private

    def _on_picked(self, config_name: str | None, overrides: Sequence[str]) -> DictConfig | None:
        """None: a case for Hydra, since values are several, or may change how the rest is composed."""
        parsed = self._parsed(overrides)
        if any(word.is_sweep_override() or word.is_hydra_override() for word in parsed):
            return None
        picks = [word for word in parsed if self._picks(word)]
        composed: DictConfig = pickle.loads(self._picked(config_name, picks).config)
        self._apply_overrides_to_config([word for word in parsed if word not in picks], composed)
        told, job = composed.hydra.overrides.task, composed.hydra.job
        told.clear()
        told.extend([word.input_line for word in parsed])
        how = job.config.override_dirname
        job.override_dirname = config_loader_impl.get_overrides_dirname(
            parsed, kv_sep=how.kv_sep, item_sep=how.item_sep, exclude_keys=how.exclude_keys
        )
        return composed

    def _picked(self, config_name: str | None, picks: Sequence[Override]) -> Picked:
        words = [str(word.input_line) for word in picks]
        known = self._known.get((config_name, *words))
        if known is None or not known.stays:
            config = pickle.dumps(super().load_configuration(config_name, words, RunMode.RUN))
            files, where = self._merged
            known = self._known[config_name, *words] = Picked(files, config, where, Picked.stamps_of(files, where))
        return known

    def _parsed(self, overrides: Sequence[str]) -> list[Override]:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
        return parsed

    def _picks(self, word: Override) -> bool:
        """Whether it is about a group, as Hydra's `Overrides` tells them from values."""
        return self.repository.group_exists(word.key_or_group) and not isinstance(word.value(), dict)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        """As Hydra's; its own files, which come first and mostly are the same, are merged once."""
        _refuse_lists(defaults)
        self._merged = defaults, repo.delegate
        own = list(takewhile(lambda file: str(file.config_path).startswith("hydra/"), defaults))
        name = str([(file.config_path, file.package) for file in own] + Picked.stamps_of(own, repo.delegate))
        if name not in self._own:
            self._own[name] = pickle.dumps(super()._compose_config_from_defaults_list(own, repo))
        self._begun = pickle.loads(self._own[name])
        return super()._compose_config_from_defaults_list([BEGUN, *defaults[len(own) :]], repo)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        if default is BEGUN:
            return ConfigResult(provider="kdrun", path="", config=self._begun, header={"package": None})
        return super()._load_single_config(default, repo)


def _refuse_lists(files: Sequence[ResultDefault]) -> None:
    """Raises ConfigError for a group that was given a list, `tracker=[a,b]`, whose files would be merged in silence.

    A group is one choice where its files fill a node that is named after it; those of `experiment` fill all.
    """
    picked: dict[tuple[str, str], list[str]] = {}
    for file in files:
        group, _, name = str(file.config_path).partition("/")
        if file.package and name and "/" not in str(file.parent) and group != "hydra":  # picked by no file of a group
            picked.setdefault((group, file.package), []).append(name)
    for (group, package), names in picked.items():
        if len(names) > 1:
            word = group if package == group else f"{group}@{package}"
            instead = INSTEAD.get(word, f"a sweep, kdrun sweep {word}={','.join(names)}, makes a run of each")
            told = instead.format(first=names[0], rest=",".join(names[1:]), all=",".join(names), last=names[-1])
            raise ConfigError(f"{word}=[{','.join(names)}]: one choice, and a list would mix their keys; {told}")


def parse_once() -> None:
    """From here on Hydra composes so, under `@hydra.main` too, which takes no repository: it looks up this name."""
    vars(config_loader_impl)["ConfigRepository"] = ParsedOnce
    vars(defaults_list)["_create_interpolation_map"] = _interpolation_map


_hydras = defaults_list._create_interpolation_map


def _interpolation_map(overrides: Any, defaults: list[InputDefault], self_added: bool) -> DictConfig:
    """Hydra's, of a defaults list that has something to interpolate: in others nothing asks it, and it takes long."""
    needed = any(item.is_interpolation() for item in defaults)
    return _hydras(overrides, defaults, self_added) if needed else OmegaConf.create()
