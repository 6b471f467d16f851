"""kdrun's own networks by name, as conf/networks.yaml lists them: no torch, no timm."""

from functools import cache
from typing import Any

from kdrun.core.paths import CONF_DIR
from kdrun.core.texts import mapping_of


@cache
def own_networks() -> dict[str, dict[str, Any]]:
    """Name -> its `args`; read once, so do not change it."""
    return mapping_of(CONF_DIR / "networks.yaml")
