"""docs/extend: what a page tells to write is written, and what it tells to run runs and is in the record."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import commands_in, in_package

pytestmark = pytest.mark.slow


PAGES = [page for page in sorted((ROOT / "docs" / "extend").glob("*.md")) if in_package(page.read_text())]
# Where a part lies -> the names that a record's configuration has for its kind.
CHOSEN = {
    "kdrun/methods": lambda config: [config["method"]["name"]],
    "kdrun/data/sets": lambda config: [config["dataset"]["name"]],
    "kdrun/losses": lambda config: [term["name"] for term in config["loss"].values()],
    "kdrun/models": lambda config: [model["name"] for model in config["students"]],
    "kdrun/teachers": lambda config: [config["teacher"]["source"]],
}


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of the `sh` blocks; a plug-in's apart by its `plugins=`."""
    return [list(words) for _, words in commands_in(text)]


def is_plugin(words: list[str]) -> bool:
    return any(word.startswith("plugins=") for word in words)


def tree(folder: Path) -> Path:
    """A checkout without its tests. What is compiled already comes along, which saves a second."""
    for name in ("kdrun", "conf", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        assert not path.exists(), f"{name} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def outside(name: str) -> str:
    """Where a user without a checkout has a file of the page."""
    return Path(name).name if name.startswith("kdrun/") else name.replace("conf/", "my_conf/", 1)


def run(folder: Path, words: list[str], checkout: Path) -> None:
    """A command in `folder`, with the kdrun of `checkout`."""
    assert words[0] in ("python", "kdrun"), f"{shlex.join(words)}: a page runs python or kdrun"
    start = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "kdrun.train"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [*start, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def records_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "outputs").rglob("record.json"))]


def refuse_unchosen(folder: Path, files: dict[str, str]) -> None:
    """Fail where a part of the page is in no finished record."""
    records = [record for record in records_of(folder) if record["status"] == "done"]
    assert records, "no command of the page finished a run"
    for name in files:
        room = next((room for room in CHOSEN if name.startswith(f"{room}/")), None)
        if room is not None:
            chosen = [part for record in records for part in CHOSEN[room](record["config"])]
            assert Path(name).stem in chosen, f"{name}: no run chose it, but {', '.join(sorted(set(chosen)))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_enough(page, tmp_path):
    text = page.read_text()
    own = in_package(text)
    commands = [words for words in commands_of(text) if not is_plugin(words)]
    assert any(name.startswith("kdrun/") for name in own), f"{page.name}: no fenced block begins with # kdrun/<file>.py"
    assert commands, f"{page.name}: no ```sh block with a command that trains"
    write(tree(tmp_path), own)
    for words in commands:
        run(tmp_path, words, checkout=tmp_path)
    refuse_unchosen(tmp_path, own)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(map(is_plugin, commands_of(p.read_text())))], ids=lambda p: p.stem
)
def test_a_page_s_files_are_a_plug_in_as_they_are(page, tmp_path):
    """The Python files where the command runs, conf/ as my_conf/, and a kdrun without them."""
    text = page.read_text()
    own = in_package(text)
    write(tmp_path, {outside(name): content for name, content in own.items()})
    for words in filter(is_plugin, commands_of(text)):
        run(tmp_path, words, checkout=ROOT)
    refuse_unchosen(tmp_path, own)
    plugins = [record["plugins"] for record in records_of(tmp_path)]
    assert {Path(name).stem for name in own if name.endswith(".py")} <= set().union(*plugins)


def test_there_are_pages_and_one_without_code_is_not_passed_over():
    assert {"dataset", "network"} <= {page.stem for page in PAGES}
    assert in_package("```python\nx = 1\n```\n") == {}
    assert in_package("```python\n# kdrun/losses/x.py\nx = 1\n```\n") == {
        "kdrun/losses/x.py": "# kdrun/losses/x.py\nx = 1\n"
    }
    assert commands_of("```sh\n# why\npython -m kdrun.train a=1 \\\n    b=2\n```\n") == [
        ["python", "-m", "kdrun.train", "a=1", "b=2"]
    ]
