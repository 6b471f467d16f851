"""A law over many things looks at all of them and names those that break it."""

import pytest

from tests.each import each


def test_all_that_break_a_law_are_named_and_all_are_looked_at(tmp_path):
    seen = []

    @each("size", [1, 2])
    @each("name", ["a", "b", "c"])
    def law(name, size, tmp_path):
        seen.append((name, size))
        assert name == "b" or size == 2, "too small"

    with pytest.raises(ExceptionGroup, match=r"size=1: name=a: too small") as caught:
        law(tmp_path=tmp_path)
    assert caught.group_contains(AssertionError, match="too small")
    assert "name=c: too small" in str(caught.value)
    assert len(seen) == 6
    with pytest.raises(AssertionError):
        each("name", [])(lambda name: None)()
