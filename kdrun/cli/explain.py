"""Print what method and loss of a run are: equations, sources, keys, where each came from. Trains nothing.

kdrun explain loss=wttm                            what `kdrun loss=wttm` would minimise
kdrun explain method=fixmatch method.threshold=0.9
kdrun explain experiment=demo loss=wttm loss.wttm.gamma=0.3
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdrun.config.compose import Composer, flags_first, parser
from kdrun.config.needs import Needs
from kdrun.config.nodes import to_config
from kdrun.config.parts import TermConfig
from kdrun.config.resolvers import set_of_terms
from kdrun.config.run import RunConfig
from kdrun.config.source import PROVIDER
from kdrun.config.teacher import NetworkConfig, TaughtConfig
from kdrun.core.errors import ConfigError
from kdrun.core.ranks import launch_line
from kdrun.core.registry import lookup
from kdrun.core.schema import Schema

Keys = tuple[str, ...]
COMMAND_LINE = "the command line"
NONE = "its class names none"


def main(arguments: Sequence[str]) -> str:
    """The text for a command line of `kdrun.train`. Raises ConfigError for what `kdrun.train` would refuse."""
    args = parser().parse_args(flags_first(arguments))
    if args.multirun:
        raise ConfigError("-m: one run is explained at a time; give each key one value")
    for name in ("cfg", "resolve", "package", "run", "info", "hydra_help", "shell_completion", "config_path"):
        if getattr(args, name, None):
            raise ConfigError(f"--{name.replace('_', '-')}: not an option of explain; leave it out")
    with Composer(args.config_dir, args.config_name or "config") as composer:
        composed = composer.compose(args.overrides)
        config = to_config(composed)
        origins = _Origins(composer, args.overrides, composed)
        ce = sum(term.weight for term in config.losses.values() if term.name == "ce")
        parts = [_method(config, origins), *(_term(label, term, ce, origins) for label, term in config.losses.items())]
        # but for the cross entropy of a term that stands alone, which nobody asked for
        asked = {str(label) for label, term in composed.loss.items_ex(resolve=False) if "${beside:" not in str(term)}
        needed = {label for run in config.method_class.requires(config).values() for label in run.losses}
    idle = sorted(asked - config.losses.keys())
    lines = [f"{'of the run that it needs' if name in needed else 'weight 0, not built'}: {name}" for name in idle]
    devices = config.execution.devices if config.needs.trains else None
    launch = [] if devices is None else [f"made with {devices} processes: {launch_line(devices, arguments)}"]
    return "\n\n".join([*parts, *_chain(config), "\n".join([_ratio(config.losses), *lines]), *launch])


def _chain(config: RunConfig) -> list[str]:
    """Of teachers that are taught themselves: by what, a line each."""
    lines = []
    for key, part in config.teacher.parts().items() if config.needs_teacher else ():
        if isinstance(part, TaughtConfig):
            terms = " + ".join(f"{term.weight:g} {label}" for label, term in part.terms.items())
            named, taught_by = (_network(config, place) for place in (key, f"{key}.teacher"))
            lines.append(f"{key}: {named}, taught by {taught_by}: {terms}")
    return ["\n".join(lines)] if lines else []


def _network(config: RunConfig, key: str) -> str:
    part = config.teacher.parts()[key]
    return part.model.name if isinstance(part, NetworkConfig) else part.source


def idea_of(cls: type) -> str:
    """The first sentence of what a class says of itself; where it says nothing, of its file behind a first colon."""
    own, file = cls.__doc__, sys.modules[cls.__module__].__doc__ or ""
    text = " ".join(inspect.cleandoc(own or file).split())
    first = re.split(r"(?<=\.) (?=[A-Z`])", text, maxsplit=1)[0]
    first = first if own else first.partition(": ")[2] or first
    return first[:1].upper() + first[1:]


def _method(config: RunConfig, origins: "_Origins") -> str:
    cls = config.method_class
    rows = [(key, value, origins.of(("method", *key.split(".")))) for key, value in _keys_of(config.method)]
    return "\n".join([
        f"method: {config.method.name}", f"  idea: {idea_of(cls) or NONE}", *_told(cls), *_table(rows)
    ])  # fmt: skip


def _keys_of(node: Schema, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key of each field, and its value as one types it; those of parts too, not of other runs, nor its name."""
    for name, plain in node.model_dump(mode="json").items():
        value = getattr(node, name)
        if isinstance(value, Schema) and not isinstance(value, RunConfig):
            yield from _keys_of(value, f"{prefix}{name}.")
        elif (prefix or name != "name") and not isinstance(value, RunConfig):
            yield f"{prefix}{name}", plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _term(label: str, term: TermConfig, ce_weight: float, origins: "_Origins") -> str:
    cls = lookup("loss", term.name, f"loss.{label}.name")
    needs: Needs = cls.needs(term)
    rows = [(key, value, origins.of(("loss", label, *key.split(".")))) for key, value in _keys_of(term)]
    lines = [
        f"loss.{label}: {term.name}" + ("" if needs.per_sample else " (a statistic of the batch)"),
        *_told(cls),
        *_table(rows),
        *(f"  {line}" for line in cls.remarks(term, ce_weight)),
    ]
    return "\n".join(lines)


