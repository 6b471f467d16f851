"""Tuned rows: chosen by validation images alone, over seeds that all candidates have."""

import pytest

from kdrun.core.errors import ConfigError
from kdrun.core.schema import build
from kdrun.results.fill import table_of
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.progress import Todo, progress_text
from kdrun.results.spec import TableConfig

SPEC = {"seeds": [0, 1], "rows": {"KD": ["loss=kd"], "CE": ["loss=ce"]}, "columns": {"a": [], "b": []}}
LOW, HIGH = ["w=0.2"], ["w=0.8"]


def cell(row, column, candidate) -> PlannedCell:
    runs = [
        PlannedRun(seed=seed, place=f"{row}/{column}/{''.join(candidate or [])}/{seed}", net="resnet8", needs={})
        for seed in (0, 1)
    ]
    return PlannedCell(
        row=row, column=column, candidate=candidate, overrides=[], given_teacher=False, teacher_temperature=1,
        teacher_as_trained=False, deviations=[], runs=runs,
    )  # fmt: skip


PLAN = TablePlan(
    cells=[
        *(cell("KD", column, candidate) for column in "ab" for candidate in (LOW, HIGH)),
        *(cell("CE", column, None) for column in "ab"),
    ]
)


def table(tmp_path, val, test, metric="test/top1", tuned=None):
    """Of records with these figures: place -> fraction; a place without one has no record."""
    spec = build(TableConfig, {**SPEC, "metric": tuned or metric, "tune": {"KD": [LOW, HIGH]}}, "table")

    def read(place):
        if place not in val:
            return None
        name = metric.rpartition("/")[2]
        metrics = {f"val/student/{name}": val[place], f"test/student/{name}": test[place]}
        return {"status": "done", "key": place, "seed": int(place[-1]), "headline": "student", "metrics": metrics}

    return table_of("it", spec, PLAN, tmp_path, read, metric)


PLACES = [run.place for cell in PLAN.cells for run in cell.runs]


def test_each_column_shows_the_candidate_that_validation_prefers(tmp_path):
    val = dict.fromkeys(PLACES, 0.5)
    val |= {"KD/a/w=0.8/0": 0.9, "KD/b/w=0.2/1": 0.6}  # a: the second, though the test images would say the first
    test = dict.fromkeys(PLACES, 0.1) | {"KD/a/w=0.2/0": 0.99, "KD/a/w=0.8/0": 0.3, "KD/b/w=0.2/0": 0.2}
    got = table(tmp_path, val, test)
    assert got.cell("KD", "a").by_seed == {0: 0.3, 1: 0.1}
    assert got.cell("KD", "b").by_seed == {0: 0.2, 1: 0.1}
    assert got.notes[0].startswith("tuned: of the candidates of a row each column shows the best by val/top1")
    assert got.notes[1:] == ["  KD, a: w=0.8", "  KD, b: w=0.2"]
    assert got.cell("CE", "a").planned == 2


def test_ties_go_to_the_first_and_of_losses_the_least_counts(tmp_path):
    even = dict.fromkeys(PLACES, 0.5)
    assert table(tmp_path, even, even).notes[1:] == ["  KD: w=0.2"]
    less = even | {"KD/a/w=0.8/1": 0.4}
    assert table(tmp_path, less, even, "test/nll").notes[1:] == ["  KD, a: w=0.8", "  KD, b: w=0.2"]


def test_only_seeds_that_all_candidates_have_count(tmp_path):
    val = dict.fromkeys(PLACES, 0.5) | {"KD/a/w=0.2/1": 1.0, "KD/a/w=0.8/0": 0.6}
    del val["KD/a/w=0.8/1"], val["KD/b/w=0.2/0"], val["KD/b/w=0.8/1"]
    got = table(tmp_path, val, val)
    assert got.notes[1:] == [
        "  KD, a: w=0.8 (by 1 of 2 seeds, others are not done)", "  KD, b: nothing yet, no seed has all candidates done",
    ]  # fmt: skip
    assert got.cell("KD", "a").missing == [1]


def test_the_plan_counts_all_candidates(tmp_path, monkeypatch):
    monkeypatch.setattr("kdrun.results.progress.table_spec", lambda _: None)
    monkeypatch.setattr("kdrun.results.progress.plan_of", lambda *_: PLAN)
    assert len(Todo.of(PLAN, tmp_path).states) == 12
    lines = progress_text("it", tmp_path, [], commands=False).splitlines()
    assert [line.split(maxsplit=1)[1].strip() for line in lines[2:4]] == [
        "0/4 done, 4 missing  0/4 done, 4 missing", "0/2 done, 2 missing  0/2 done, 2 missing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"KDD": [LOW, HIGH]}, "tune: KDD: no such row; nearest: KD"),
        ({"KD": [LOW]}, "tune: KD: give two candidates or more, each once"),
        ({"KD": [LOW, LOW]}, "tune: KD: give two candidates or more, each once"),
    ],
)
def test_what_is_no_choice_is_refused(tune, message):
    with pytest.raises(ConfigError, match=message):
        build(TableConfig, {**SPEC, "tune": tune}, "table")


SPACE = {"over": ["schedule.lr=tag(log,interval(0.01,1))", "loss.kd.temperature=choice(1,2,4)"], "trials": 4}


def spec_of(tune) -> TableConfig:
    return build(TableConfig, {**SPEC, "tune": tune}, "table")


def test_candidates_are_spread_over_a_space_the_same_ones_each_time():
    # Halton's points in bases 2 and 3: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)
    assert spec_of({"KD": SPACE}).candidates("KD") == [
        ["schedule.lr=0.1", "loss.kd.temperature=2"],
        ["schedule.lr=0.0316", "loss.kd.temperature=4"],
        ["schedule.lr=0.316", "loss.kd.temperature=1"],
        ["schedule.lr=0.0178", "loss.kd.temperature=2"],
    ]


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ({"KD": SPACE, "CE": [["w=1"], ["w=2"]]}, r"tune: as many trials for each row, .* \(KD 4, CE 2\)"),
        ({"KD": {"over": ["w=choice(1,2)"], "trials": 3}}, "tune: KD: 3 trials, and the space has 2 that differ"),
        ({"KD": {"over": ["w=3"], "trials": 3}}, "tune: KD: w=3: one value; write w=choice"),
        ({"KD": {"over": ["w=interval(1"], "trials": 3}}, r"tune: KD: w=interval\(1: "),
        ({"KD": {"over": ["w=interval(2,1)"], "trials": 3}}, "tune: KD: w: .*: the first number must be the smaller"),
        ({"KD": {"over": [f"w{k}=interval(0,1)" for k in range(7)], "trials": 3}}, "tune: KD: 7 keys; 6 at most"),
        ({"KD": {"over": ["w=interval(0,1)"]}}, "trials: missing"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(tune, line):
    with pytest.raises(ConfigError, match=line) as error:
        spec_of(tune)
    assert len(error.value.lines) == 1


def test_whole_numbers_and_steps_stay_such():
    over = ["a=range(1,9)", "b=range(10,40,10)", "c=tag(log,range(1,65))", "d=interval(0,1)"]
    found = spec_of({"KD": {"over": over, "trials": 50}}).candidates("KD")
    values = [dict(word.split("=") for word in words) for words in found]
    assert {int(value["a"]) for value in values} == set(range(1, 9))
    assert {int(value["b"]) for value in values} == {10, 20, 30}
    whole = sorted(int(value["c"]) for value in values)
    assert whole[0] == 1
    assert whole[len(whole) // 2] in (7, 8, 9)
    assert all(0 <= float(value["d"]) < 1 for value in values)
