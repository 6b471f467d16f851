"""Wrong command lines and damaged inputs: one line, exit code 2, and one record never takes a whole table down."""

import os
import shlex
import shutil
from pathlib import Path

import pytest

from kdrun.cli.command import main
from tests.faults.commands import COMMANDS, DAMAGE, RECORDS, make, without_checksums


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("here"), Path.cwd()
    os.chdir(folder)
    yield folder, make(folder)
    os.chdir(before)


@pytest.fixture
def told(capfd):
    """(exit code, stdout, stderr) of a command line."""

    def call(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return main(shlex.split(words)), *capfd.readouterr()

    return call


def test_every_wrong_command_line_is_one_line(here, told):
    wrong = []
    for words, expected in COMMANDS:
        code, out, err = told(words.format(**here[1]))
        if code != 2 or out or err.count("\n") != 1 or not err.startswith("error: ") or expected not in err:
            wrong.append((words, expected, code, out[-300:], err[-600:]))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.fixture
def copy(here, tmp_path):
    """`copy()`: the run below outputs of its own, with the teacher's and a whole second run."""

    def made() -> tuple[Path, dict[str, str]]:
        outputs = tmp_path / "outputs"
        shutil.rmtree(outputs, ignore_errors=True)
        for name in ("run", "teacher"):
            place = outputs / Path(here[1][name]).relative_to("outputs")
            shutil.copytree(here[1][name], place)
            without_checksums(place)
        run = outputs / Path(here[1]["run"]).relative_to("outputs")
        return run, {"run": str(run), "outputs": str(outputs), "teacher": here[1]["teacher"]}

    return made


def test_every_damaged_file_is_one_line(copy, told):
    wrong = []
    for number, (damage, words, expected) in enumerate(DAMAGE):
        run, places = copy()
        damage(run)
        code, out, err = told(words.format(**places))
        if code != 2 or out or err.count("\n") != 1 or expected not in err:
            wrong.append((number, words, expected, code, out[-300:], err[-600:]))
    assert not wrong, "\n".join(map(str, wrong))


def test_one_record_never_takes_a_whole_table_down(copy, told):
    wrong = []
    for number, (damage, expected) in enumerate(RECORDS):
        run, places = copy()
        damage(run)
        for words in ("status outputs={outputs}", "table outputs={outputs}"):
            code, out, err = told(words.format(**places))
            left_out = [line for line in out.splitlines() if line.startswith(f"left out: {run}/record.json: ")]
            if code != 0 or err or len(left_out) != 1 or expected not in left_out[0] or "supervised" not in out:
                wrong.append((number, words, expected, code, out[-600:], err[-600:]))
    assert not wrong, "\n".join(map(str, wrong))
