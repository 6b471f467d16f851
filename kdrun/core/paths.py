"""Where the package, conf/ and docs/ lie."""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CONF_DIR, DOCS_DIR = (HERE / name if (HERE / name).is_dir() else HERE.parent / name for name in ("conf", "docs"))


def python_path() -> str:
    """PYTHONPATH for a process elsewhere that is to find this very package."""
    return os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
