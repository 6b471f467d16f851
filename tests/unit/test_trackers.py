"""Trackers: what they are told, and what the real libraries have of it when they are read back."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from kdrun.config.compose import Composer
from kdrun.config.job import Job
from kdrun.config.key import run_key
from kdrun.config.names import group_name, short_names
from kdrun.config.nodes import dump, from_record, tracker_of
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import load_plugins, lookup, registered
from kdrun.results.trackers import pictures
from kdrun.runs.metrics_log import MetricsLog
from kdrun.training.tracking import Outcome, Tracked, Tracker, Tracking, make_tracking, require_trackers

WORDS = ["student=resnet8", "dataset.num_labels=50", "teacher=resnet8"]
METRICS = {
    "test/student/top1": 0.5,
    "test/student/ece": 0.25,
    "test/teacher/top1": 0.75,
    "val/student/nll": float("nan"),
}


@pytest.fixture(scope="module")
def composer():
    with Composer() as made:
        yield made


def job_of(composer, tmp_path, *words):
    return Job(composer.typed([*WORDS, f"execution.outputs={tmp_path}/outputs", *words]))


class Told(Tracker):
    """Keeps what it is told; `fails` names what raises."""

    def __init__(self, fails="", first=0, replays=True):
        self.fails, self.first, self.replays = fails, first, replays
        self.steps, self.ended, self.abandoned = [], None, False

    def made(self):
        self.tell("init")
        return self

    def start(self):
        self.tell("start")

    def log(self, step, values):
        self.tell("log")
        self.steps.append((step, dict(values)))

    def finish(self, outcome):
        self.tell("finish")
        self.ended = outcome

    def abandon(self):
        self.abandoned = True
        raise OSError("even this")

    def tell(self, name):
        if name == self.fails:
            raise RuntimeError(f"no {name}\nat all")


class Life:
    """One process of a run: what is written to metrics.jsonl is logged."""

    def __init__(self, tracking, directory, cut=-1):
        self.tracking, self.lines = tracking, MetricsLog(directory / "metrics.jsonl")
        self.lines.cut(cut)

    def log(self, step, **values):
        self.lines.write(step, values)
        self.tracking.log(step, values)


def test_a_step_is_told_once_and_whole(tmp_path):
    told = Told()
    life = Life(Tracking({"told": told.made}, tmp_path), tmp_path)
    life.log(5, loss=1.0)
    life.log(5, top1=0.5)
    assert told.steps == []
    life.log(10, loss=float("inf"))
    assert told.steps == [(5, {"loss": 1.0, "top1": 0.5})]
    life.tracking.finish({"metrics": METRICS}, failed=False)
    assert told.steps[1:] == [(10, {"loss": None})]
    assert told.ended.step == 10
    assert told.ended.table == (
        ["split", "network", "top1", "ece", "nll"],
        [
            ["test", "student", 0.5, 0.25, None],
            ["test", "teacher", 0.75, None, None],
            ["val", "student", None, None, None],
        ],
    )


def test_after_a_kill_each_tracker_is_told_what_it_has_not(tmp_path):
    first = Life(Tracking(), tmp_path)
    for step in (5, 10, 15):
        first.log(step, loss=step)
    fresh, knows, later = Told(), Told(first=11), Told(replays=False)
    second = Life(Tracking({"fresh": fresh.made, "knows": knows.made, "later": later.made}, tmp_path), tmp_path, cut=10)
    second.log(10, top1=0.5)  # of the step of the checkpoint
    second.log(15, loss=15)
    second.tracking.finish({"metrics": {}}, failed=True)
    assert fresh.steps == [(5, {"loss": 5}), (10, {"loss": 10, "top1": 0.5}), (15, {"loss": 15})]
    assert knows.steps == fresh.steps[2:]
    assert later.steps == fresh.steps[1:]


def test_a_run_that_goes_on_behind_its_last_step_is_told_too(tmp_path):
    Life(Tracking(), tmp_path).log(5, loss=1.0)
    told, later = Told(), Told(replays=False)
    Tracking({"told": told.made, "later": later.made}, tmp_path).finish({"metrics": {}}, failed=False)
    assert told.steps == [(5, {"loss": 1.0})]
    assert later.steps == []


@pytest.mark.parametrize("fails", ["init", "start", "log", "finish"])
def test_one_that_fails_is_said_in_one_line_and_the_others_go_on(fails, tmp_path, caplog):
    bad, good = Told(fails), Told()
    life = Life(Tracking({"bad": bad.made, "good": good.made}, tmp_path), tmp_path)
    for step in (5, 10, 15):
        life.log(step, loss=1.0)
    life.tracking.finish({"metrics": {}}, failed=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"bad switched off: RuntimeError: no {fails} at all; metrics.jsonl has all values"
    ]
    assert bad.abandoned == (fails != "init")
    assert len(good.steps) == 3
    assert good.ended is not None


# ------------------------------------------------------------------------------------------------------- names


def test_seeds_share_a_group_and_nothing_else_does(composer):
    seeds = [composer.typed([*WORDS, "dataset.split_seed=1", f"seed={seed}"]) for seed in (0, 1, 2)]
    assert len({group_name(config) for config in seeds}) == 1
    others = [
        [],
        ["loss=dkd"],
        ["loss=ttm"],
        ["loss=wttm"],
        ["student=resnet14"],
        ["teacher=resnet14"],
        ["schedule.lr=0.01"],
    ]
    groups = {group_name(composer.typed([*WORDS, *words])) for words in others}
    assert len(groups | {group_name(seeds[0])}) == len(others) + 1
    assert all(group.startswith(("kd-", "dkd-", "ttm-", "wttm-")) for group in groups)


def test_seeds_of_an_evaluation_of_other_runs_share_a_group(composer):
    def group(*words: str) -> str:
        given = ["method=linear_eval", "method@method.of=dho", "dataset.num_labels=50", "tracker=none", *words]
        return group_name(composer.typed(given))

    assert group("seed=0") == group("seed=1") != group("seed=0", "schedule.lr=0.01")


def test_a_run_is_called_as_sweeps_call_it(composer, tmp_path):
    job = job_of(composer, tmp_path, "seed=3")
    assert Tracked(job).name == short_names([job.config])[0] == "kd-resnet8-digits-50 s3"
    assert Tracked(job, "teacher").name == "teacher resnet8-digits-50 s3"
    assert Tracked(job, "teacher").group == Tracked(job).group


# ------------------------------------------------------------------------------------------------------ config


def test_trackers_beside_it_are_names_or_mappings(composer):
    words = ["tracker=wandb", "tracker.tags=[a]", "tracker.also=[csv,{name: tensorboard, folder: logs}]"]
    tracker = composer.typed([*WORDS, *words]).tracker
    assert (tracker.name, tracker.tags) == ("wandb", ["a"])
    assert [(one.name, getattr(one, "folder", None)) for one in tracker.also] == [
        ("csv", None),
        ("tensorboard", "logs"),
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tracker=csv", "tracker.also=[csv]"], "tracker.also: csv is there twice; name each tracker once"),
        (["tracker.also=[tensorbord]"], "tracker.also.0.name: unknown tracker 'tensorbord'; nearest: tensorboard"),
        (["tracker.also=[{name: csv, folder: x}]"], "tracker.also.0.folder: unknown key"),
        (
            ["tracker.also=[{name: csv, also: [mlflow]}]"],
            "tracker.also.0.also: those beside a tracker stand in one list",
        ),
        (["tracker.also=csv"], "tracker.also: must be a valid list, got 'csv'"),
        (["tracker=tensorboard", "tracker.project=x"], "tracker.project: unknown key"),
    ],
)
def test_mistakes_in_trackers_are_one_line(words, line, composer):
    with pytest.raises(ConfigError) as refused:
        composer.typed([*WORDS, *words])
    (told,) = refused.value.lines
    assert told.startswith(line)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tracker=[wandb,csv]", "; write tracker=wandb tracker.also=[csv]"),
        ("student=[resnet8,resnet14]", "; write students=[resnet8,resnet14]"),
        ("loss=[kd,dkd]", "; write loss=kd +loss/term@loss.dkd=dkd for a further term"),
        ("views=[standard,mixup]", "; a sweep, kdrun sweep views=standard,mixup, makes a run of each"),
        ("+student@teacher.model=[resnet8,resnet14]", "; a sweep, kdrun sweep student@teacher.model="),
    ],
)
def test_a_list_for_one_choice_is_refused_in_one_line(word, told, composer):
    with pytest.raises(ConfigError) as refused:
        composer.typed([word, *(["teacher=none"] if "@" in word else [])])
    (line,) = refused.value.lines
    assert line.startswith(f"{word.lstrip('+')}: one choice")
    assert told in line


def test_a_list_in_a_file_is_refused_too_and_experiments_may_be_several(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, text in {
        "both": "defaults: [{override /tracker: [wandb, csv]}]", "one": "seed: 3", "other": "schedule: {lr: 0.5}",
    }.items():  # fmt: skip
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    with Composer(str(tmp_path)) as own:
        with pytest.raises(ConfigError, match=r"^tracker=\[wandb,csv\]: one choice"):
            own.compose(["experiment=both"])
        config = own.typed(["experiment=[one,other]"])
    assert (config.seed, config.schedule.lr) == (3, 0.5)


def test_what_is_written_in_place_of_a_list_is_taken(composer):
    assert composer.typed(["loss=kd", "+loss/term@loss.dkd=dkd"]).losses.keys() == {"ce", "kd", "dkd"}
    assert len(composer.typed(["method=peer_distill", "students=[resnet8,resnet14]"]).students) == 2


@pytest.mark.parametrize("name", ["none", "wandb", "tensorboard", "mlflow", "trackio", "csv"])
def test_the_yaml_of_a_tracker_lists_its_keys_at_their_defaults(name):
    node = yaml.safe_load((CONF_DIR / "tracker" / f"{name}.yaml").read_text())
    assert node == lookup("tracker", name, "").Config(name=name).model_dump()


def test_without_a_tracker_the_keys_of_others_ask_nothing_and_unknown_ones_are_refused():
    old = {"name": "none", "project": "kdrun", "entity": None, "tags": [], "mode": None}  # of a record
    assert tracker_of(old).model_dump() == {"name": "none", "also": []}
    with pytest.raises(ConfigError, match=r"^tracker.projct: unknown key"):
        tracker_of({"name": "none", "projct": "x"})


def test_no_tracker_is_in_the_run_key(composer, tmp_path):
    plain = run_key(composer.typed([*WORDS, "tracker=none"]))
    for name in registered("tracker"):
        config = composer.typed([*WORDS, f"tracker={name}", *([] if name == "csv" else ["tracker.also=[csv]"])])
        assert run_key(config) == plain
        assert from_record(json.loads(json.dumps(dump(config)))).tracker == config.tracker


def test_a_missing_package_is_refused_with_what_to_install(composer, monkeypatch, tmp_path):
    config = composer.typed([*WORDS, "tracker=csv", "tracker.also=[tensorboard]"])
    require_trackers(config)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError) as refused:
        require_trackers(config)
    assert refused.value.lines == [
        "tracker.also.0: tensorboard needs tensorboard, which is not installed; "
        "pip install 'kdrun[tensorboard]', or choose tracker=none"
    ]


PLUGIN = """
from kdrun import register
from kdrun.config.parts import TrackerConfig
from kdrun.training.tracking import Tracker

