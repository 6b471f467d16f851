"""What a finished run's figures cannot tell."""

import pytest

from kdrun.runs.metric import more_validation
from kdrun.training.remarks import results_remarks


@pytest.mark.parametrize(
    ("top1", "images", "told"),
    [
        (0.11, {"test": 200}, ["student: 11.0 % of 200 test images are right, guessing gives 10.0 %"]),
        (0.3, {"test": 200}, []),
        (0.5, {"test": 2}, ["2 test images are too few to compare anything, one is 50 points of accuracy"]),
        (float("nan"), {"test": 200}, []),
        (0.1, {}, []),
    ],
)
def test_chance_and_a_tiny_test_set_are_said(top1, images, told):
    found = results_remarks({"test/student/top1": top1}, "student", 10, images)
    assert [line.startswith(start) for line, start in zip(found, told, strict=True)] == [True] * len(told)


def test_a_larger_share_for_validation_is_named_where_there_is_one():
    assert more_validation(0.1, 64) == ": dataset.val_fraction=0.16"
    assert more_validation(0.1, 10) == ": more labeled images"
