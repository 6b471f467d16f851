"""Composing conf/ with overrides, as `@hydra.main` does."""

import gc
import re
import shlex
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.job import Job
from kdrun.config.loader import Loader
from kdrun.config.nodes import to_config
from kdrun.config.resolvers import register_resolvers
from kdrun.config.run import RunConfig
from kdrun.config.source import register_source
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.paths import CONF_DIR, HERE, conf_file, given_conf

# What Hydra and OmegaConf raise for overrides that they cannot take; some of it is plain Python's.
REFUSALS = (
    HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, AttributeError, RecursionError,
)  # fmt: skip
# What conf/config.yaml gives Hydra for its directories; kdrun names those of its runs itself.
OWN: dict[str, Any] = {
    "run.dir": "${execution.outputs}/${run_dir:}", "sweep.dir": "${execution.outputs}", "sweep.subdir": "${run_dir:}",
    "output_subdir": None, "job.chdir": False,
}  # fmt: skip
SEED = re.compile(r"seed=(0|[1-9][0-9]*)")
CELLS = 500
"""What differs in more than its seed is kept for the next seed, so many at most."""
SELDOM = 50_000, 20, 100
"""When garbage is collected meanwhile: looking through all nodes after every 700 new ones is a fifth of the time."""
# Mappings whose keys are for the user to name.
OPEN = {"args", "optimizer_args", "lr_for", "rename", "ramps", "coefficients", "settings"}


