"""What parts ask of a run: asked together, and what every registered part says of itself."""

import pytest

from kdrun.config.needs import Needs
from kdrun.core.registry import lookup, registered

lookup("loss", "ce", "")


def test_of_several_all_that_one_of_them_needs():
    method = Needs(streams={"unlabeled": ("strong",)}, students=(2, None), teacher_features=("members",))
    one = Needs(teacher=True, features=("stage1", "prelogits"), unmixed=("student",))
    other = Needs(teacher=True, features=("prelogits",), teacher_features=("stage2",), index=True, over_ranks="no")
    both = method | one | Needs(over_ranks="gathered") | other
    assert (both.streams, both.students) == ({"unlabeled": ("strong",)}, (2, None))  # the method's alone to say
    assert both.teacher
    assert both.features == ("stage1", "prelogits")
    assert both.of_teacher == ("members", "stage1", "prelogits", "stage2")
    assert (both.unmixed, both.unmixed_gradient, both.index, both.mixed) == (("student",), False, True, False)
    assert both.over_ranks == "no"
    mean, gathered = Needs(over_ranks="mean"), Needs(over_ranks="gathered", per_sample=False)
    assert ((mean | gathered).over_ranks, (mean | mean).over_ranks, Needs().over_ranks) == ("gathered", "mean", "no")
    assert ((mean | gathered).per_sample, (mean | mean).per_sample) == (False, True)
    assert not (Needs() | Needs()).teacher


def test_the_teacher_gives_what_the_student_gives_where_nothing_else_is_said():
    assert Needs(features=("stage1",)).of_teacher == ()  # against the labels
    assert Needs(features=("stage1",), teacher=True).of_teacher == ("stage1",)
    assert Needs(features=("stage1",), teacher=True, teacher_features=("stage2",)).of_teacher == ("stage2",)


STATISTICS = ("dist", "rkd", "pkt", "itrd", "sp", "cc", "mlkd", "cwtm")


@pytest.mark.parametrize("name", sorted(registered("loss")))
def test_a_term_that_is_computed_over_the_rows_of_all_ranks_says_so(name):
    cls = lookup("loss", name, "")
    needs = cls.needs(cls.Config(name=name))
    assert needs.over_ranks == ("gathered" if name in (*STATISTICS, "crd", "linearity") else "mean")
    assert needs.per_sample == (name not in STATISTICS)
    assert needs.index == (name == "crd")
    assert needs.mixed == (name == "linearity")
