"""What schemas and conf/ say of single keys, as rows of a table."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kdrun.core.paths import CONF_DIR
from kdrun.core.schema import OutsideKey, Schema, marker, schema_of

BOUNDS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
SIMPLE = {int: "int", float: "float", str: "str", bool: "bool", NoneType: "`null`", Any: "anything"}
SHOWN, LONG = 4, 40
"""Defaults of single parts that a cell names; characters of a default that is shown whole."""


def key_rows(
    schema: type[Schema], names: Sequence[str], defaults: "Defaults", links: Mapping[type[Any], str]
) -> list[dict[str, str]]:
    """A row for each of these keys.

    Args:
        links: class -> where it is told.
    """
    rows = []
    for name in names:
        field = schema.model_fields[name]
        said = " ".join((field.description or defaults.comment(name) or "").split())
        outside = "Not in the run key." if marker(field, OutsideKey) and not said.startswith("Not in") else ""
        rows.append({
            "key": f"`{name}`",
            "type": type_of(field.annotation, field.metadata, links),
            "default": defaults.of(name, field),
            "what": " ".join(filter(None, [plain(said), outside])) or "-",
        })  # fmt: skip
    return rows


def type_of(annotation: Any, metadata: Sequence[Any], links: Mapping[type[Any], str]) -> str:
    """In words, with the values that are allowed."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(inner[0], [*inner[1:], *metadata], links)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value) if not isinstance(value, str) else value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_of(kind, metadata, links) for kind in inner))
    if origin is list:
        return f"list of {type_of(inner[0], (), links)}"
    if origin is dict:
        return f"mapping of {type_of(inner[0], (), links)} to {type_of(inner[1], (), links)}"
    if annotation in links:
        return links[annotation]
    if annotation not in SIMPLE:
        return str(getattr(annotation, "__name__", annotation))
    bounds = bounds_in(metadata) if annotation in (int, float) else ""
    return SIMPLE[annotation] + bounds


def bounds_in(metadata: Sequence[Any]) -> str:
    """` >= 0 and < 1` of what Field(ge=0, lt=1) leaves."""
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [f"{sign} {getattr(item, name):g}" for cls, name, sign in BOUNDS for item in flat if isinstance(item, cls)]
    return f" {' and '.join(found)}" if found else ""


class Defaults:
    """What a key is where nobody says it: in the YAML of parts, and in their schema where that is silent.

    Args:
        group: of conf/; None: there is the schema alone.
        users: the parts whose files are asked.
    """

    def __init__(self, group: str | None, users: Sequence[str] = ()) -> None:
        files = {name: f"{group}/{name}" for name in users if group and (CONF_DIR / group / f"{name}.yaml").is_file()}
        self.values = {name: values_of(file) for name, file in files.items()}
        self.files = list(files.values()) or ([group] if group else [])

    def of(self, name: str, field: FieldInfo) -> str:
        """The usual default, and which parts have another."""
        given = {part: shown(values[name]) for part, values in self.values.items() if name in values}
        if not given:
            return of_schema(field)
        (usual, _), *_ = Counter(given.values()).most_common(1)
        others: dict[str, list[str]] = {}
        for part, value in given.items():
            if value != usual:
                others.setdefault(value, []).append(f"`{part}`")
        if len(others) > SHOWN:
            return f"{usual}; others have their own"
        return "; ".join([usual, *(f"{value}: {', '.join(parts)}" for value, parts in others.items())])

    def comment(self, name: str) -> str | None:
        """What the first of the files with a comment on the key says there."""
        return next(filter(None, (comments_of(file).get(name) for file in self.files)), None)


def of_schema(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True) if field.default_factory else field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Schema) or (schema_of(field.annotation) and default == {}):
        return "its own"
    return shown(default)


def shown(value: Any) -> str:
    """As one types it."""
    if isinstance(value, dict) and value:
        return "its own"
    if value == "???":
        return "required"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    if len(text) > LONG:
        return f"{len(value)} values" if isinstance(value, list) else f"`{text[:LONG]}...`"
    return f"`{text}`"


@cache
def values_of(file: str) -> dict[str, Any]:
    """conf/<file>.yaml with the files of its group that it begins from; `${setting:x,1}` is 1."""
    node = yaml.safe_load((CONF_DIR / f"{file}.yaml").read_text("utf-8")) or {}
    out: dict[str, Any] = {}
    for base in node.pop("defaults", []):
        if isinstance(base, str) and base != "_self_" and "/" not in base:
            out |= values_of(f"{file.rpartition('/')[0]}/{base}")
    return out | {key: fallback(value) for key, value in node.items()}


def fallback(value: Any) -> Any:
    match = re.fullmatch(r"\$\{\w+:[^,{}]+,(.*)\}", value) if isinstance(value, str) else None
    return yaml.safe_load(match[1]) if match else value


@cache
def comments_of(file: str) -> dict[str, str]:
    """Key -> the comment behind it, in conf/<file>.yaml or the files of its group that it begins from."""
    text = (CONF_DIR / f"{file}.yaml").read_text("utf-8")
    own = dict(re.findall(r"^ *(\w+):.*?\s# *(.+)$", text, re.MULTILINE))
    for base in yaml.safe_load(text).get("defaults", []):
        if isinstance(base, str) and base != "_self_" and "/" not in base:
            own = comments_of(f"{file.rpartition('/')[0]}/{base}") | own
    return own


def first_sentence(text: str) -> str:
    """Of the comment that a YAML file begins with, plain text of Markdown."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# ") and not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return plain(re.split(r"(?<=\.) (?=[A-Z`])", " ".join(lines), maxsplit=1)[0])


def plain(text: str) -> str:
    """Text whose signs Markdown would take for its own, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*\[\]\\~])", r"\\\1", part) for part in parts)
