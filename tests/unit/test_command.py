"""`kdrun <command>`: one entry, help and mistakes of every command in lines, exit codes, and no torch for them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from kdrun.cli.command import COMMANDS, main
from tests.conftest import ROOT
from tests.records import whole

# In a process of its own, as torch is in this one: what each command line printed, and whether torch came in.
DRIVER = """
import contextlib, io, json, sys
from kdrun.cli.command import main
told = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    told.append([code, out.getvalue(), err.getvalue(), sorted({"torch", "timm", "matplotlib"} & set(sys.modules))])
print(json.dumps(told))
"""
MISTAKES = {
    "tabel": "tabel: no command; nearest: table (commands: train, sweep, table, ",
    "distil table=demo": "distil: no command; none of 14 names is near (commands: train, ",
    "photos": "photos: no command; docs/quickstart_photos.md has the commands for photos of your own; ",
    "classify run=x": "classify: no command; kdrun predict (commands: train, ",
    "train dataset=imagefolder": "dataset.path: missing; write dataset.path=<value>",
    "plot images dataset=imagefolder": "dataset.path: missing; write dataset.path=<value>",
    "help tabel": "tabel: no command; nearest: table",
    "sed=1": "sed: unknown key; nearest: seed",
    "train sed=1": "sed: unknown key; nearest: seed",
    "train --sweep": "command line: unrecognized arguments: --sweep; see --help",
    "table tabel=demo": "tabel: unknown key; nearest: table",
    "table table=demi": "table=demi: no such table; nearest: demo",
    "table table=demo execute": "execute: write key=value",
    "status statsu=done": "statsu: no run has this key; nearest: status",
    "status status=ready": "status: 'ready' is not allowed",
    "status outputs": "outputs: write key=value",
    "compare run=x run=y splt=val": "splt: unknown key; nearest: split",
    "compare run=/no run=/no": "/no: not a run directory (no record.json)",
    "evaluate run=x amed=true": "amed: unknown key; nearest: amend",
    "evaluate run=/no": "/no: not a run directory (no record.json)",
    "evaluate run={run} evaluate.set=[imagenet_v2]": "evaluate.set: unknown key; nearest: sets",
    "evaluate run={run} method.temprature=2": "method.temprature: unknown key; nearest: temperature",
    "evaluate run={run} dataset=svnh": "dataset=svnh: no such option; nearest: svhn",
    "export run=x to=onx": "to: 'onx' is not allowed; nearest: onnx",
    "export run=/no to=safetensors": "/no: not a run directory (no record.json)",
    "export run=0123456789ab to=safetensors outputs={outputs}": "run: no run with the key 0123456789ab below",
    "predict run=/no images=README.md": "/no: not a run directory (no record.json)",
    "predict run=/no images=/nowhere": "images: /nowhere: no such file or folder",
    "publish tabel=demo": "tabel: unknown key; nearest: table",
    "publish table=demi": "table=demi: no such table; nearest: demo",
    "download table=demi": "table=demi: no such table; nearest: demo",
    "download dataset=svnh": "dataset=svnh: no such option; nearest: svhn",
    "plot reliabilty run=x": "reliabilty: not a picture; nearest: reliability",
    "plot coverage run=/no": "/no: not a run directory (no record.json)",
    "plot curves run=/no": "/no: not a run directory (no record.json)",
    "plot tradeoff table=demi": "table=demi: no such table; nearest: demo",
    "analyze": "command line: not an analysis",
    "analyze vicinal run=x batchs=1": "batchs: unknown key; nearest: batches",
    "predict images=README.md": "run: missing; a value is required",
    "analyze linear_probe run=/no": "/no: not a run directory (no record.json)",
    "explain loss=wtm": "loss=wtm: no such option; nearest: wttm",
}

EXPLAINED = "explain loss=kd"


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, tuple[int, str, str, list[str]]]:
    """Command line -> exit code, stdout, stderr, and which of the slow packages it imported."""
    run = tmp_path_factory.mktemp("outputs") / "runs" / "distill" / "digits" / "n50" / "s0-0123456789cd"
    run.mkdir(parents=True)
    method = {"name": "mixup_distill", "temperature": 1.0}
    record = whole("0123456789cd", num_labels=50, method="mixup_distill", config={"method": method})
    (run / "record.json").write_text(json.dumps(record))
    places = {"run": run, "outputs": run.parents[4]}
    lines = ["--help", "help", "help table", *(f"{command} --help" for command in COMMANDS), *MISTAKES, EXPLAINED]
    asked = [line.format(**places).split() for line in lines]
    for words in asked:
        if words[:2] == ["status", "statsu=done"]:
            words.append(f"outputs={places['outputs']}")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


def test_help_names_every_command_and_the_groups_of_train(told):
    code, out, err, loaded = told["--help"]
    assert (code, err, loaded) == (0, "", [])
    assert told["help"] == told["--help"]
    assert told["help table"] == told["table --help"]
    listed = [line.split()[0] for line in out.split("\n\n")[2].splitlines()]
    assert tuple(listed) == COMMANDS
    assert "\n  method: " in out
    assert f"files of {ROOT / 'docs'}\n" in out
    assert all(len(line) <= 120 for line in out.split("\n\n")[2].splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_usage_and_needs_no_torch_for_it(command, told):
    code, out, err, loaded = told[f"{command} --help"]
    assert (code, err, loaded) == (0, "", [])
    assert (f"\nkdrun {command}" in out) or command == "train"


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_without_torch(line, told):
    code, out, err, loaded = told[line]
    assert (code, out, loaded) == (2, "", [])
    assert err.startswith(f"error: {MISTAKES[line]}")
    assert err.count("\n") == 1


def test_what_names_only_networks_of_kdrun_is_explained_without_timm(told):
    code, out, err, loaded = told[EXPLAINED]
    assert (code, err, loaded) == (0, "", ["torch"])
    assert out.startswith("method: distill")


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("kdrun ta", "table"),
        ("kdrun loss=wt", "loss=wttm"),
        ("kdrun train loss=wt", "loss=wttm"),
        ("kdrun train -m schedule.lr_f", "schedule.lr_for."),
    ],
)
def test_the_shell_is_told_how_a_word_goes_on(line, suggested, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert suggested in capsys.readouterr().out.split()


def test_behind_another_command_the_shell_is_told_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "kdrun table loss=w")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == ""


def test_the_wheel_has_every_command_and_conf_and_the_pages_that_messages_name():
    held = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"kdrun/cli/{command}.py" for command in COMMANDS} <= held
    assert {"kdrun/__main__.py", "kdrun/conf/config.yaml"} <= held
    named = {page for path in ROOT.glob("kdrun/**/*.py") for page in re.findall(r"docs/[\w/]+\.md", path.read_text())}
    assert {"docs/extend/method.md", "docs/sweeps.md"} <= named
    assert {f"kdrun/{page}" for page in named} <= held
    assert {Path(name).suffix for name in held if name.startswith("kdrun/docs/")} <= {".md", ".ipynb"}
    assert 'kdrun = "kdrun.__main__:main"' in (ROOT / "pyproject.toml").read_text()


def test_installed_and_started_in_an_empty_folder_it_finds_conf_and_the_pages(tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    for file in WheelBuilder(str(ROOT)).recurse_included_files():
        place = site / file.distribution_path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, place)
    empty.mkdir()
    asked = json.dumps([["--help"], ["table", "table=demo"]])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=asked, cwd=empty, env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (code, usage, *_), (again, table, errors, _) = json.loads(done.stdout)
    assert (code, again, errors) == (0, 0, "")
    assert f"files of {site / 'kdrun' / 'docs'}\n" in usage
    assert "missing (0/3)" in table


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_the_scripts_are_faces_of_the_commands(command):
    table = (ROOT / "scripts" / "table.py").read_text()
    assert (ROOT / "scripts" / f"{command}.py").read_text() == table.replace("table", command)


@pytest.mark.parametrize("entry", [["-m", "kdrun"], ["-m", "kdrun.train"], [str(ROOT / "scripts" / "status.py")]])
def test_every_entry_passes_its_exit_code_on(entry, tmp_path):
    wrong = "outputs" if entry[0].endswith(".py") else "sed=1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *entry, wrong], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
