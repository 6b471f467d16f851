"""A network that is itself distilled from a teacher, which may be so too: a chain, each link an ordinary run.

Assistants between a large network and a small one (TAKD: Mirzadeh et al. 2020, arXiv 1902.03393); generations of one
network (born-again: Furlanello et al. 2018, arXiv 1805.04770).
"""

from collections.abc import Mapping

from kdrun.config.derived import derived
from kdrun.config.run import RunConfig
from kdrun.config.teacher import TaughtConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup, register
from kdrun.teachers.train import OwnTraining, OwnTrainingConfig


class DistilledConfig(OwnTrainingConfig, TaughtConfig):
    pass


@register("teacher", "distilled")
class DistilledTeacher(OwnTraining[DistilledConfig]):
    Config = DistilledConfig

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        """Its own run, which requires that of its teacher."""
        method = lookup("method", "distill", self.key).Config(name="distill")
        own = {"method": method, "losses": self.spec.terms, "teacher": self.spec.teacher, **self.changes(config)}
        try:
            return {role: derived(config, **own)}
        except ConfigError as error:
            raise ConfigError(*(self._placed(line) for line in error.lines)) from None

    def effective(self, config: RunConfig) -> DistilledConfig:
        own, spec = config.replace(**self.changes(config)), super().effective(config)
        terms = {label: term for label, term in sorted(spec.terms.items()) if term.weight > 0}
        return spec.replace(terms=terms, teacher=spec.teacher.kind(f"{self.key}.teacher").effective(own))

    def trained_with(self, loss: str) -> bool:
        return any(term.name == loss for term in self.spec.terms.values())

    def _placed(self, line: str) -> str:
        """What is wrong with its run, by the keys that this one has."""
        places: Mapping[str, str] = {"loss.": "terms.", "teacher.": "teacher.", "student.": "model."}
        for theirs, ours in places.items():
            if line.startswith(theirs):
                return f"{self.key}.{ours}{line.removeprefix(theirs)}"
        return f"{self.key}: {line}"
