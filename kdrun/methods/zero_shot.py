"""The teacher itself as a row of a table, e.g. zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020): no training."""

from typing import ClassVar

from kdrun.config.parts import MethodConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Predictor
from kdrun.methods.method import Method


@register("method", "zero_shot")
class ZeroShotTeacher(Method):
    streams: ClassVar = {}
    loss_roles = ("target", "teacher")
    num_students = (0, 0)
    always_teacher = True
    trains = False

    class Config(MethodConfig):
        pass

    @property
    def headline(self) -> str:
        return "teacher"

    def predictors(self) -> dict[str, Predictor]:
        return {}
