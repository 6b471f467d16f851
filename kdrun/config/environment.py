"""What a configuration asks of the machine it stands on, such as `${oc.env:HOME}`: used, and never written down.

An experiment of somebody else's could else carry a secret into records and trackers. So only `execution`, `tracker` and
paths may follow the environment, and what is written of them is the text that asks for it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.values import is_path, leaves, path_names
from kdrun.core.errors import ConfigError

OUTSIDE = ("oc.env", "now", "hydra", "python_version")  # resolvers whose answer is no part of the configuration
OPEN_SECTIONS = ("execution.", "tracker.")
ASKS = re.compile(r"\$\{oc\.(env|decode):")


class _Watch:
    """Whether one of them was asked; `marks`: they answer with a mark that stands for the text that asked."""

    asked = False
    marks: dict[str, str] | None = None


def watch_outside() -> None:
    """Put a watch on the resolvers above (again each time that Hydra has registered its own)."""
    for name in OUTSIDE:
        known = BaseContainer._resolvers.get(name)
        if known is not None and not isinstance(known, _Watched):
            BaseContainer._resolvers[name] = _Watched(name, known)


class _Watched:
    """A resolver as OmegaConf keeps it."""

    def __init__(self, name: str, known: Any) -> None:
        self.name = name
        self.known = known

    def __call__(self, config: Any, parent: Any, node: Any, args: tuple[Any, ...], texts: tuple[str, ...]) -> Any:
        _Watch.asked = True
        if _Watch.marks is None:
            return self.known(config, parent, node, args, texts)
        mark = f"outside{len(_Watch.marks)}mark"
        _Watch.marks[mark] = f"${{{self.name}:{','.join(map(str, args))}}}"
        return mark


def resolved(config: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Plain nodes of a composed configuration, and what of it is not to be written, as `RunConfig.written`.

    Raises:
        ConfigError: a key follows the environment that may not.
    """
    _Watch.asked = False
    node: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(node, dict):
        raise ConfigError("config: not a mapping")
    nodes = {str(key): value for key, value in node.items()}
    if not _Watch.asked:
        return nodes, {}
    with _marked() as marks:
        marked: Any = OmegaConf.to_container(config, resolve=True)
    written = {}
    names, errors = path_names(), []
    told = dict(leaves(marked))
    for key, value in leaves(nodes):
        if told.get(key) == value:
            continue
        text = _text(told.get(key), value, marks)
        if key.startswith("tracker.") or (
            "${oc.env:" in text and (key.startswith(OPEN_SECTIONS) or is_path(key, names))
        ):
            written[key if key.startswith(OPEN_SECTIONS) else f"={value}"] = text
        else:
            errors.append(f"{key}: {text}: what the machine says may not decide this key; write the value out")
    if errors:
        raise ConfigError(*errors)
    return nodes, written


def _text(told: Any, value: Any, marks: Mapping[str, str]) -> str:
    text = re.sub(r"outside\d+mark", lambda found: marks.get(found[0], found[0]), str(told))
    if isinstance(value, str) or "${oc.env:" not in text:
        return text
    return f"${{oc.decode:{text}}}"


@contextmanager
def _marked() -> Iterator[dict[str, str]]:
    _Watch.marks = {}
    try:
        yield _Watch.marks
    finally:
        _Watch.marks = None


def hidden(value: Any, written: Mapping[str, str], key: str = "") -> Any:
    """Plain nodes with the text that asked in place of what the environment said.

    Args:
        written: as `RunConfig.written`.
    """
    if not written:
        return value
    if isinstance(value, Mapping):
        return {name: hidden(item, written, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [hidden(item, written, f"{key}.{i}") for i, item in enumerate(value)]
    if key.startswith(OPEN_SECTIONS):
        return written.get(key, value)
    return written.get(f"={value}", value) if isinstance(value, str) else value


def asked_again(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """As `resolved`, of the nodes of a record. Where the environment does not say it here, the text stays."""
    names: set[str] | None = None
    found: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for key, value in leaves(node):
        if not isinstance(value, str) or ASKS.search(value) is None:
            continue
        names = path_names() if names is None else names
        if key.startswith(OPEN_SECTIONS) or is_path(key, names):
            try:
                answers[key] = OmegaConf.to_container(OmegaConf.create({"it": value}), resolve=True)["it"]  # type: ignore[index, call-overload]
                found[key if key.startswith(OPEN_SECTIONS) else f"={answers[key]}"] = value
            except OmegaConfBaseException:
                continue
    return (_with(node, answers) if answers else dict(node)), found


def _with(value: Any, answers: Mapping[str, Any], key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _with(item, answers, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [_with(item, answers, f"{key}.{i}") for i, item in enumerate(value)]
    return answers.get(key, value)