class Composer:
    """Composes conf/, a user's `--config-dir` and then what needs no file (`source`), as `@hydra.main` does.

    Use it as a context: it occupies Hydra's global instance.

    Args:
        config_dir: None: that of `with_conf`, if any.
    """

    def __init__(self, config_dir: str | None = None, config_name: str = "config") -> None:
        given = given_conf()
        self.config_dir = str(given) if config_dir is None and given is not None else config_dir
        self.config_name = config_name
        self._cells: dict[tuple[str, ...], Cell] = {}

    def __enter__(self) -> "Composer":
        register_source()
        path = create_automatic_config_search_path(None, None, str(CONF_DIR))
        if self.config_dir is not None:
            extra = existing(self.config_dir)
            path.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
        GlobalHydra.instance().clear()
        self.hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=path)
        self.hydra.config_loader = self.loader = Loader(path)
        self._collected = gc.get_threshold()
        gc.set_threshold(*SELDOM)
        register_resolvers()  # behind Hydra's own
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._collected)
        GlobalHydra.instance().clear()

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The composed config with its `hydra` node. Raises ConfigError, one line, for what Hydra refuses."""
        try:
            composed = self._compose(overrides)
        except ConfigError:
            raise
        except REFUSALS as error:
            raise ConfigError(self._explain(error, list(overrides))) from None
        _refuse_directories(composed)
        return composed

    def typed(self, overrides: Sequence[str]) -> RunConfig:
        """The typed config of one job."""
        return to_config(self.compose(overrides))

    def job(self, overrides: Sequence[str]) -> Job:
        """One job, with its overrides as Hydra tells them. Those that differ in their seeds are composed once."""
        words = list(overrides)
        places = [k for k, word in enumerate(words) if SEED.fullmatch(word)]
        if len(places) != 1 or any("${" in word for word in words):  # Hydra tells overrides resolved
            composed = self.compose(words)
            return Job(to_config(composed), tuple(composed.hydra.overrides.task))
        word, seed = words[places[0]], int(words[places[0]].partition("=")[2])
        words[places[0]] = "seed=0"
        known = self._cells.get(tuple(words))
        if known is None:
            known = self._cells[tuple(words)] = Cell(self.compose(words))
            if len(self._cells) > CELLS:
                del self._cells[next(iter(self._cells))]
        return Job(known.config(seed), tuple(word if told == "seed=0" else told for told in known.overrides))

    def picked(self, overrides: Sequence[str]) -> list[tuple[Path, str]]:
        """The YAML files that these overrides pick, each with its package, in the order of merging."""
        files = self.loader.files(self.config_name, overrides)
        return [(conf_file(f"{file.config_path}.yaml"), file.package or "") for file in files]

    def expand(self, overrides: Sequence[str], multirun: bool) -> list[tuple[str, ...]] | None:
        """The overrides of every job; None where a search, or a sweeper not Hydra's own, decides as it goes."""
        try:
            return self._expand(overrides, multirun)
        except ConfigError:
            raise
        except REFUSALS as error:
            raise ConfigError(self._explain(error, list(overrides))) from None

    def swept(self, overrides: Sequence[str]) -> list[Override]:
        """What a sweep over these overrides is given, once `expand` has composed it: a config's own first."""
        params: Any = self.settings.hydra.sweeper.get("params") or {}
        parser = OverridesParser.create(config_loader=self.hydra.config_loader)
        try:
            return parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *overrides])
        except REFUSALS as error:
            raise ConfigError(self._explain(error, list(overrides))) from None

    # --------------------------------------------------------------------------------------------------- private

    def _expand(self, overrides: Sequence[str], multirun: bool) -> list[tuple[str, ...]] | None:
        try:
            self.settings = composed = self._compose(overrides, multirun=True, sweeps=True)
        except REFUSALS:  # a sweep leaves its groups out here, and keys may be theirs: the jobs tell
            self.settings = composed = self._compose(self.loader.steering(overrides), multirun=True, sweeps=True)
        _refuse_directories(composed)
        if not multirun and "MULTIRUN" not in str(composed.hydra.mode):
            return [tuple(overrides)]
        if composed.get("search") or not basic(composed.hydra):
            return None
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        return [tuple(job) for job in BasicSweeper.split_arguments(self.swept(overrides), None)[0]]

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
        if isinstance(error, RecursionError):
            return _circle(error)
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            return self._missing(error, overrides)
        if file := self._file_in(text):
            return f"{file}: {text.splitlines()[0].partition(': ')[2] or text}"
        if match := re.search(r"Could not override '([^']+)'", text):
            return self._unknown_key(match[1], overrides)
        if match := re.match(r"Error merging override \+*(students\.\d+\.[^=]+)=", text):
            return self._unknown_key(match[1], overrides)
        if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
            return f"{match[1]}: exists already; leave out the + (or write ++ to force)"
        if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
            return f"{match[1]}: several values are a sweep; add -m (or quote the value to mean a string)"
        if match := re.search(r"Could not delete.*'([^']+)'", text):
            return f"~{match[1]}: there is no such key to remove"
        if isinstance(error, OverrideParseException):
            return f"{error.override}: not understood; {_quoting(str(error.override))}"
        if "Config group override must be a string or a list" in text:
            return self._no_option(overrides)
        key = getattr(error, "full_key", None)
        line = " ".join(
            part.strip()
            for part in text.splitlines()
            if part.strip() and not part.strip().startswith(("full_key", "object_type"))
        )
        return f"{key}: {line}" if key else line

    def _options(self, group: str) -> list[str]:
        return list(self.hydra.config_loader.get_group_options(group))

    def _file_in(self, text: str) -> Path | None:
        """The file that a message of Hydra's blames, where it is one of kdrun's or the user's."""
        found = re.match(r"In '([^']+)':", text) or re.search(r" defined in ([^ ]+)$", text)
        if found is None or found[1] == self.config_name:
            return None
        folders = [CONF_DIR, *([Path(self.config_dir).expanduser()] if self.config_dir else [])]
        files = (folder / f"{found[1]}.yaml" for folder in reversed(folders))
        return next((file for file in files if file.is_file()), None)

    def _missing(self, error: MissingConfigException, overrides: list[str]) -> str:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if not group and name == self.config_name:
            where = "conf/" + (f" and {self.config_dir}" if self.config_dir else "")
            return f"--config-name: {name}: no such file in {where}; give the name of a YAML file, without .yaml"
        options, file = error.options or [], self._file_in(str(error))
        if file is not None and not any(re.split("[=@]", o.lstrip("+"))[0] == group for o in overrides):
            known = allowed(name, options or self._options(group))
            return f"{file}: its defaults name {group}={name}: no such option{known}"
        if group == "loss/term" and not any("loss/term" in override for override in overrides):
            group, options = "loss", self._options("loss") + self._options("loss/term")  # of `loss=<term>`
        known = allowed(name, {*options})
        if group == "loss" and (HERE / "losses" / f"{name}.py").is_file():
            known += f". kdrun/losses/{name}.py needs conf/loss/term/{name}.yaml"
        elif any(override.lstrip("+").startswith("plugins=") for override in overrides):
            place = f"{self.config_dir or '<--config-dir>'}/{'loss/term' if group == 'loss' else group}/{name}.yaml"
            known += f". A plug-in's part is chosen by a YAML, {place}; see docs/extend/plugin.md"
        words = (override.lstrip("+").partition("=") for override in overrides)
        given = next((key for key, _, value in words if key.partition("@")[0] == group and value == name), group)
        return f"{given or 'config'}={name}: no such option{known}"

    def _no_option(self, overrides: list[str]) -> str:
        """Of the override that gives a group null or a number."""
        for override in overrides:
            group, _, value = override.lstrip("+").partition("=")
            if re.fullmatch(r"null|true|false|[-+.\d][-+.\de_]*", value, re.IGNORECASE) or value[:1] in ("{", '"', "'"):
                options = self._options(group.split("@")[0])
                if group and options:
                    none = f"; {group}=none is the word for nothing" if "none" in options else ""
                    return f"{override}: not an option of the group{allowed(value, options)}{none}"
        return "a group of the command line has no name of a file; write group=option"

    def _unknown_key(self, key: str, overrides: list[str]) -> str:
        """`schedule.lrr: unknown key; nearest: lr (allowed: ...)`, from the config without that override."""
        plain = key.split("@")[0]
        rest = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"), maxsplit=1)[0] != plain]
        if len(rest) == len(overrides):
            return f"{key}: unknown key"
        groups = sorted(p.name for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in ("table", "paper"))
        if re.match(r"students\.\d+\.", plain):
            rest = [o for o in rest if not re.match(r"\+*students\.\d+\.", o)]
        try:
            node: Any = self._compose(rest, sweeps=True)
        except (HydraException, OmegaConfBaseException):
            return f"{key}: unknown key"
        parts = plain.replace("/", ".").split(".")
        if re.match(r"students\.\d+\.", plain):
            return _of_student(plain, [*node.students], overrides)
        for i, part in enumerate(parts):
            names = [str(k) for k in node if k != "hydra"] if OmegaConf.is_dict(node) else []
            if part not in names and i and parts[i - 1] in OPEN:
                value = next((o.partition("=")[2] for o in overrides if o.partition("=")[0] == key), "<value>")
                word = f"+{key}={value}"
                word = _in_shell(word) if re.search(r"[^\w.,/=:+@%\[\]-]", word) else word
                return f"{key}: a new key goes in with a +; write {word}"
            if part not in names:
                known = sorted({*names, *groups}) if i == 0 else names
                if "@" in key:
                    break
                return f"{key}: unknown key{allowed(part, known)}"
            node = node[part]
        if "@" in key:
            return f"{key}: nothing to replace there; write +{key}=<option> to add it"
        return f"{key}: new keys go in with a +; write +{plain}.<name>=<value>, or ++{plain}={{...}}"


