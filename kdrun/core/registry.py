"""Names of the parts that plug in: methods, loss terms, datasets, teachers, learning-rate decays, uncertainties.

`@register("method", "distill")` on a class is all that a new part needs. Its nested `Config` is the schema of its YAML
node. Networks are registered with timm's own `register_model`.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from kdrun.core.errors import ConfigError, allowed

T = TypeVar("T", bound=type)
# Where the parts of each kind lie: a package, each of whose files is found by itself, or one file.
_PACKAGES = {
    "method": "kdrun.methods", "loss": "kdrun.losses", "dataset": "kdrun.data.sets", "model": "kdrun.models",
    "decay": "kdrun.training.decay", "uncertainty": "kdrun.methods.uncertainty", "teacher": "kdrun.teachers",
}  # fmt: skip
_REGISTRY: dict[str, dict[str, type]] = {kind: {} for kind in _PACKAGES if kind != "model"}  # networks are timm's
_PLUGIN_HASHES: dict[str, str] = {}  # module name -> sha256 of its file


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator: makes `name` available in the config group `kind` (method, loss, dataset, ...)."""

    def wrap(cls: T) -> T:
        if kind not in _REGISTRY:
            raise ConfigError(f"register: unknown kind {kind!r}; {allowed(kind, _REGISTRY)}")
        if not hasattr(cls, "Config"):
            raise ConfigError(f"register: {cls.__qualname__} needs a nested class Config, the schema of its YAML")
        old = _REGISTRY[kind].get(name)
        if old is not None and _origin(old) != _origin(cls):
            raise ConfigError(f"register: {kind} {name!r} exists already, in {_origin(old)}; choose another name")
        _REGISTRY[kind][name] = cls
        return cls

    return wrap


@cache
def load(kind: str) -> None:
    """Import every file of the package of a kind, which registers what is in them."""
    package = importlib.import_module(_PACKAGES[kind])
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}."):
        try:
            importlib.import_module(found.name)
        except ConfigError:
            raise
        except Exception as error:  # whatever a file may raise that was put there
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{_file_of(found.name)} cannot be imported: {why}") from error


def lookup(kind: str, name: object, key: str) -> Any:
    """The class registered as `name`; `key` is the config key to blame when there is none."""
    load(kind)
    found = _REGISTRY[kind].get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(
            f"{key}: unknown {kind} {name!r}; {allowed(name, _REGISTRY[kind])}{_unregistered(kind, name)}"
        )
    return found


def registered(kind: str) -> dict[str, type]:
    """Name -> class of everything of a kind, by name."""
    load(kind)
    return dict(sorted(_REGISTRY[kind].items()))


def _unregistered(kind: str, name: object) -> str:
    """What to do where a file, or a class in one, is called so and is not registered."""
    package = _PACKAGES[kind]
    places = [m for m in sys.modules if m == package or m.startswith(f"{package}.") or m in _PLUGIN_HASHES]
    for module in (sys.modules[place] for place in places):
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        file = Path(str(module.__file__))
        if name in (file.stem, *map(_snake_case, classes)):
            where = file if module.__name__ in _PLUGIN_HASHES else _file_of(module.__name__)
            return f'. {where} does not register it: put @register("{kind}", "{name}") on its class'
    return ""


def _snake_case(cls: type) -> str:
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def _file_of(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def load_plugins(paths: list[str], forget: bool = True) -> None:
    """Run users' own files, so that what they register is known; with `forget`, parts of other plugins are dropped.

    The same file content is run once.
    """
    wanted: dict[str, tuple[str, Path]] = {}
    for given in paths:
        path = Path(given).expanduser()
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"plugins: {given}: no such Python file (looked in {path.resolve().parent})")
        place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
        wanted[f"kdrun_plugin_{place}_{path.stem}"] = (given, path)
    for module_name in set(_PLUGIN_HASHES) - set(wanted) if forget else ():
        _forget(module_name)
    for module_name, (given, path) in wanted.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if _PLUGIN_HASHES.get(module_name) == digest and module_name in sys.modules:
            continue
        _forget(module_name)
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"plugins: {given}: not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except ConfigError:
            _forget(module_name)
            raise
        except Exception as error:
            _forget(module_name)
            raise ConfigError(f"plugins: {given}: {type(error).__name__}: {error}") from error
        _PLUGIN_HASHES[module_name] = digest


def _forget(module_name: str) -> None:
    _PLUGIN_HASHES.pop(module_name, None)
    sys.modules.pop(module_name, None)
    for table in _REGISTRY.values():
        for name in [name for name, cls in table.items() if cls.__module__ == module_name]:
            del table[name]


def plugin_hashes(classes: list[Any]) -> list[tuple[str, str]]:
    """File stem and sha256 of the plugin files in which these classes or functions were written, sorted.

    A module that a plugin imports is not hashed.
    """
    modules = {c.__module__ for c in classes} & set(_PLUGIN_HASHES)
    return sorted((module.split("_", 3)[3], _PLUGIN_HASHES[module]) for module in modules)


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
