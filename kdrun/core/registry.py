"""Names of the parts that plug in: methods, loss terms, datasets, teachers, learning-rate decays, uncertainties,
engines, trackers.

`@register("method", "distill")` on a class is all that a new part needs. Its nested `Config` is the schema of its YAML
node. Networks are registered with timm's own `register_model`.
"""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from kdrun.core.errors import ConfigError, allowed

T = TypeVar("T", bound=type)
# Where the parts of each kind lie: a package, each of whose files is found by itself, or one file.
_PACKAGES = {
    "method": "kdrun.methods", "loss": "kdrun.losses", "dataset": "kdrun.data.sets", "model": "kdrun.models",
    "decay": "kdrun.training.decay", "uncertainty": "kdrun.methods.uncertainty", "teacher": "kdrun.teachers",
    "engine": "kdrun.training.engines", "tracker": "kdrun.results.trackers",
}  # fmt: skip
# What a class of each kind, and its Config, are to be made from.
_BASES = {
    "method": ("kdrun.methods.method.Method", "kdrun.config.parts.MethodConfig"),
    "loss": ("kdrun.losses.term.Term", "kdrun.config.parts.TermConfig"),
    "dataset": (None, "kdrun.config.dataset.DatasetConfig"),
    "decay": ("kdrun.training.decay.Decay", "kdrun.config.schedule.DecayConfig"),
    "uncertainty": ("kdrun.methods.uncertainty.Uncertainty", "kdrun.config.parts.UncertaintyConfig"),
    "teacher": ("kdrun.teachers.kind.TeacherKind", "kdrun.config.teacher.TeacherConfig"),
    "engine": ("kdrun.training.engines.engine.Engine", "kdrun.training.engines.engine.EngineConfig"),
    "tracker": ("kdrun.training.tracking.Tracker", "kdrun.config.parts.TrackerConfig"),
}
_MEMBERS = {"loss": ("forward",), "teacher": ("build", "outline"), "uncertainty": ("weight",), "tracker": ("log",)}
# Names become folders and parts of dotted keys.
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_REGISTRY: dict[str, dict[str, type]] = {kind: {} for kind in _PACKAGES if kind != "model"}  # networks are timm's
_PREFIX = "kdrun_plugin_"
_PLUGIN_HASHES: dict[str, str] = {}  # module name -> sha256 of its file


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator: makes `name` available in the config group `kind` (method, loss, dataset, ...)."""

    def wrap(cls: T) -> T:
        if kind not in _REGISTRY:
            raise ConfigError(f"register: unknown kind {kind!r}{allowed(kind, _REGISTRY)}")
        if not isinstance(name, str) or WORD.fullmatch(name) is None:
            raise ConfigError(
                f"register: {kind} {str(name)[:80]!r} is no plain word; name it with letters, digits, _ and -"
            )
        if not isinstance(cls, type):
            raise ConfigError(f"register: {kind} {name!r}: {getattr(cls, '__qualname__', cls)!r} is no class")
        if not hasattr(cls, "Config"):
            raise ConfigError(f"register: {cls.__qualname__} needs a nested class Config, the schema of its YAML")
        old = _REGISTRY[kind].get(name)
        if old is not None and _origin(old) != _origin(cls):
            raise ConfigError(f"register: {kind} {name!r} exists already, in {_origin(old)}; choose another name")
        _refuse_shape(kind, cls)
        _REGISTRY[kind][name] = cls
        return cls

    return wrap


def _refuse_shape(kind: str, cls: Any) -> None:
    """Refuse a class that is not made from what its kind is made from, or lacks what it must write itself."""
    base, schema = _BASES.get(kind, (None, None))
    what = cls.__qualname__
    for made, wanted, called in ((cls, base, what), (cls.Config, schema, f"{what}.Config")):
        if wanted is None:
            continue
        module, _, name = wanted.rpartition(".")
        parent = getattr(sys.modules.get(module), name, None)  # whoever is made from it has imported it
        if parent is None or not isinstance(made, type) or not issubclass(made, parent):
            raise ConfigError(f"register: {called} must be a class made from {name}; see docs/extend/")
        for member in _MEMBERS.get(kind, ()) if made is cls and getattr(cls, "present", True) else ():
            if getattr(cls, member) is getattr(parent, member):
                raise ConfigError(f"register: {what} lacks {member}(), which each {kind} writes; see docs/extend/")
    if kind == "dataset" and not any(callable(getattr(cls, reader, None)) for reader in ("load", "files")):
        raise ConfigError(f"register: {what} needs load(config) or files(config); see docs/extend/dataset.md")


@cache
def load(kind: str) -> None:
    """Import every file of the package of a kind, which registers what is in them."""
    for module in _modules(kind):
        _import(module)


def _modules(kind: str) -> list[str]:
    """Of the package of a kind, itself and below."""
    package = importlib.import_module(_PACKAGES[kind])
    below = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}.")
    return [package.__name__, *(found.name for found in below)]


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ConfigError:
        raise
    except Exception as error:  # whatever a file may raise that was put there
        raise ConfigError(f"{_file_of(module)} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _places(kind: str) -> dict[str, str]:
    """Name -> module, of what files say that they register: whoever asks for one part need not wait for all."""
    said = re.compile(rf"""^@register\(["']{kind}["'], ["']([\w-]+)["']\)""", re.MULTILINE)
    specs = [(module, importlib.util.find_spec(module)) for module in _modules(kind)]
    files = [(module, Path(spec.origin)) for module, spec in specs if spec is not None and spec.origin is not None]
    return {name: module for module, file in files for name in said.findall(file.read_text("utf-8"))}


def lookup(kind: str, name: object, key: str) -> Any:
    """The class registered as `name`; `key` is the config key to blame when there is none."""
    place = _places(kind).get(name) if isinstance(name, str) and name not in _REGISTRY[kind] else None
    if place is not None:
        _import(place)
    if not isinstance(name, str) or name not in _REGISTRY[kind]:
        load(kind)
    found = _REGISTRY[kind].get(name) if isinstance(name, str) else None
    if found is None:
        known = allowed(name, _REGISTRY[kind])
        own = "" if _PLUGIN_HASHES or "nearest" in known else "; one of your own is known by plugins=[<its file>.py]"
        raise ConfigError(f"{key}: unknown {kind} {name!r}{known}{_unregistered(kind, name) or own}")
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
        path = _python_file(given)
        place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
        wanted[f"{_PREFIX}{place}_{path.stem}"] = (given, path)
    for module_name in set(_PLUGIN_HASHES) - set(wanted) if forget else ():
        _forget(module_name)
    for kind in _REGISTRY if wanted else ():
        load(kind)  # so that a name that is taken is refused as the plug-in's
    for module_name, (given, path) in wanted.items():
        try:
            code = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"plugins: {given}: cannot be read ({error.strerror})") from None
        digest = hashlib.sha256(code).hexdigest()
        if _PLUGIN_HASHES.get(module_name) == digest and module_name in sys.modules:
            continue
        _forget(module_name)
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"plugins: {given}: not a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with _told_of_interrupts() as interrupts:
                spec.loader.exec_module(module)
        except BaseException as error:  # whatever a file may raise, an exit of its own too
            lines = _lines_of(error, given, os.path.abspath(path))
            _forget(module_name)
            if isinstance(error, KeyboardInterrupt) and interrupts:
                raise
            raise ConfigError(*lines) from error
        _PLUGIN_HASHES[module_name] = digest


