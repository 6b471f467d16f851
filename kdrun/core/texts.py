"""Text files as users write them: UTF-8, with a byte-order mark or without; YAML with the line of each mistake."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdrun.core.errors import ConfigError

DEEPEST = 40  # mappings and lists inside one another
MOST = 100_000  # nodes of a file, those that aliases repeat counted each time
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
STRING = "tag:yaml.org,2002:str"


def text_of(path: Path, key: str) -> str:
    """The text of a file; a byte-order mark is no part of it.

    Raises:
        ConfigError: the file is absent, unreadable or not UTF-8; names `key`, the file and the line.
    """
    where = f"{key}: {path}" if key else str(path)
    try:
        raw = path.expanduser().read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{where}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8"
        ) from None
    except RuntimeError:
        raise ConfigError(f"{where}: no such home directory; write the path out") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def mapping_of(path: Path, key: str = "") -> dict[str, Any]:
    """The content of a YAML file. Raises ConfigError with the file, the line and what is wanted."""
    text = text_of(path, key)
    refuse_yaml(text, f"{key}: {path}" if key else str(path))
    content: dict[str, Any] = yaml.load(text, LOADER)
    return content


def line_of(path: Path, keys: Sequence[str]) -> int:
    """The line, from 1, at which these keys and indices stand in a YAML file, or the nearest one above them."""
    node: Any = yaml.compose(text_of(path, ""), LOADER)
    line: int = node.start_mark.line if node else 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == key), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line
        else:
            break
    return line + 1


def refuse_yaml(text: str, where: str) -> None:
    """Refuse what is no mapping, or not what it looks like, before anything is made of it.

    Nothing is built: a few lines of aliases can stand for more than any memory holds.

    Raises:
        ConfigError: names `where` and the line.
    """
    outline = _Outline()
    mark: Any = None
    try:
        for event in yaml.parse(text, Loader=LOADER):
            mark = event.start_mark
            outline.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or mark
        raise ConfigError(f"{where}, line {mark.line + 1}: {_reason(error, text, mark.line)}") from None
    except yaml.YAMLError as error:  # a character that YAML does not take
        raise ConfigError(f"{where}: not YAML ({error}); save it as plain UTF-8 text") from None
    except _Wrong as error:
        raise ConfigError(f"{where}, line {mark.line + 1}: {error}") from None
    if not outline.documents:
        raise ConfigError(f"{where}: is empty; write key: value lines")


def _reason(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    shown = lines[line] if line < len(lines) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        return "a tab; indent with spaces"
    problem = " ".join(str(error.problem or error.context).split())
    if "undefined alias" in problem or "anchor" in problem:
        return f"{problem}; define it above with &"
    return f"not YAML ({problem}); check indentation, colons and brackets"


class _Wrong(Exception):
    pass


@dataclass
class _Level:
    """A mapping or list that is open."""

    anchor: str | None
    is_mapping: bool
    size: int = 1
    keys: set[str] = field(default_factory=set)
    at_key: bool = True


class _Outline:
    """What the events of a YAML text add up to."""

    def __init__(self) -> None:
        self.documents = 0
        self._open: list[_Level] = []
        self._sizes: dict[str, int] = {}  # nodes behind an anchor

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _Wrong("a second document (---); a file holds one")
        elif isinstance(event, yaml.CollectionEndEvent):
            level = self._open.pop()
            if level.anchor is not None:
                self._sizes[level.anchor] = level.size
            self._count(level.size)
        elif isinstance(event, yaml.NodeEvent):
            self._node(event)

    def _node(self, event: Any) -> None:
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", STRING):
            raise _Wrong(f"a tag ({tag.removeprefix('tag:yaml.org,2002:')}); write plain values")
        if not self._open and not isinstance(event, yaml.MappingStartEvent):
            kind = "a list" if isinstance(event, yaml.SequenceStartEvent) else "a single value"
            raise _Wrong(f"{kind} where a mapping is wanted; write key: value lines")
        self._key(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._sizes:
                why = "stands for itself" if any(level.anchor == event.anchor for level in self._open) else "unknown"
                raise _Wrong(f"*{event.anchor}: {why}; define it above with &{event.anchor}")
            self._count(self._sizes[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) >= DEEPEST:
                raise _Wrong(f"more than {DEEPEST} mappings or lists inside one another; write it flatter")
            self._open.append(_Level(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        else:
            if event.anchor is not None:
                self._sizes[event.anchor] = 1
            self._count(1)

    def _key(self, event: Any) -> None:
        """Where a mapping waits for a key, this is one."""
        level = self._open[-1] if self._open else None
        if level is None or not level.is_mapping:
            return
        if level.at_key:
            name = getattr(event, "value", None)
            if name is None:
                raise _Wrong("a key that is no plain word; write key: value")
            if name in level.keys:
                raise _Wrong(f"{name}: twice in one mapping; leave one out")
            if name in ("", "~", "null"):
                raise _Wrong("a key without a name; write key: value")
            level.keys.add(name)
        level.at_key = not level.at_key

    def _count(self, nodes: int) -> None:
        if self._open:
            self._open[-1].size += nodes
            if self._open[-1].size > MOST:
                raise _Wrong(f"its aliases stand for more than {MOST} values; write out what is meant")
