"""Names of metrics: taken apart and put together without loss."""

import pytest

from kdrun.results.papers import printed_name
from kdrun.runs.metric import Metric, is_percent


@pytest.mark.parametrize(
    ("key", "parts"),
    {
        "test/student/top1": ("test", "student", "top1"),
        "test/top1": ("test", None, "top1"),
        "top1": ("", None, "top1"),
        "train/student1/loss/kd": ("train", "student1/loss", "kd"),
    }.items(),
)
def test_a_key_is_its_parts(key, parts):
    metric = Metric.parse(key)
    assert (metric.split, metric.net, metric.name) == parts
    assert str(metric) == key
    assert Metric(*parts) == metric


def test_the_headline_stands_in_where_no_network_is_named():
    assert Metric.parse("val/top1").key("combined") == "val/combined/top1"
    assert Metric.parse("val/student/top1").key("combined") == "val/student/top1"
    assert str(Metric.parse("val/student/top1").of("teacher")) == "val/teacher/top1"
    assert str(Metric.parse("val/student/top1").of(None)) == "val/top1"


def test_shares_are_shown_in_percent_whatever_they_are_of():
    assert all(is_percent(key) for key in ("top1", "test/top1", "test/student/scaled_ece", "trusted_label/precision"))
    assert not any(is_percent(key) for key in ("nll", "test/student/nll", "top1/student/nll"))


def test_papers_print_the_headline_on_test_images():
    assert printed_name("test/top1") == "top1"
    assert [printed_name(key) for key in ("val/top1", "test/student/top1", "cost")] == [None] * 3