@register("tracker", "lines")
class Lines(Tracker):
    class Config(TrackerConfig):
        name: str = "lines"
        file: str = "lines.txt"

    def log(self, step, values):
        with (self.run.directory / self.config.file).open("a") as file:
            file.write(f"{self.run.name} {step} {values['loss']}\\n")
"""


def test_a_plug_in_adds_a_tracker(composer, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = [f"plugins=[{tmp_path}/mine.py]", "tracker=none", "tracker.also=[{name: lines, file: x.txt}]"]
    try:
        plain = job_of(composer, tmp_path, "tracker=none")
        job = job_of(composer, tmp_path, *words)
        assert job.key == plain.key
        life = Life(make_tracking(job, "train"), job.directory)
        life.log(5, loss=1.0)
        life.tracking.finish({"metrics": {}}, failed=False)
    finally:
        load_plugins([])
    assert (job.directory / "x.txt").read_text() == "kd-resnet8-digits-50 s0 5 1.0\n"


# --------------------------------------------------------------------------------------- the real libraries


def of_csv(job):
    with (job.directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(int(row.pop("step")), {name: float(value) for name, value in row.items() if value}) for row in rows]


def of_tensorboard(job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (job.outputs / "tensorboard").glob("*/*")
    assert (folder.parent.name, folder.name) == (Tracked(job).group, job.directory.name)
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    steps = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in steps.setdefault(event.step, {})
            steps[event.step][name] = event.value
    assert events.Tensors("config/text_summary")
    table = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| test | teacher | 0.75 |" in table
    assert sorted(events.Tags()["images"]) == ["confusion", "reliability"]
    return sorted(steps.items())


def of_mlflow(job):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{job.outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("kdrun").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("kd-resnet8-digits-50 s0", "FINISHED")
    assert run.data.tags["kdrun.group"] == Tracked(job).group
    assert run.data.params["dataset.num_labels"] == "50"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"confusion.png", "reliability.png", "results.csv"} <= files
    steps = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            if name not in METRICS:
                assert name not in steps.setdefault(point.step, {})
                steps[point.step][name] = point.value
    assert run.data.metrics["test/teacher/top1"] == 0.75
    return sorted(steps.items())


def of_trackio(job):
    from trackio.sqlite_storage import SQLiteStorage

    (record,) = SQLiteStorage.get_run_records("kdrun")
    name = f"kd-resnet8-digits-50 s0 {job.key}"
    assert record["name"] == name
    rows = SQLiteStorage.get_logs("kdrun", name)
    steps = {}
    for row in rows:
        values = {k: v for k, v in row.items() if isinstance(v, float)}
        if values:
            assert row["step"] not in steps
            steps[row["step"]] = values
    assert any("results" in row for row in rows)
    return sorted(steps.items())


@pytest.mark.parametrize("name", ["csv", "tensorboard", "mlflow", "trackio"])
def test_after_a_kill_no_step_is_doubled_or_lost(name, composer, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in lookup("tracker", name, "").modules:
        pytest.importorskip(module)
    job = job_of(composer, tmp_path, f"tracker={name}")
    killed = Life(make_tracking(job, "train"), job.directory)
    for step in (5, 10, 15):
        killed.log(step, **{"train/loss": step / 4})
    for tracker in killed.tracking._running.values():
        tracker.abandon()  # what it has open ends with its process
    again = Life(make_tracking(job, "train"), job.directory, cut=10)
    for step in (15, 20):
        again.log(step, **{"train/loss": step / 4})
    again.log(20, **{"test/top1": 0.5, "val/top1": float("nan")})
    (job.directory / "predictions").mkdir()
    for net in ("student", "teacher"):
        arrays = {"index": np.arange(4), "target": np.arange(4) % 2, "logits": np.eye(4, 2, dtype=np.float32)}
        np.savez(job.directory / "predictions" / f"test-{net}.npz", **arrays)
    again.tracking.finish({"metrics": METRICS, "headline": "student"}, failed=False, class_names=("cat", "dog"))
    assert not [record for record in caplog.records if "pictures" in record.getMessage()]
    loss = [(step, {"train/loss": step / 4}) for step in (5, 10, 15)]
    assert {"csv": of_csv, "tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio}[name](job) == [
        *loss, (20, {"train/loss": 5.0, "test/top1": 0.5}),
    ]  # fmt: skip


def test_a_full_disk_switches_tensorboard_off_in_one_line(composer, tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    job = job_of(composer, tmp_path, "tracker=tensorboard")
    life = Life(make_tracking(job, "train"), job.directory)
    life.log(5, loss=1.0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    life.log(10, loss=1.0)
    life.tracking.finish({"metrics": {}}, failed=False)
    (line,) = caplog.messages
    assert line.startswith("tensorboard switched off: [Errno 28] No space left on device: ")


def test_a_picture_that_cannot_be_drawn_is_said_once_and_stops_no_tracker(tmp_path, caplog):
    record = {"headline": "student", "files": {"predictions/test-student.npz": {}}, "metrics": {}}
    outcome = Outcome(record, tmp_path, failed=False)
    assert pictures.pictures(outcome) == pictures.pictures(outcome) == {}
    (line,) = caplog.records
    assert line.getMessage().startswith("no pictures for the trackers: ")
