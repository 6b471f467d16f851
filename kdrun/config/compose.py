"""Composing conf/ with overrides, as `@hydra.main` does."""

import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.job import Job
from kdrun.config.nodes import to_config
from kdrun.config.repository import parse_once
from kdrun.config.resolvers import register_resolvers
from kdrun.config.run import RunConfig
from kdrun.config.source import register_source
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.paths import CONF_DIR, HERE

# What Hydra and OmegaConf raise for overrides that they cannot take; some of it is plain Python's.
REFUSALS = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, AttributeError)


class Composer:
    """Composes conf/, a user's `--config-dir` and then what needs no file (`source`), as `@hydra.main` does.

    Use it as a context: it occupies Hydra's global instance.
    """

    def __init__(self, config_dir: str | None = None, config_name: str = "config") -> None:
        self.config_dir = config_dir
        self.config_name = config_name

    def __enter__(self) -> "Composer":
        register_source()
        path = create_automatic_config_search_path(None, None, str(CONF_DIR))
        if self.config_dir is not None:
            extra = Path(self.config_dir).resolve()
            if not extra.is_dir():
                raise ConfigError(f"--config-dir: {extra}: no such directory")
            path.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
        register_resolvers()
        parse_once()
        GlobalHydra.instance().clear()
        self.hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=path)
        return self

    def __exit__(self, *_: object) -> None:
        GlobalHydra.instance().clear()

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The composed config with its `hydra` node. Raises ConfigError, one line, for what Hydra refuses."""
        try:
            return self._compose(overrides)
        except REFUSALS as error:
            raise ConfigError(self._explain(error, list(overrides))) from None

    def typed(self, overrides: Sequence[str]) -> RunConfig:
        """The typed config of one job."""
        return to_config(self.compose(overrides))

    def job(self, overrides: Sequence[str]) -> Job:
        """One job, with its overrides as Hydra tells them."""
        composed = self.compose(overrides)
        return Job(to_config(composed), tuple(composed.hydra.overrides.task))

    def typed_seeds(self, overrides: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
        """The typed config for each seed, as `seed=<seed>` behind the overrides gives it; composed once."""
        return configs_of_seeds(self.compose(overrides), seeds)

    def picked(self, overrides: Sequence[str]) -> list[tuple[Path, str]]:
        """The YAML files that these overrides pick, each with its package, in the order of merging."""
        loader = self.hydra.config_loader
        defaults: Any = loader.compute_defaults_list(self.config_name, list(overrides), RunMode.RUN)
        return [(CONF_DIR / f"{part.config_path}.yaml", part.package or "") for part in defaults.defaults]

    def expand(self, overrides: Sequence[str], multirun: bool) -> list[tuple[str, ...]] | None:
        """The overrides of every job; None where a sweeper other than Hydra's basic one decides as it goes."""
        try:
            return self._expand(overrides, multirun)
        except ConfigError:
            raise
        except REFUSALS as error:
            raise ConfigError(self._explain(error, list(overrides))) from None

    # --------------------------------------------------------------------------------------------------- private

    def _expand(self, overrides: Sequence[str], multirun: bool) -> list[tuple[str, ...]] | None:
        composed = self._compose(overrides, multirun=True, sweeps=True)
        if composed.hydra.job.chdir:
            raise ConfigError("hydra.job.chdir: kdrun names directories itself; leave it false")
        if not multirun and "MULTIRUN" not in str(composed.hydra.mode):
            return [tuple(overrides)]
        sweeper = composed.hydra.sweeper
        if not str(sweeper.get("_target_")).endswith("BasicSweeper"):
            return None
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(config_loader=self.hydra.config_loader)
        parsed = parser.parse_overrides([*params, *overrides])
        return [tuple(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]

    def _compose(self, overrides: Sequence[str], multirun: bool = False, sweeps: bool = False) -> DictConfig:
        return self.hydra.compose_config(
            config_name=self.config_name,
            overrides=list(overrides),
            run_mode=RunMode.MULTIRUN if multirun else RunMode.RUN,
            with_log_configuration=False,
            from_shell=False,
            validate_sweep_overrides=not sweeps,
        )

    def _explain(self, error: Exception, overrides: list[str]) -> str:
        """Hydra's and OmegaConf's messages, which run over many lines, as one."""
        text = str(error)
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            options = error.options or []
            if group == "loss/term" and not any("loss/term" in override for override in overrides):
                group, options = "loss", self._options("loss") + self._options("loss/term")  # of `loss=<term>`
            known = allowed(name, {*options})
            if group == "loss" and (HERE / "losses" / f"{name}.py").is_file():
                known += f". kdrun/losses/{name}.py needs conf/loss/term/{name}.yaml"
            return f"{group or 'config'}={name}: no such option; {known}"
        if match := re.search(r"Could not override '([^']+)'", text):
            return self._unknown_key(match[1], overrides)
        if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
            return f"{match[1]}: exists already; leave out the + (or write ++ to force)"
        if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
            return f"{match[1]}: several values are a sweep; add -m (or quote the value to mean a string)"
        if match := re.search(r"Could not delete.*'([^']+)'", text):
            return f"~{match[1]}: there is no such key to remove"
        if isinstance(error, OverrideParseException):
            hint = "write key=value, +key=value to add, ~key to remove"
            name, equals, value = str(error.override).partition("=")
            if equals:  # spaces, accents and ~ need quotes of Hydra's own
                hint = f"quote the value: \"{name}='{value}'\""
            return f"{error.override}: not understood; {hint}"
        if "Config group override must be a string or a list" in text:
            empty = [o for o in overrides if re.match(r"[+]*[\w/@.]+=(null|-?\d+)$", o)]
            group = empty[0].lstrip("+").split("=")[0] if empty else "a group"
            options = self._options(group.split("@")[0])
            return f"{empty[0] if empty else group}: not an option of the group; {allowed(group, options)}"
        key = getattr(error, "full_key", None)
        line = " ".join(
            part.strip()
            for part in text.splitlines()
            if part.strip() and not part.strip().startswith(("full_key", "object_type"))
        )
        return f"{key}: {line}" if key else line

    def _options(self, group: str) -> list[str]:
        names: list[str] = self.hydra.config_loader.get_group_options(group)
        return names

    def _unknown_key(self, key: str, overrides: list[str]) -> str:
        """`schedule.lrr: unknown key; nearest: lr (allowed: ...)`, from the config without that override."""
        plain = key.split("@")[0]
        rest = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"), maxsplit=1)[0] != plain]
        if len(rest) == len(overrides):
            return f"{key}: unknown key"
        groups = sorted(p.name for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in ("table", "paper"))
        try:
            node: Any = self._compose(rest, sweeps=True)
        except (HydraException, OmegaConfBaseException):
            return f"{key}: unknown key"
        parts = plain.replace("/", ".").split(".")
        for i, part in enumerate(parts):
            names = [str(k) for k in node if k != "hydra"] if OmegaConf.is_dict(node) else []
            if part not in names:
                known = sorted({*names, *groups}) if i == 0 else names
                return f"{key}: unknown key; {allowed(part, known)}"
            node = node[part]
        return f"{key}: new keys go in with a +; write +{plain}.<name>=<value>, or ++{plain}={{...}}"


def configs_of_seeds(composed: DictConfig, seeds: Sequence[int]) -> list[RunConfig]:
    """The typed config for each seed of what `compose` gave."""

    def typed(seed: int) -> RunConfig:
        composed.seed = seed
        return to_config(composed)

    out = [typed(seed) for seed in seeds[:2]]
    if out == [out[0].replace(seed=seed) for seed in seeds[:2]]:  # nothing else follows the seed
        return [*out, *(out[0].replace(seed=seed) for seed in seeds[2:])]
    return [*out, *(typed(seed) for seed in seeds[2:])]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same command line with flags first: argparse, and so Hydra, refuses overrides on both sides of a flag."""
    overrides = parser().parse_intermixed_args(list(arguments)).overrides
    rest = list(arguments)
    for override in reversed(overrides):
        del rest[len(rest) - 1 - rest[::-1].index(override)]
    return [*rest, *overrides]


def parser() -> ArgumentParser:
    """Hydra's, with its refusals as ConfigError."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see --help")

    made = get_args_parser()
    made.error = refuse  # type: ignore[method-assign]
    return made
