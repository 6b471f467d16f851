"""Parts are found by themselves, and what is not found is said with what to do."""

import signal
import sys
from pathlib import Path

import pytest

from kdrun.core import registry
from kdrun.core.errors import ConfigError
from kdrun.core.registry import load, lookup, registered


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(name=text)`: a package of parts of the kind `part`, with these files."""

    def make(**files: str) -> Path:
        folder = tmp_path / "some_parts"
        folder.mkdir()
        for name, text in {"__init__": "", **files}.items():
            (folder / f"{name}.py").write_text(text)
        return folder

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry._PACKAGES, "part", "some_parts")
    monkeypatch.setitem(registry._REGISTRY, "part", {})
    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "some_parts"]:
        del sys.modules[name]
    load.cache_clear()
    registry._places.cache_clear()


PART = "from kdrun.core.registry import register\n@register('part', '{}')\nclass Part:\n    class Config: ..."


def test_a_file_is_found_by_itself(package):
    package(one=PART.format("one"), two=PART.format("other"))
    assert list(registered("part")) == ["one", "other"]
    with pytest.raises(ConfigError) as refused:
        lookup("part", "two", "part.name")
    (line,) = refused.value.lines
    assert line.startswith("part.name: unknown part 'two'")
    assert line.endswith('. some_parts/two.py does not register it: put @register("part", "two") on its class')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def (", "SyntaxError: invalid syntax"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("{}['key']", "KeyError: 'key'"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(package, text, why):
    package(fine=PART.format("fine"), wrong=text)
    for _ in range(2):  # nothing of the first failure is remembered
        with pytest.raises(ConfigError) as refused:
            lookup("part", "finer", "part.name")
        (line,) = refused.value.lines
        assert line.startswith(f"some_parts/wrong.py cannot be imported: {why}")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_who_asks_for_a_part_does_not_wait_for_the_others(package, quote):
    package(fine=PART.format("good").replace("'", quote), other=PART.format("other"))
    assert lookup("part", "good", "part.name").__module__ == "some_parts.fine"
    assert "some_parts.other" not in sys.modules
    assert list(registered("part")) == ["good", "other"]


def test_a_class_that_nobody_registered_is_named(package, tmp_path, monkeypatch):
    package(several="class ThirdPart:\n    class Config: ...")
    with pytest.raises(
        ConfigError, match=r'some_parts/several\.py does not register it: put @register\("part", "third_part"\)'
    ):
        lookup("part", "third_part", "part.name")
    with pytest.raises(ConfigError, match=r"unknown part 'fourth_part' \(allowed: nothing\); one of your own is"):
        lookup("part", "fourth_part", "part.name")
    (tmp_path / "mine.py").write_text("class FourthPart:\n    class Config: ...")
    monkeypatch.chdir(tmp_path)
    registry.load_plugins(["mine.py"])
    try:
        for name in ("fourth_part", "mine"):
            with pytest.raises(ConfigError, match=rf'mine\.py does not register it: put @register\("part", "{name}"\)'):
                lookup("part", name, "part.name")
    finally:
        registry.load_plugins([])


def test_an_interrupt_while_a_plugin_is_imported_is_an_interrupt(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        registry.load_plugins([str(path)])
    assert signal.getsignal(signal.SIGINT) is before
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(ConfigError, match=r"slow\.py, line 1: KeyboardInterrupt"):
        registry.load_plugins([str(path)])


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a.b", "a b", "a\n", "é", "x" * 81, "-x"])
def test_names_of_parts_are_plain_words(monkeypatch, name):
    monkeypatch.setitem(registry._REGISTRY, "part", {})
    with pytest.raises(ConfigError, match="is no plain word"):
        registry.register("part", name)(type("Part", (), {"Config": object}))
