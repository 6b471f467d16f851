"""Text files as users write them."""

import pytest

from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.core.texts import DEEPEST, MOST, mapping_of, refuse_yaml, text_of


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert text_of(tmp_path / "names", "") == "cat\r\ndog\r\n"
    config = build(
        lookup("dataset", "digits", "").Config, {"name": "digits", "class_names": str(tmp_path / "names")}, ""
    )
    assert config.class_names == ["cat", "dog"]


def test_every_yaml_of_ours_passes():
    for path in CONF_DIR.rglob("*.yaml"):
        mapping_of(path)


def test_aliases_may_repeat_what_is_small():
    refuse_yaml("a: &a {x: 1, y: [1, 2]}\nb: *a\nc:\n  <<: *a\n  z: [*a, *a]\n", "file")
    refuse_yaml("a: &one 1\nb: *one\nc: !!str 5\nd: 'x: y'\ne: |\n  a: b\n  a: b\n", "file")


def test_just_as_deep_and_as_many_as_allowed():
    refuse_yaml("a: " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), "file")
    refuse_yaml("a: [" + "x, " * (MOST - 10) + "]", "file")
    for text in ("a: " + "[" * DEEPEST + "]" * DEEPEST, "a: [" + "x, " * MOST + "]"):
        with pytest.raises(ConfigError, match=r"^file, line 1: "):
            refuse_yaml(text, "file")