def basic(hydra: Any) -> bool:
    """Whether Hydra's own sweeper makes the jobs, which knows all of them beforehand."""
    return str(hydra.sweeper.get("_target_")).endswith("BasicSweeper")


def existing(config_dir: str) -> Path:
    """The folder of `--config-dir`. Raises ConfigError: there is none, or it cannot be read."""
    try:
        path = Path(config_dir).expanduser().resolve()
        if path.is_dir():
            next(path.iterdir(), None)  # that it can be listed
            return path
        why = "no such directory"
    except (OSError, ValueError, RuntimeError) as error:
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        path = Path(config_dir)
    raise ConfigError(f"--config-dir: {path}: {why}")


def _of_student(key: str, students: list[Any], overrides: list[str]) -> str:
    """Why a key of one of several students, such as `students.0.file`, was not taken."""
    index = key.split(".")[1]
    start = f"students.{index}."
    given = [o.lstrip("+").removeprefix(start).partition("=") for o in overrides if o.lstrip("+").startswith(start)]
    if int(index) >= len(students):
        return f"{key}: there are {len(students)} students, counted from 0"
    if not isinstance(students[int(index)], str):
        value = next((value for field, _, value in given if start + field == key), "<value>")
        return f"{key}: a new key goes in with a +; write +{key}={value}"
    node = ", ".join(f"{field}: {value}" for field, _, value in [("name", "=", students[int(index)]), *given])
    told = [f"{{{node}}}" if k == int(index) else str(name) for k, name in enumerate(students)]
    word = f"students=[{', '.join(told)}]"
    return f"{key}: students.{index} is only a name; write {_in_shell(word)}"


