"""Hydra's configs, each file parsed once for a process: of a composition's time most goes into PyYAML."""

import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

_PARSED: dict[tuple[str, str], tuple[tuple[int, int], bytes]] = {}  # (folder, config): (stamp, pickled result)


class ParsedOnce(ConfigRepository):
    """Hydra's repository. A file that has changed on disk is parsed again; what is no file of a folder always is."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source: Any = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return super().load_config(config_path)
        stamp, place = (0, 0), (source.path, config_path)  # Hydra's own configs, in its package, stay as they are
        if source.scheme() == "file":
            seen = Path(source.path, source._normalize_file_name(config_path)).stat()
            stamp = seen.st_mtime_ns, seen.st_size
        known = _PARSED.get(place)
        if known is None or known[0] != stamp:
            known = _PARSED[place] = stamp, pickle.dumps(super().load_config(config_path))
        result: ConfigResult = pickle.loads(known[1])  # a copy of its own: composing changes what it is given
        return result
