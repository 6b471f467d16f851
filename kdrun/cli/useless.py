"""Overrides that come to nothing: what a run was told, and what `effective` then dropped."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from kdrun.config.job import Job
from kdrun.config.nodes import dump
from kdrun.config.run import RunConfig

SECTIONS = ("dataset.", "views.", "teacher.", "student.", "schedule.", "loss.")
ABSENT = object()


def without_effect(jobs: Sequence[Job]) -> list[str]:
    """The overrides that change none of these jobs and of what they need, one line each; only what is sure is told."""
    told: dict[str, bool] = {}
    for job in jobs:
        useless = set.intersection(*(_of(job.overrides, one.config) for one in (job, *job.requires.values())))
        for override in job.overrides:
            told[override] = told.get(override, True) and override in useless
    return [f"{override}: has no effect in what this runs" for override, none in told.items() if none]


def _of(overrides: Sequence[str], config: RunConfig) -> set[str]:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return set()
    node, out = dump(config), set()
    for text, override in zip(overrides, parsed, strict=True):
        key, given = override.key_or_group, override.value()
        if not key.startswith(SECTIONS) or override.package is not None or override.is_delete() or not given:
            continue  # a group; null, false and 0 ask for nothing
        found = _at(node, key)
        follows = "${" in f"{found}{given}"  # another key, or the environment
        if found is ABSENT or (not follows and (found is None or (_alike(found, given) and found != given))):
            out.add(text)
    return out


def _alike(found: Any, given: Any) -> bool:
    """Whether two values are of one kind, so that they can be held against each other."""
    kinds = (str, (int, float), list)
    return not isinstance(given, bool) and any(isinstance(found, k) and isinstance(given, k) for k in kinds)


def _at(node: Any, key: str) -> Any:
    """The value at a dotted key of a dumped configuration."""
    first, *parts = key.split(".")
    if first == "student":  # `students`, where they are several, says it all
        node, parts = node["students"], ["0", *parts]
    else:
        parts = [first, *parts]
    for part in parts:
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                return ABSENT
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return ABSENT
    return node
