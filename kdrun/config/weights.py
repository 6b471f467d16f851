"""How the weights in a file are read, of a teacher and of a student."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kdrun.core.errors import ConfigError
from kdrun.core.hashing import file_hash
from kdrun.core.schema import Schema
from kdrun.core.weight_file import averaged_entry


def _pattern(given: str) -> str:
    if given.startswith("^"):
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"{given!r} is not a regular expression ({error})") from None
    return given


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A leading part of names, whole parts of them; a regular expression where it begins with ^."""


class WeightsConfig(Schema):
    """Which weights of a file are taken, and how their names become the network's."""

    entry: str | None = None
    """Where in the file they stand, dotted (`checkpoint.net`); null: averaged ones (EMA) where there are such, else
    state_dict, model, net and their like."""
    drop: list[Pattern] = Field(default_factory=list)
    """Names in the file that are left out: their leading parts, or regular expressions that begin with ^."""
    strip_prefix: str = ""
    """Taken off the names in the file, e.g. "module."; what does not begin with it is left out."""
    rename: dict[Pattern, str] = Field(default_factory=dict)
    """Leading parts of names in the file -> the network's, e.g. {linear: fc}; where a key begins with ^ it is a regular
    expression, and what stands against it may have its groups, e.g. {'^(layer.*)downsample': '\\\\1shortcut'}."""
    match: Literal["names", "order"] = "names"
    """order: names do not count, the tensors must have the network's shapes in the network's order."""

    def given(self) -> list[str]:
        """The keys here that are not at their default."""
        fields = WeightsConfig.model_fields
        return [name for name in fields if getattr(self, name) != fields[name].get_default(call_default_factory=True)]


def averaged(path: str, known: tuple[str, ...] = ()) -> str | None:
    """The entry of averaged weights that a file is read by where nobody names one; None: it has none, or nothing else.

    What decides stands in the configuration, and so in the run key: such a file had its other weights taken once.

    Args:
        known: entries that were always taken first; their runs keep their keys.
    """
    try:
        content = file_hash(path, "")
    except ConfigError:  # whoever reads the weights says what is wrong
        return None
    return averaged_entry(path, content, known)
