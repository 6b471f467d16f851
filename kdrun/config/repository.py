"""Hydra's configs, each file parsed once for a process: of a composition's time most goes into PyYAML."""

import pickle
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

_PARSED: dict[str, tuple[tuple[int, int], bytes]] = {}  # place of a config: (stamp of the file, pickled result)


class ParsedOnce(ConfigRepository):
    """Hydra's repository. A file that has changed on disk is parsed again; what is no file of a folder always is."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source: Any = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return super().load_config(config_path)
        stamp, place = (0, 0), f"{source.path}/{config_path}"  # Hydra's own configs, in its package, stay as they are
        if source.scheme() == "file":
            file = Path(source.path, source._normalize_file_name(config_path)).absolute()
            stamp, place = (file.stat().st_mtime_ns, file.stat().st_size), str(file)
        known = _PARSED.get(place)
        if known is None or known[0] != stamp:
            known = _PARSED[place] = stamp, pickle.dumps(super().load_config(config_path))
        result: ConfigResult = pickle.loads(known[1])  # a copy of its own: composing changes what it is given
        return result


def parse_once() -> None:
    """From here on Hydra composes so, under `@hydra.main` too, which takes no repository: it looks up this name."""
    vars(config_loader_impl)["ConfigRepository"] = ParsedOnce
