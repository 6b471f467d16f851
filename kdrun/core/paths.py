"""Where the package, conf/ and docs/ lie, and the folder of configs that a command was given beside it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CONF_DIR, DOCS_DIR = (HERE / name if (HERE / name).is_dir() else HERE.parent / name for name in ("conf", "docs"))
CONF_FLAG = "--config-dir"
_GIVEN: ContextVar[Path | None] = ContextVar("config_dir", default=None)


@contextmanager
def with_conf(folder: Path | None) -> Iterator[None]:
    """In this block tables, papers and what they compose are looked for in this folder too, and there first."""
    token = _GIVEN.set(folder)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_conf() -> Path | None:
    """The folder of `with_conf`, a user's `--config-dir`."""
    return _GIVEN.get()


def conf_words() -> list[str]:
    """What a command line begins with that is to look there too."""
    given = given_conf()
    return [] if given is None else [CONF_FLAG, str(given)]


def conf_folders() -> tuple[Path, ...]:
    """Where configs lie, the first one that has a file counts."""
    given = given_conf()
    return (CONF_DIR,) if given is None else (given, CONF_DIR)


def conf_file(name: str) -> Path:
    """`table/demo.yaml` in the first of `conf_folders` that has it; where it is nowhere, in conf/."""
    return next((path for path in (folder / name for folder in conf_folders()) if path.is_file()), CONF_DIR / name)


def in_conf(path: Path) -> str:
    """As users write it: `conf/table/demo.yaml`, or the path of a file of their own."""
    return f"conf/{path.relative_to(CONF_DIR)}" if path.is_relative_to(CONF_DIR) else str(path)


def python_path() -> str:
    """PYTHONPATH for a process elsewhere that is to find this very package."""
    return os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
