"""Every bad input of the table is refused in a line, with exit code 2, and nothing is written."""

from pathlib import Path

import pytest

from kdrun.cli.train import main
from tests.faults.inputs import CASES, Bad

pytestmark = pytest.mark.slow


def test_the_table_is_long_and_no_case_is_there_twice():
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Bad, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "given"
    root.mkdir()
    arguments = case.arguments(root)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert case.says.replace("{root}", str(root)) in printed.err
    assert printed.err.startswith("error: ")
    assert all(line.startswith("error: ") and len(line) < 2000 for line in printed.err.splitlines())
    assert printed.out == ""
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before
