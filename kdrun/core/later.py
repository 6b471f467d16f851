"""Modules that load when they are first used, as `lazy import` of Python 3.15 (PEP 810) will do.

For the command line: torch takes seconds to load, and a mistake in the arguments is told without it. The import itself
stands beside it, under `if TYPE_CHECKING`.
"""

import importlib
from typing import Any


class _Later:
    """Stands for a module, or for a name of it."""

    def __init__(self, module: str, name: str | None) -> None:
        self._module, self._name = module, name

    def _loaded(self) -> Any:
        module = importlib.import_module(self._module)
        return module if self._name is None else getattr(module, self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, pickle and inspect feel for is no reason to load
            raise AttributeError(name)
        return getattr(self._loaded(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._loaded()[key]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._loaded()(*arguments, **options)


def later(module: str, *names: str) -> Any:
    """The module, or what it has of these names (one, or a tuple), not loaded yet: to look into or to call."""
    found = [_Later(module, name) for name in names]
    return _Later(module, None) if not names else found[0] if len(names) == 1 else tuple(found)
