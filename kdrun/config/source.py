"""What `student=`, `teacher=` and `loss=` name without a file: the last place where Hydra looks, behind users' folders.

    student/<network>   `timm` with that name, and the args that conf/networks.yaml lists
    teacher/<network>   one that kdrun trains, an ordinary supervised run
    loss/<term>         the term of loss/term/<term>.yaml: alone where it does the work of cross entropy, else beside it

A node is made for any name: only timm, which imports torch, and plug-ins know them all. `to_config` refuses the rest.
"""

import re
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from kdrun.config.networks import own_networks
from kdrun.core.paths import CONF_DIR

PROVIDER = "kdrun"
GROUPS = ("student", "teacher", "loss")
PLACE = re.compile(rf"({'|'.join(GROUPS)})/([\w.-]+)")


def names_without_file(group: str) -> list[str]:
    """The names of a group that conf/ knows; timm and plug-ins know more."""
    if group == "loss":
        return sorted(path.stem for path in (CONF_DIR / "loss" / "term").glob("*.yaml"))
    return sorted(own_networks())


def _node(group: str, name: str) -> dict[str, Any]:
    if group == "student":
        return {"defaults": ["timm", "_self_"], "name": name, "args": dict(own_networks().get(name, {}))}
    if group == "teacher":
        return {"defaults": ["none", {"/student@model": name}, "_self_"], "source": "train"}
    if name == "ce":
        return {"defaults": ["term/ce@ce"]}
    terms = ["term/ce@ce", f"term/{name}@{name}", "_self_"]
    return {"defaults": terms, "ce": {"weight": f"${{beside:{name}}}"}}


class NamesSource(ConfigSource):
    """Makes the nodes above."""

    @staticmethod
    def scheme() -> str:
        return PROVIDER

    def load_config(self, config_path: str) -> ConfigResult:
        place = PLACE.fullmatch(config_path.removesuffix(".yaml"))
        if place is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        node = OmegaConf.create(_node(*place.groups()))
        return ConfigResult(config=node, path=f"{PROVIDER}://", provider=PROVIDER, header={"package": None})

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") in GROUPS

    def is_config(self, config_path: str) -> bool:
        return PLACE.fullmatch(config_path.removesuffix(".yaml")) is not None

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return [] if results_filter == ObjectType.GROUP else names_without_file(config_path.rstrip("/"))


class NamesSearchPath(SearchPathPlugin):
    """Puts that source behind all others."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra puts a --config-dir before the first place whose provider is "schema": so before this one, too.
        search_path.append(provider="schema", path=f"{PROVIDER}://")


def register_source() -> None:
    """Let Hydra look there (needed once in a process)."""
    for plugin in (NamesSource, NamesSearchPath):
        Plugins.instance().register(plugin)
