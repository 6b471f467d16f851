"""One run, wholly specified. The names below, for old plug-ins, are taken from `kdrun` for one release."""

from typing import Any


def __getattr__(name: str) -> Any:
    import kdrun

    if name.endswith("Config"):
        return getattr(kdrun, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
