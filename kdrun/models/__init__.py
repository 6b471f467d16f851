"""Networks: timm's, and the CIFAR networks of the distillation literature, which timm knows once both are imported.

timm and what it brings take seconds to load, and a configuration of kdrun's own networks is planned and explained
without it. So they are registered when somebody imports timm: whoever asks it for a network finds them.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from kdrun.core.registry import load


class _WithTimm(MetaPathFinder, Loader):
    """Finds timm as ever, and registers kdrun's networks in it when it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == "timm" else None
        if found is None or found.loader is None:
            return None
        self._loader, found.loader = found.loader, self
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        load("model")


if "timm" in sys.modules:
    load("model")
else:
    sys.meta_path.insert(0, _WithTimm())