def _refuse_directories(composed: DictConfig) -> None:
    """Hydra would be asked for other directories, and kdrun would write where it always does."""
    given: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    for key, own in OWN.items():
        value: Any = given
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != own:
            raise ConfigError(
                f"hydra.{key}: kdrun names directories itself and would not follow {value!r}; give execution.outputs "
                "(and begin a config of your own with defaults: [config, _self_])"
            )


def _circle(error: RecursionError) -> str:
    """Which configs name each other in their defaults: Hydra's frames tell."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [str(f.f_locals.get("path")) for f in frames if f.f_code.co_name == "_create_defaults_tree_impl"]
    for length in range(1, len(names) // 2 + 1):
        if names[-length:] == names[-2 * length : -length]:
            around = " -> ".join(f"{name}.yaml" for name in [*names[-length:], names[-length]])
            return f"{names[-length]}.yaml: its defaults lead back to itself ({around}); leave one of them out"
    return "defaults: files or keys refer to each other in a circle, or too deep; write them flatter"


def _quoting(override: str) -> str:
    """What to write instead: Hydra's quotes around the value, the shell's around all."""
    name, equals, value = override.partition("=")
    if not equals:
        return "write key=value, +key=value to add, ~key to remove"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value += "\\" * (len(value) - len(value.rstrip("\\")))
    word = f"{name}='{value}'"
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return "write key='value', with a \\ before each quote in it; a key is letters, digits, . and _"
    return f"quote the value: {_in_shell(word)}"


def _in_shell(word: str) -> str:
    """An override in the quotes that a shell takes off."""
    return shlex.quote(word) if re.search(r'[$`"!]|\\\\', word) else f'"{word}"'


class Cell:
    """What `compose` gave, for any seed. A seed changes values alone: Hydra's defaults lists cannot refer to it."""

    def __init__(self, composed: DictConfig) -> None:
        self.overrides = list(composed.hydra.overrides.task)
        self._composed: DictConfig | None = composed
        """None: nothing but the seed itself follows the seed."""
        self._first: RunConfig | None = None

    def config(self, seed: int) -> RunConfig:
        """The typed config of this seed."""
        if self._composed is None and self._first is not None:
            return self._first.replace(seed=seed)
        composed: Any = self._composed
        composed.seed = seed
        config = to_config(composed)
        if self._first is None:
            self._first = config
        elif seed != self._first.seed and config == self._first.replace(seed=seed):
            self._composed = None
        return config


def configs_of_seeds(composed: DictConfig, seeds: Sequence[int]) -> list[RunConfig]:
    """The typed config for each seed of what `compose` gave, as `seed=<seed>` behind the overrides gives it."""
    cell = Cell(composed)
    return [cell.config(seed) for seed in seeds]


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
