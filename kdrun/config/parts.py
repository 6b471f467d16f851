"""What the configurations of parts that plug in have in common."""

from pydantic import Field, SerializeAsAny

from kdrun.core.schema import Schema


class MethodConfig(Schema):
    name: str


class UncertaintyConfig(Schema):
    name: str


class TermConfig(Schema):
    """What all loss terms have in common."""

    name: str
    weight: float = Field(1.0, ge=0)
    """Factor on the term's mean; 0: the term is not built."""


class TrackerConfig(Schema):
    """conf/tracker/<name>.yaml; part of no run key. A class's own `Config` adds its keys."""

    name: str = "none"
    also: list[SerializeAsAny["TrackerConfig"]] = Field(default_factory=list)
    """Further ones beside it, each a name, or a mapping with its keys: [csv, {name: tensorboard, folder: logs}]."""
