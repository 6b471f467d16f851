"""`objective`, and a search with Optuna: refused before anything runs, resumed, the same again."""

import re
import shlex
import sys
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from kdrun.cli import sweep
from kdrun.runs.record import find_records, read_record
from tests.conftest import FAST
from tests.processes import Forked

WORDS = [*FAST, "method=supervised", "loss=ce", "teacher=none"]
LR = "schedule.lr=tag(log,interval(0.001,0.5))"
pytestmark = pytest.mark.slow


@pytest.fixture
def search(outputs, capsys):
    """`search("search.trials=2")`: the exit code and what was printed."""

    def call(*words, folder=outputs):
        code = sweep.execute([*WORDS, f"execution.outputs={folder}", "search=optuna", *words])
        return code, "".join(capsys.readouterr())

    return call


def trials(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(trial \d+ \(.*\)) done: (.*)", text)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["objective=test/top1"], "objective: test/top1: the test images choose nothing; give val/top1, say"),
        (
            ["objective=val/top1", "dataset.val_fraction=0"],
            "objective: val/top1 is of validation images, and this split",
        ),
        (["objective=val/acc"], "objective: val/acc: no figure of which more or less is better; nearest: "),
        (["objective=val/studnet/top1"], "objective: val/studnet/top1: this run has no such network; nearest: student"),
        (["objective=val/teacher_kl"], "objective: val/teacher_kl: this run asks no teacher"),
        (["search=optuna"], "search: of one run there is nothing to search; give kdrun sweep"),
    ],
)
def test_refused_before_anything_runs(train, outputs, capsys, words, line):
    assert train(*WORDS, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "search: over no key"),
        (["seed=0,1"], "seed: a search would choose the luckiest"),
        ([LR, "dataset.val_fraction=0"], "objective: val/top1 is of validation images"),
        ([LR, "search.trials=0"], "search.trials: "),
        ([LR, "search.sampler=grid"], "search.sampler: "),
        ([LR.replace("lr", "lrr")], "schedule.lrr: unknown key; nearest: lr"),
        ([LR, "dry=true"], "dry: a search decides as it goes"),
        ([LR, "search.direction=up"], "search.direction: unknown key"),
    ],
)
def test_a_search_that_is_none(search, outputs, words, line):
    code, text = search(*words)
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith(f"error: {line}")
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("module", "line"), [(None, "'kdrun[search]'"), (SimpleNamespace(__version__="2.10.1"), "is too old")]
)
def test_without_optuna_one_line(search, outputs, monkeypatch, module, line):
    monkeypatch.setitem(sys.modules, "optuna", module)
    code, text = search(LR)
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("error: search=optuna")
    assert line in text
    assert not outputs.exists()


def test_a_file_that_is_no_study_one_line(search, outputs, tmp_path):
    pytest.importorskip("optuna", minversion="4")
    (tmp_path / "x.db").write_text("no database\n" * 100)
    code, text = search(LR, f"search.storage={tmp_path / 'x.db'}")
    assert (code, text.count("\n")) == (2, 1)
    assert "search.storage: " in text
    assert not outputs.exists()


def test_a_search_goes_on_and_is_the_same_in_one_go(search, train, outputs, tmp_path, capsys):
    pytest.importorskip("optuna", minversion="4")
    code, first = search(LR, "search.trials=2")
    assert code == 0
    assert "2 of 2 trials made; best: trial " in first
    code, more = search(LR, "search.trials=4", "engine.limit=1")
    assert (code, len(trials(more))) == (1, 1)
    assert "3 of 4 trials made" in more
    code, rest = search(LR, "search.trials=4")
    assert (code, len(trials(rest))) == (0, 1)
    code, again = search(LR, "search.trials=4")
    assert (code, trials(again)) == (0, [])
    assert len(list(find_records(outputs))) == 4
    whole = search(LR, "search.trials=4", folder=tmp_path / "whole")[1]
    assert trials(whole) == trials(first + more + rest)
    command = shlex.split(next(line for line in again.splitlines() if line.startswith("kdrun ")))
    assert command[:2] == ["kdrun", "train"]
    assert train(*command[2:]) == 0
    assert "done already" in capsys.readouterr().out


def killed(*words: str) -> int:
    return sweep.execute(words)


