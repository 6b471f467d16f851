"""Typed nodes of the config: every YAML node becomes a frozen `Schema`, strict about keys, types and bounds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kdrun.core.errors import ConfigError, allowed

S = TypeVar("S", bound="Schema")
M = TypeVar("M")


class Schema(BaseModel):
    """Base of all config nodes. Unknown keys, wrong types and values out of bounds are refused; nothing is coerced."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def replace(self: S, **changes: Any) -> S:
        """A copy with some fields changed, validated again."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**values, **changes})


class OutsideKey:
    """Marks a field that cannot change a result (a path, a device): not part of the run key."""


class FileContent:
    """Marks a path that stands in the run key as the hash of the file's content.

    Of a folder: of the names and sizes of its files, or with `whole` of their content.

    Args:
        or_name: what is no path here is a name of something elsewhere, and stands for itself.
        suffixes: of a folder, only files with such an ending count, and nothing that is hidden; None: all files. With
            "" among them, also files without an ending that begin as an image does.
    """

    def __init__(self, whole: bool = False, or_name: bool = False, suffixes: frozenset[str] | None = None) -> None:
        self.whole = whole
        self.or_name = or_name
        self.suffixes = suffixes


def build(schema: type[S], node: Any, key: str, strict: bool | None = None) -> S:
    """Turn a plain config node into `schema`; every problem becomes one line that names its dotted key.

    Args:
        strict: False: numbers may be given as text; None: as the schema says.
    """
    if not isinstance(node, Mapping):
        names = sorted(schema.model_fields, key=lambda name: not schema.model_fields[name].is_required())
        raise ConfigError(f"{key or 'config'}: expected a mapping of {', '.join(names)}, got {node!r}")
    try:
        return schema.model_validate(dict(node), strict=strict)
    except ValidationError as error:
        raise ConfigError(*_lines(schema, error.errors(include_url=False), key)) from None


def from_arguments(schema: type[S], arguments: Sequence[str]) -> S:
    """The words `key=value` of a command line as `schema`. A key of a list may be given several times."""
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument}: write key=value{allowed(key, schema.model_fields)}")
        field = schema.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is list:
            given.setdefault(key, []).append(value)
        elif key in given:
            raise ConfigError(f"{key}: given twice, {given[key]} and {value}; leave one out")
        else:
            given[key] = value
    return build(schema, given, "", strict=False)


def _lines(schema: type[BaseModel], errors: list[ErrorDetails], prefix: str) -> list[str]:
    """One line for each key: of a union pydantic tells why each of its types was not taken."""
    lines: dict[str, list[str]] = {}
    for error in errors:
        line = _explain(schema, error, prefix)
        key, found, reason = line.partition(": ")
        lines.setdefault(key if found else line, []).append(reason)
    out = []
    for key, reasons in lines.items():
        told = list(dict.fromkeys(reasons))
        if len(told) > 1:
            told = [reason.partition("; quote it")[0] for reason in told]
        ends = {reason.rpartition(", got ")[2] for reason in told if ", got " in reason}
        got = ""
        if len(told) > 1 and len(ends) == 1:
            told, got = [reason.rpartition(", got ")[0] or reason for reason in told], f", got {ends.pop()}"
        out.append(f"{key}: {'; or '.join(told)}{got}" if any(told) else key)
    return out


def _explain(schema: type[BaseModel], error: ErrorDetails, prefix: str) -> str:
    loc = [part for part in error["loc"] if not (isinstance(part, str) and _is_tag(part))]
    key = ".".join(([prefix] if prefix else []) + [str(part) for part in loc])
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        owner = _owner(schema, loc[:-1])
        names = list(owner.model_fields) if owner else []
        return f"{key}: unknown key{allowed(loc[-1], names)}"
    if kind == "missing":
        return f"{key}: missing; a value is required"
    if kind == "value_error":
        return _placed(key, error["msg"].removeprefix("Value error, "), _owner(schema, loc))
    if kind == "literal_error":
        names = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{key}: {given!r} is not allowed{allowed(given, names)}"
    if kind == "string_type" and isinstance(given, int | float):
        written = f"'{str(given).lower() if isinstance(given, bool) else given}'"
        word = written if isinstance(loc[-1], int) else f'"{key}={written}"'  # an entry of a list has no override
        return f"{key}: must be a valid string, got {given!r}; quote it: {word}"
    message = error["msg"].replace("Input should be", "must be").replace("Input", "must")
    return f"{key}: {message}, got {given!r}"


def _placed(key: str, message: str, owner: type[BaseModel] | None) -> str:
    """A message under the key of its node; one that begins with its usual place, `schedule.lr: `, or with a field of
    the node, goes on from it."""
    found = re.match(r"(?:(\w+)\.)?([\w.*]+): ", message)
    if found is None or re.fullmatch(r"[\w.]+", key) is None:
        return f"{key}: {message}" if key else message
    if found[1] in key.split(".") if found[1] else owner is not None and found[2] in owner.model_fields:
        key, message = key if key.endswith(f".{found[2]}") else f"{key}.{found[2]}", message[found.end() :]
    return f"{key}: {message}"


# Names that pydantic puts into an error's location for the branches of a union.
_UNION_TAGS = frozenset({"int", "float", "str", "bool", "list[int]", "list[str]", "list[float]"})


def _is_tag(part: str) -> bool:
    return part in _UNION_TAGS or part.startswith(("literal[", "function-", "constrained-", "list["))


def _owner(schema: type[BaseModel], loc: list[int | str]) -> type[BaseModel] | None:
    """The schema that holds the key at `loc`."""
    current: type[BaseModel] | None = schema
    for part in loc:
        if current is None:
            return None
        field = current.model_fields.get(str(part))
        current = schema_of(field.annotation) if field else current if isinstance(part, int) else None
    return current


def schema_of(annotation: Any) -> type[BaseModel] | None:
    """The first node in an annotation, such as that of `list[ModelConfig]`; None: there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Literal:
        return None
    return next((found for found in map(schema_of, get_args(annotation)) if found), None)


def marker(field: FieldInfo, kind: type[M]) -> M | None:
    """The marker of a field, such as an `OutsideKey`; None: it has none."""
    return next((item for item in field.metadata if isinstance(item, kind)), None)
