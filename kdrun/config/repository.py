"""Hydra's configs, each file parsed once for a process: of a composition's time most goes into PyYAML."""

import pickle
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf.errors import OmegaConfBaseException

from kdrun.core.errors import ConfigError
from kdrun.core.hashing import file_state
from kdrun.core.texts import refuse_yaml, text_of

_PARSED: dict[str, tuple[str, bytes]] = {}  # place of a config: (stamp of the file, pickled result)


class ParsedOnce(ConfigRepository):
    """Hydra's repository. A file that has changed on disk is parsed again; what is no file of a folder always is."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        _refuse_no_file(self.sources, config_path)
        source: Any = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return super().load_config(config_path)
        stamp, place = "", f"{source.path}/{config_path}"  # Hydra's own configs, in its package, stay as they are
        if source.scheme() == "file":
            file = Path(source.path, source._normalize_file_name(config_path)).absolute()
            try:
                stamp, place = file_state(file.stat()), str(file)
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        known = _PARSED.get(place)
        if known is None or known[0] != stamp:
            if source.scheme() == "file":
                _refuse_broken(file)
            known = _PARSED[place] = stamp, pickle.dumps(self._parsed(config_path, place))
        result: ConfigResult = pickle.loads(known[1])  # a copy of its own: composing changes what it is given
        return result

    def stamp(self, config_path: str) -> str:
        """Which file a config is now, and in which state; another text once it has changed."""
        source: Any = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file":
            return "" if source is None else str(source.path)
        file = Path(source.path, source._normalize_file_name(config_path)).absolute()
        try:
            return f"{file} {file_state(file.stat())}"
        except OSError:
            return ""

    def _parsed(self, config_path: str, place: str) -> ConfigResult | None:
        try:
            return super().load_config(config_path)
        except (yaml.YAMLError, OmegaConfBaseException, HydraException, ValueError, TypeError, OSError) as error:
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(f"{place}: {line}") from None


def _refuse_broken(file: Path) -> None:
    """What Hydra would take in silence, or tell over many lines without the file's name."""
    text = text_of(file, "")
    if file.read_bytes().startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{file}, line 1: begins with a byte-order mark; save it as UTF-8 without one")
    refuse_yaml(text, str(file))


def _refuse_no_file(sources: Any, config_path: str) -> None:
    """A folder or a dead link that is called as a config, which Hydra would look past."""
    for source in sources:
        if source.scheme() != "file" or not config_path:
            continue
        file = Path(source.path, source._normalize_file_name(config_path))
        try:
            if file.is_file():
                return
            wrong = "a folder" if file.is_dir() else "a link that leads nowhere" if file.is_symlink() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{config_path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        if wrong is not None:
            raise ConfigError(f"{file}: {wrong}, where a YAML file is wanted; give it another name")