def _python_file(given: str) -> Path:
    try:
        path = Path(given).expanduser()
        if path.suffix == ".py" and path.is_file():
            return path
        place = f"looked in {path.resolve().parent}"
    except (OSError, ValueError, RuntimeError) as error:
        place = getattr(error, "strerror", None) or str(error)
    raise ConfigError(f"plugins: {given[:200]}: no such Python file ({place})")


def _lines_of(error: BaseException, given: str, file: str) -> list[str]:
    """What is wrong with a plug-in, with the line in it that raised the error."""
    if isinstance(error, ConfigError):
        return [f"plugins: {given}: {line}" for line in error.lines]
    where = (line_in_plugin(error) or given).replace(file, given)
    if isinstance(error, SystemExit):
        return [f"plugins: {where}: leaves Python (SystemExit: {error}) when imported; let it only register parts"]
    return [f"plugins: {where}: {type(error).__name__}: {error}"]


def line_in_plugin(error: BaseException) -> str | None:
    """`my_file.py, line 3`: where in a plug-in an error came from; None: it came from elsewhere."""
    files = {str(module.__file__) for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


@contextmanager
def _told_of_interrupts() -> Iterator[list[int]]:
    """The interrupts that come meanwhile, by which a Ctrl-C is told from a KeyboardInterrupt that a file raises."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.getsignal(signal.SIGINT)

    def noted(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not callable(before):
            raise KeyboardInterrupt
        before(number, frame)

    ignored = before in (signal.SIG_IGN, None)
    if not ignored:
        signal.signal(signal.SIGINT, noted)
    try:
        yield received
    finally:
        if not ignored and signal.getsignal(signal.SIGINT) is noted:
            signal.signal(signal.SIGINT, before)


def loaded_plugins() -> list[str]:
    """The files of the plug-ins in use."""
    return sorted(f"{module.split('_', 3)[3]}.py" for module in _PLUGIN_HASHES)


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
