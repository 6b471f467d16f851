"""The resolvers that conf/ uses."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.environment import watch_outside
from kdrun.config.job import Job, planned_job
from kdrun.config.needs import Needs
from kdrun.config.nodes import part_config, to_config
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup


def _plain_weight(losses: Any, label: Any) -> Any:
    node = losses[label]
    return OmegaConf.to_container(node).get("weight") if OmegaConf.is_dict(node) else None  # type: ignore[union-attr]


def set_of_terms(root: DictConfig) -> str:
    """The key in `coefficients` of the terms in use: `crd+wttm` for ce, wttm and crd."""
    losses: Any = OmegaConf.select(root, "loss") or OmegaConf.create({})
    built = [label for label in losses if _plain_weight(losses, label) != 0]
    names = [OmegaConf.select(losses, f"{label!s}.name") for label in built]
    return "+".join(sorted(str(name) for name in names if name and name != "ce"))


def _coefficient(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${coefficient:wttm.weight,4.0}`: what `coefficients` gives for the set of terms in use, or the default."""
    table = OmegaConf.select(_root_, "coefficients") or {}
    chosen = table.get(set_of_terms(_root_)) if isinstance(table, Mapping) else None
    return chosen.get(key, default) if isinstance(chosen, Mapping) else default


def _setting(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${setting:dho.ce_share,0.4}`: what `settings` gives, or the default; conf/method/dho.yaml says why."""
    given = OmegaConf.select(_root_, f"settings.{key}")
    return default if given is None else given


def _stands_alone(term: TermConfig) -> bool:
    """Whether a term does the work of cross entropy: it is about labels, and not about how images are mixed."""
    needs: Needs = lookup("loss", term.name, "loss").needs(term)
    return not (needs.teacher or needs.mixed)


def _beside(label: str, *, _root_: DictConfig) -> float:
    """`${beside:wttm}`: the weight of cross entropy beside a term that `loss=wttm` picks; 0: the term stands alone."""
    try:
        node: Any = OmegaConf.to_container(_root_.loss[label], resolve=True)
        return 0.0 if _stands_alone(part_config("loss", node, f"loss.{label}")) else 1.0
    except (ConfigError, OmegaConfBaseException):  # said where the terms are typed
        return 1.0


def _run_dir(*, _root_: DictConfig) -> str:
    task = OmegaConf.select(_root_, "hydra.overrides.task") or ()
    return (planned_job(task) or Job(to_config(_root_))).place


def register_resolvers() -> None:
    """Register the resolvers that conf/ uses, and watch those that ask the machine (needed once in a process)."""
    watch_outside()
    OmegaConf.register_new_resolver("coefficient", _coefficient, replace=True)
    OmegaConf.register_new_resolver("setting", _setting, replace=True)
    OmegaConf.register_new_resolver("beside", _beside, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
