"""What no value of a configuration may be, whatever its key; and which keys are paths."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import registered
from kdrun.core.schema import FileContent, marker

LARGEST = 2**63 - 1  # what arrays, seeds and files can hold
LONGEST = 255  # bytes of one name on all common file systems
PATHS = {"root", "outputs", "corruptions", "class_names", "plugins"}  # and every field that is marked `FileContent`


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping and no list."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from leaves(value, f"{key}.{i}")
    else:
        yield key, node


def path_names() -> set[str]:
    """The last parts of keys whose values are paths, those of plug-ins in use too."""
    classes = [part.Config for kind in ("dataset", "teacher", "method", "loss") for part in _parts(kind)]
    marked = {
        name
        for schema in (ModelConfig, *classes)
        for name, field in getattr(schema, "model_fields", {}).items()
        if marker(field, FileContent)
    }
    return PATHS | marked


def is_path(key: str, names: set[str]) -> bool:
    """Whether a dotted key is that of a path, or of one in a list of paths."""
    *_, last = [part for part in key.split(".") if not part.isdigit()] or [""]
    return last in names


def _is_plain(key: str) -> bool:
    """Whether every network has such a key, and it is no path: then no part need be loaded to know, as for the
    strip_prefix that is empty as a rule."""
    name = key.rpartition(".")[2]
    field = ModelConfig.model_fields.get(name)
    return field is not None and name not in PATHS and not marker(field, FileContent)


def refuse_values(node: Mapping[str, Any]) -> None:
    """Numbers beyond what a machine counts with, text that no file can hold, paths that cannot be.

    Raises:
        ConfigError: one line for each.
    """
    errors: list[str] = []
    names: set[str] | None = None
    for key, value in leaves(node):
        if isinstance(value, int) and abs(value) > LARGEST:
            errors.append(f"{key}: {str(value)[:40]} is beyond 2^63; give a smaller number")
        if not isinstance(value, str):
            continue
        if (why := _unwritable(value)) is not None:
            errors.append(f"{key}: {value[:60]!r} {why}")
        elif (why := _no_path(value)) is not None and not _is_plain(key):
            names = path_names() if names is None else names
            if is_path(key, names) and not re.search(r"class_names\.\d", key):
                errors.append(f"{key}: {value[:60]}{'…' if len(value) > 60 else ''}{why}")
    if errors:
        raise ConfigError(*errors)


def _parts(kind: str) -> list[Any]:
    return list(registered(kind).values())


def _unwritable(text: str) -> str | None:
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
        return "holds a control character; leave it out"
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        return "is not UTF-8, and a record could not hold it; rename it"
    return None


def _no_path(value: str) -> str | None:
    if not value.strip():
        return "an empty path; give one, or null where there is none"
    if value.startswith("~") and os.path.expanduser(value) == value:
        return ": no such home directory; write the path out"
    longest = max(len(os.fsencode(part)) for part in value.split("/"))
    if longest > LONGEST:
        return f": a name of {longest} bytes, and file systems take {LONGEST}; choose another"
    return ": longer than paths may be (4096 bytes)" if len(os.fsencode(value)) > 4096 else None
