"""Where the package and conf/ lie."""

from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CONF_DIR = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
