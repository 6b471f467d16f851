"""Loss functions (pure, per sample unless they say otherwise) and the terms that put them to work.

`kdrun.losses.<name>` is a function or class of any file here, found when it is asked for.
"""

import sys
from typing import Any

from kdrun.core.registry import load


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        load("loss")
        for module_name, module in list(sys.modules.items()):
            found = getattr(module, name, None) if module_name.startswith(f"{__name__}.") else None
            if getattr(found, "__module__", None) == module_name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
