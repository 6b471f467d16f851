"""kdrun's own networks by name, as conf/networks.yaml lists them: no torch, no timm."""

from functools import cache
from typing import Any

import yaml

from kdrun.core.paths import CONF_DIR


@cache
def own_networks() -> dict[str, dict[str, Any]]:
    """Name -> its `args`; read once, so do not change it."""
    networks: dict[str, dict[str, Any]] = yaml.safe_load((CONF_DIR / "networks.yaml").read_text())
    return networks
