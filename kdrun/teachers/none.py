"""No teacher."""

from kdrun.config.teacher import TeacherConfig
from kdrun.core.registry import register
from kdrun.teachers.kind import TeacherKind


@register("teacher", "none")
class NoTeacher(TeacherKind[TeacherConfig]):
    Config = TeacherConfig
    present = False
