"""What a process knows before it is forked, so that its children take a fraction of a second: modules, composed configs."""

import contextlib
import copy
import importlib
import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from tqdm import tqdm

from kdrun.cli import plan, train
from kdrun.cli.command import main
from kdrun.config.loader import Loader
from kdrun.runs.record import code_version, package_versions

_COMPOSED: dict[str, Any] = {}
_plain = ConfigLoaderImpl.load_configuration


def _composed(self: ConfigLoaderImpl, *args: Any, **keys: Any) -> Any:
    """As Hydra composes it, once for each command line: that is most of the time of a short run."""
    if isinstance(self, Loader):  # which remembers by itself, and is told of each file as Hydra merges it
        return _plain(self, *args, **keys)
    name = repr((str(self.config_search_path), args, sorted(keys.items())))
    if name not in _COMPOSED:
        _COMPOSED[name] = _plain(self, *args, **keys)
    return copy.deepcopy(_COMPOSED[name])


ConfigLoaderImpl.load_configuration = _composed  # type: ignore[method-assign]


def tell(path: Path) -> None:
    """Into a file, which modules this process has imported."""
    path.write_text("\n".join(sorted(sys.modules)))


def learn(path: Path, words: list[str]) -> None:
    """Import what a child told of, and compose the config of its command line, of which nothing is run."""
    for name in path.read_text().splitlines():
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError):  # made in a process, as six.moves is
                importlib.import_module(name)
    tqdm.set_lock(threading.RLock())  # else each child makes one of the system's, which a kill leaves
    code_version(), package_versions()
    check, run = plan._check, train.run
    plan._check, train.run = (lambda jobs, objective: []), (lambda job: None)  # type: ignore[assignment]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(words)
    plan._check, train.run = check, run
    logging.getLogger().handlers.clear()  # Hydra's, to what was redirected
