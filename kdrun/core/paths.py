"""Where the package and conf/ lie."""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CONF_DIR = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def python_path() -> str:
    """PYTHONPATH for a process elsewhere that is to find this very package."""
    return os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
