"""What losses over one stage of each network share."""

from dataclasses import replace
from typing import Any

from kdrun.config.parts import TermConfig
from kdrun.losses.features import FeatureTerm, Stage, stages
from kdrun.losses.term import TermSpec, width


class StageTerm(FeatureTerm):
    """A term over the maps of one stage of each network."""

    class Config(TermConfig):
        feature: Stage | None = None
        """The student's stage; null: the last one."""
        teacher_feature: Stage | None = None
        """The teacher's stage; null: of the same name as `feature` where that is given, else the last one."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        student = config.feature or self.usual(stages(spec.student_dims, "student"))
        teacher = config.teacher_feature or config.feature or self.usual(stages(spec.teacher_dims, "teacher"))
        self.needed = replace(self.needed, features=(student,), teacher_features=(teacher,))
        self.widths = width(spec.student_dims, student, "student"), width(spec.teacher_dims, teacher, "teacher")

    @staticmethod
    def usual(names: list[str]) -> str:
        """The stage that is taken where none is named."""
        return names[-1]