def _told(cls: type) -> list[str]:
    """Its own: a class that is made from another one does something else."""
    return [f"  {name}: {vars(cls).get(name) or NONE}" for name in ("equation", "source")]


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """A line for each key: its name, its value and where that came from."""
    wide, broad = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return [f"    {name:<{wide}} = {value:<{broad}}   {origin}" for name, value, origin in rows]


def _ratio(losses: dict[str, TermConfig]) -> str:
    """CE : distillation, of the terms against the labels and those against the teacher; linearity may be neither."""
    sides: dict[str, list[tuple[str, float]]] = {"target": [], "teacher": []}
    for label, term in losses.items():
        needs: Needs = lookup("loss", term.name, f"loss.{label}.name").needs(term)
        if needs.teacher or not needs.mixed:
            sides[needs.side].append((label, term.weight))
    for side, what in (("target", "no term against the labels alone"), ("teacher", "no distillation")):
        if not sides[side]:
            return f"CE : distillation: {what}"
    labels, distillation = (sum(weight for _, weight in side) for side in sides.values())
    share = distillation / (labels + distillation)
    names = " : ".join(" + ".join(label for label, _ in side) for side in sides.values())
    return (
        f"CE : distillation = {names} = 1 : {distillation / labels:.4g} by weight "
        f"(shares {1 - share:.4g} and {share:.4g})"
    )


class _Origins:
    """Which file or argument has the last word on a key."""

    def __init__(self, composer: Composer, overrides: Sequence[str], composed: DictConfig) -> None:
        self.composed = composed
        loader = composer.hydra.config_loader
        defaults: Any = loader.compute_defaults_list(composer.config_name, list(overrides), RunMode.RUN)
        self.nodes: list[tuple[Keys, Any, str]] = []  # (package, content, name), in the order of merging
        for part in defaults.defaults:
            found = loader.repository.load_config(part.config_path)  # type: ignore[attr-defined]
            ours = found is not None and found.provider == PROVIDER  # a node that only names other files
            if found is not None and not ours and not str(part.package).startswith("hydra"):
                content = OmegaConf.to_container(found.config, resolve=False)
                folder = "conf" if found.provider == "main" else found.path.removeprefix("file://")
                self.nodes.append((_keys(part.package), content, f"{folder}/{part.config_path}.yaml"))
        for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
            if not override.is_delete():
                self.nodes.append((_keys(override.key_or_group), override.value(), COMMAND_LINE))

    def of(self, keys: Keys) -> str:
        """Such as `conf/loss/kd.yaml`, `the command line` or `coefficients.kd in conf/experiment/demo.yaml`."""
        value, name = self._last(keys)
        match = re.fullmatch(r"\$\{(coefficient|setting):([^,}]+)(,.*)?\}", str(value))
        if match is None:
            return name or "default of the schema"
        key, place = match[2].strip(), f"coefficients.{set_of_terms(self.composed)}"
        given: Keys = (*place.split("."), key)
        if match[1] == "setting":
            place = f"settings.{key.partition('.')[0]}"
            given = ("settings", *key.split("."))
        _, table = self._last(given)
        return f"{place} {_place(table)}" if table else f"default of {name}"

    def _last(self, keys: Keys) -> tuple[Any, str | None]:
        for package, content, name in reversed(self.nodes):
            if package == keys[: len(package)]:
                node = content
                for key in keys[len(package) :]:
                    node = node.get(key, ...) if isinstance(node, dict) else ...
                if node is not ...:
                    return node, name
        return None, None


def _place(name: str) -> str:
    return f"on {name}" if name == COMMAND_LINE else f"in {name}"


def _keys(dotted: str | None) -> Keys:
    return tuple((dotted or "").split(".")) if dotted else ()
