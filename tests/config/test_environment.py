"""What the environment says is used, by execution, the tracker and paths alone, and never written."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import kdrun
from kdrun.cli.train import main
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.nodes import dump, from_record
from kdrun.core.errors import ConfigError
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from tests.conftest import FAST

SECRET = "s3cret-folder"
PLAIN = ["method=supervised", "loss=ce", "teacher=none", *FAST, "schedule.steps=2", "schedule.eval_every_steps=null"]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(SECRET).mkdir()
    monkeypatch.setenv("KDRUN_TEST_DATA", str(tmp_path / SECRET))
    monkeypatch.setenv("KDRUN_TEST_THREADS", "1")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), np.arange(60) % 3
    np.savez(f"{SECRET}/d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    experiment = {
        "dataset": {"path": "${oc.env:KDRUN_TEST_DATA}/d.npz", "num_labels": 30},
        "execution": {"outputs": "outputs", "threads": "${oc.decode:${oc.env:KDRUN_TEST_THREADS}}"},
        "tracker": {"tags": ["${oc.env:KDRUN_TEST_DATA}"], "project": "${oc.env:KDRUN_TEST_NIX,mine}"},
    }
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/env.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(experiment)}")
    return ["--config-dir", "mine", "experiment=env", "dataset=npz", "student=resnet8", "student.args.width=4"]


def asked(words: list[str]) -> kdrun.RunConfig:
    with Composer("mine") as composer:
        return composer.typed([word for word in words if word not in ("--config-dir", "mine")])


ASKED = [word for word in PLAIN if not word.startswith(("dataset.num_labels", "execution.threads", "tracker="))]


def test_it_is_used_and_its_text_is_what_is_written(environment):
    config = asked([*environment, *ASKED])
    assert config.dataset.path == f"{Path.cwd()}/{SECRET}/d.npz"
    assert config.execution.threads == 1
    written = dump(config)
    assert SECRET not in json.dumps(written)
    assert written["dataset"]["path"] == "${oc.env:KDRUN_TEST_DATA}/d.npz"
    assert written["execution"]["threads"] == "${oc.decode:${oc.env:KDRUN_TEST_THREADS}}"
    assert written["tracker"]["project"] == "${oc.env:KDRUN_TEST_NIX,mine}"
    assert written["execution"]["workers"] == "auto"
    again = from_record(json.loads(json.dumps(written)))
    assert (again.dataset, again.execution, again.tracker) == (config.dataset, config.execution, config.tracker)
    assert run_key(again) == run_key(config)
    assert dump(again) == written


def test_the_key_is_that_of_the_same_path_written_out(environment):
    plain = asked([*environment, *ASKED, f"dataset.path={SECRET}/d.npz"])
    assert run_key(plain) == run_key(asked([*environment, *ASKED]))
    assert dump(plain)["dataset"]["path"] == f"{SECRET}/d.npz"


def test_where_it_is_not_set_any_more_the_text_stays(environment, monkeypatch):
    written = dump(asked([*environment, *ASKED]))
    monkeypatch.delenv("KDRUN_TEST_DATA")
    assert from_record(written).dataset.path == "${oc.env:KDRUN_TEST_DATA}/d.npz"


@pytest.mark.slow
def test_a_run_keeps_no_secret_and_is_opened_again(environment):
    assert main([*environment, *ASKED, "tracker=none"]) == 0  # wandb is given the tags that were asked for
    ((directory, record),) = find_records(Path("outputs"))
    kept = [path for path in Path("outputs").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []
    assert record["config"]["dataset"]["path"] == "${oc.env:KDRUN_TEST_DATA}/d.npz"
    run = FinishedRun.open(directory)
    assert run_key(run.config) == record["key"]
    assert kdrun.load(directory).name == "resnet8"


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("student.name='${oc.env:HOME}'", "student.name: ${oc.env:HOME}"),
        ("student.name='x${oc.env:HOME}'", "student.name: x${oc.env:HOME}"),
        ("+student.args.x='${oc.env:HOME}'", "student.args.x: ${oc.env:HOME}"),
        ("+student.args.x='${execution.outputs}'", "student.args.x: ${oc.env:KDRUN_TEST_DATA}"),
        ("seed='${oc.decode:${oc.env:KDRUN_TEST_THREADS}}'", "seed: ${oc.decode:${oc.env:KDRUN_TEST_THREADS}}"),
        ("execution.device='${now:%Y}'", "execution.device: ${now:%Y}"),
        ("dataset.path='${now:%Y}'", "dataset.path: ${now:%Y}"),
        ("schedule.lr='${python_version:minor}'", "schedule.lr: ${python_version:minor}"),
    ],
)
def test_no_other_key_may_follow_it(environment, word, key):
    with pytest.raises(ConfigError) as refused:
        asked([*environment, *ASKED, "execution.outputs='${oc.env:KDRUN_TEST_DATA}'", word])
    (line,) = refused.value.lines
    assert line == f"{key}: what the machine says may not decide this key; write the value out"
    assert SECRET not in line