def test_a_killed_search_goes_on_with_the_trial_that_it_was_at(search, outputs, tmp_path):
    pytest.importorskip("optuna", minversion="4")
    words = [LR, "search.trials=3", "schedule.steps=300"]
    process = Forked(killed, *WORDS, f"execution.outputs={outputs}", "search=optuna", *words)
    process.wait_for(lambda: len(list(outputs.glob("runs/*/*/*/*/metrics.jsonl"))) == 2)
    process.kill()
    code, text = search(*words)
    assert code == 0
    assert "1 of 3 trials made; one after" in text
    assert [record["status"] for _, record in find_records(outputs)] == ["done"] * 3
    assert trials(search(*words, folder=tmp_path / "whole")[1])[1:] == trials(text)


def test_what_cannot_be_made_has_failed_and_the_others_go_on(search):
    pytest.importorskip("optuna", minversion="4")
    code, text = search("schedule.lr=choice(0.1,-1)", "search.trials=6", "search.sampler=random")
    assert code == 1
    assert re.search(r"6 of 6 trials made, [1-5] failed; best: ", text), text


def test_two_slots_and_a_pruned_run_goes_on(search, train, outputs):
    pytest.importorskip("optuna", minversion="4")
    words = ["schedule.steps=400", "schedule.eval_every_steps=10", "engine.slots=2"]
    code, text = search("schedule.lr=choice(0.2,1e-7)", *words, "search.trials=14", "search.sampler=random",
                        "schedule.weight_decay=interval(0,1e-6)", "search.pruner=median")  # fmt: skip
    assert code == 0, text
    assert re.search(r"14 of 14 trials made, [1-9]\d* pruned; best: .*\n.*lr=0\.2 ", text), text
    pruned = [(path, r) for path, r in find_records(outputs) if (r["error"] or {}).get("type") == "Pruned"]
    assert pruned
    assert {record["status"] for _, record in pruned} == {"running"}
    path, record = pruned[0]
    assert train(*record["overrides"]) == 0
    assert read_record(path)["status"] == "done"
    assert "goes on" in (path / "log.txt").read_text()


class Decider(Sweeper):
    """Stands for a sweeper of Hydra's that decides as it goes: makes these jobs one after the other."""

    def __init__(self, direction: str, jobs: list[str]) -> None:
        self.direction, self.jobs = direction, jobs

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        fixed = [word for word in arguments if "interval" not in word]
        for number, word in enumerate(self.jobs):
            (done,) = self.launcher.launch([[*fixed, word]], initial_job_idx=number)
            RETURNED.append(done._return_value)


RETURNED: list[object] = []


@pytest.fixture
def decided(train, tmp_path, monkeypatch):
    """`decided(direction, jobs, *words)`: the exit code of a sweep by `Decider`."""
    folder = tmp_path / "own" / "hydra" / "sweeper"
    folder.mkdir(parents=True)
    RETURNED.clear()
    monkeypatch.setitem(Plugins.instance().class_name_to_class, "tests.e2e.test_search.Decider", Decider)
    monkeypatch.setattr(Plugins, "is_in_toplevel_plugins_module", lambda *_: True)

    def call(direction, jobs, *words):
        text = f"_target_: tests.e2e.test_search.Decider\ndirection: {direction}\njobs: {jobs}\n"
        (folder / "own.yaml").write_text(text)
        return train("--config-dir", str(tmp_path / "own"), "-m", "hydra/sweeper=own", *WORDS, *words)

    return call


def test_a_sweeper_is_given_the_objective_and_its_runs_are_counted(decided, outputs, capsys):
    jobs = [f"dataset.num_labels={count}" for count in (50, 99999, 60)]
    assert decided("maximize", jobs, "schedule.lr=interval(0.1,1)") == 1
    values = [record["metrics"]["val/student/top1"] for _, record in find_records(outputs)]
    assert sorted(value for value in RETURNED if isinstance(value, float)) == sorted(values)
    assert [type(value).__name__ for value in RETURNED] == ["float", "ConfigError", "float"]
    told = capsys.readouterr()
    assert "2 of 3 runs done" in told.err + told.out


@pytest.mark.parametrize(
    ("direction", "words", "line"),
    [
        ("minimize", [], "objective: of val/top1 more is better, and the sweeper does not know; give hydra.sweeper.direct"),
        ("maximize", ["objective=val/ece"], "objective: of val/ece less is better, and the sweeper does not know"),
        ("maximize", ["objective=test/top1"], "objective: test/top1: the test images choose nothing"),
        ("maximize", ["dataset.val_fraction=0"], "objective: val/top1 is of validation images"),
        ("maximize", ["schedule.batch_size=0"], "schedule.batch_size: "),
    ],
)  # fmt: skip
def test_a_sweeper_that_decides_is_checked_first(decided, outputs, capsys, direction, words, line):
    assert decided(direction, ["schedule.lr=0.1"], *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not outputs.exists()
    assert not RETURNED
