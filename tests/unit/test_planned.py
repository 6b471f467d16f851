"""The plan of a table: composed once, kept, and the same with and without what was kept."""

import re
import subprocess
import sys

import pytest

from kdrun.cli.table import main
from kdrun.config.compose import Composer, configs_of_seeds
from kdrun.config.key import run_dir, run_key
from kdrun.config.nodes import to_config
from kdrun.core.errors import ConfigError
from kdrun.core.schema import FileContent, build
from kdrun.results import jobs
from kdrun.results import plan as planned
from kdrun.results.fill import table_of
from kdrun.results.jobs import table_jobs
from kdrun.results.notes import deviations_in
from kdrun.results.plan import kept_plan, make_plan, plan_of
from kdrun.results.spec import TableConfig, table_spec
from tests.conftest import ROOT

SMALL = {"seeds": [0, 1, 2], "rows": {"CE": ["loss=ce"], "KD": ["loss=kd"]}, "columns": {"d": ["experiment=demo"]}}


@pytest.fixture(scope="module")
def spec() -> TableConfig:
    return build(TableConfig, SMALL, "table")


@pytest.fixture(scope="module")
def made(spec):
    return make_plan("small", spec)


def test_a_planned_run_is_the_one_that_its_command_makes(made):
    cell = made.cells[1]
    with Composer() as composer:
        config = composer.typed([*cell.overrides, "seed=2"])
    assert (cell.row, cell.column, cell.runs[2].seed, cell.runs[2].place) == ("KD", "d", 2, run_dir(config))
    assert cell.runs[2].needs["teacher"].place == run_dir(config.method_class.requires(config)["teacher"])
    assert len({run.needs["teacher"].place for run in cell.runs}) == 1
    assert made.cells[0].runs[0].needs == {}


def test_what_follows_the_seed_follows_it_in_the_plan_too():
    overrides = ["experiment=kd_fixmatch/cifar10", "dataset.split_seed=${seed}", "student.pretrained=false"]
    with Composer() as composer:
        for config in configs_of_seeds(composer.compose(overrides), [3, 4, 5]):
            assert config.dataset.split_seed == config.seed
            assert config == composer.typed([*overrides, f"seed={config.seed}"])


@pytest.mark.parametrize(
    ("words", "times"),
    [(["experiment=demo", "loss=kd"], 1), (["experiment=kd_fixmatch/cifar10", "dataset.split_seed=${seed}"], None)],
)
@pytest.mark.parametrize("seeds", [[0, 1, 2, 10], [7, 7, 3]])
def test_jobs_that_differ_in_their_seeds_are_composed_once(words, times, seeds, monkeypatch):
    composed = Composer.compose
    calls = []
    monkeypatch.setattr(Composer, "compose", lambda self, given: calls.append(given) or composed(self, given))
    asked = [[words[0], f"seed={seed}", *words[1:]] for seed in seeds]
    with Composer() as composer:
        found = [composer.job(given) for given in asked]
    assert len(calls) == (times or len(seeds))
    for job, given in zip(found, asked, strict=True):
        with Composer() as alone:
            wanted = alone.compose(given)
        assert job.config == to_config(wanted)
        assert job.overrides == tuple(wanted.hydra.overrides.task)


@pytest.mark.parametrize(("seeds", "seed"), [(["seed=1", "seed=2"], 2), (["++seed=1"], 1), ([], 0)])
def test_other_ways_to_give_a_seed_are_composed_as_they_stand(seeds, seed):
    with Composer() as composer:
        job = composer.job(["experiment=demo", "loss=kd", *seeds])
    assert job.overrides[2:] == tuple(seeds)
    assert job.config.seed == seed


def test_a_kept_plan_is_the_made_one_and_a_spoiled_one_is_made_anew(tmp_path, spec, made, monkeypatch):
    path = tmp_path / ".cache" / "tables" / "small.json"
    calls = []

    def counted(name, given, lenient):
        calls.append(name)
        return made

    monkeypatch.setattr(planned, "make_plan", counted)
    assert plan_of("small", spec, tmp_path / "new") == plan_of("small", spec, tmp_path / "new") == made
    assert len(calls) == 1, "kept though the outputs folder is new"
    assert plan_of("small", spec, tmp_path) == plan_of("small", spec, tmp_path) == made
    assert len(calls) == 2
    whole = path.read_text()
    for spoiled in ("", whole[:-40], whole.replace('"seed": 0', '"seed": 1'), "\0" * 99, whole.replace("\n", "", 1)):
        path.write_text(spoiled)
        calls.clear()
        assert plan_of("small", spec, tmp_path) == made
        assert calls == ["small"]
        assert path.read_text() == whole
    path.write_bytes(b"\xff\xfe")
    assert plan_of("small", spec, tmp_path) == made
    calls.clear()
    plan_of("small", spec.replace(seeds=[0]), tmp_path)
    assert calls == ["small"], "another spec is another plan"


def test_the_jobs_of_a_table_and_its_plan_come_of_one_composition(tmp_path, spec, made, monkeypatch):
    composed = planned.composed_cells
    calls = []
    for module in (planned, jobs):
        monkeypatch.setattr(module, "composed_cells", lambda *given: calls.append(given) or composed(*given))
    extra = ["engine.slots=2", "execution.threads=1"]
    asked = table_jobs("small", spec, tmp_path, extra)
    assert asked.settings.engine["slots"] == 2
    assert plan_of("small", spec, tmp_path) == made
    again = table_jobs("small", spec, tmp_path, extra)
    assert [job.key for job in again.jobs] == [job.key for job in asked.jobs]
    assert [job.overrides for job in again.jobs] == [job.overrides for job in asked.jobs]
    assert len(calls) == 1
    assert all(job.config.execution.threads == 1 for job in again.jobs)


def test_overrides_that_move_keys_are_not_planned_with(tmp_path, spec, made):
    table_jobs("small", spec, tmp_path, ["schedule.lr=0.3"])
    assert plan_of("small", spec, tmp_path) == made


def test_a_file_that_a_run_key_contains_is_looked_at_again(tmp_path, made, spec, monkeypatch):
    weights = tmp_path / "weights.th"
    weights.write_bytes(b"1")
    plan = made.replace(files={str(weights): planned.PlannedFile.of(str(weights), "", FileContent())})
    calls = []
    monkeypatch.setattr(planned, "make_plan", lambda *_, **__: calls.append(1) or plan)
    for _ in range(2):
        plan_of("small", spec, tmp_path)
    assert len(calls) == 1
    weights.write_bytes(b"23")
    plan_of("small", spec, tmp_path)
    assert len(calls) == 2


def test_with_a_kept_plan_nothing_imports_torch(tmp_path, made, monkeypatch):
    demo = table_spec("demo")
    monkeypatch.setattr(planned, "make_plan", lambda *_, **__: made)
    plan_of("demo", demo, tmp_path)
    code = (
        "import sys; from kdrun.cli.table import main; "
        f"print(main(['table=demo', 'outputs={tmp_path}', 'plan=true'])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "0/3 done, 3 missing" in done.stdout


def test_a_cell_that_cannot_be_composed_is_named(spec):
    with pytest.raises(ConfigError, match="table=small: CE, d: experiment=demi: no such option; nearest: demo"):
        make_plan("small", spec.replace(columns={"d": ["experiment=demi"]}))
    with pytest.raises(ConfigError, match="plan: give table=<name> too"):
        main(["plan=true"])


def test_what_is_ours_is_told_as_long_as_it_is_in_force():
    known = table_spec("kd_fixmatch")
    rows = {"KD": known.rows["KD-FixMatch-CE"], "less": [*known.rows["KD-FixMatch-CE"], "schedule.steps=10"]}
    whole, less = make_plan(
        "x", known.replace(seeds=[0], rows=rows, tune={}, columns={"a": known.columns["cifar100-1000"]})
    ).cells
    told = "schedule.weight_decay = 0.001 (proposed: FixMatch's)"
    assert {told, "schedule.steps = 30000 (proposed)"} <= set(whole.ours)
    assert told in less.ours
    assert not [line for line in less.ours if line.startswith("schedule.steps")]
    [sentence] = [line for line in whole.ours if line.startswith("conf/experiment/kd_fixmatch/cifar100.yaml: ")]
    assert sentence.endswith("they are FixMatch's here, with 30,000 steps a stage (proposed).")
    ttm = table_spec("ttm_same")
    rows, columns = {"DKD": ["loss=dkd"], "KD": ["loss=kd"]}, {"r110-r20": ttm.columns["r110-r20"]}
    dkd, kd = make_plan("x", ttm.replace(seeds=[0], rows=rows, columns=columns)).cells
    assert dkd.ours == ["coefficients.dkd (ours: none is published for this pair)"]
    assert kd.ours == []


def test_deviations_are_read_with_their_next_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "# What it is.\n# deviates: they pad, we\n#   do not.\n#   python -m x\n# Ours. deviates: one line.\n"
        "a: 1\n#   not a note\n"
    )
    assert deviations_in(path) == ["they pad, we do not.", "one line."]
    assert deviations_in(tmp_path / "none.yaml") == []


@pytest.mark.parametrize("method", ["supervised", "linear_eval"])  # keyed in the plan, and while it is composed
def test_a_cell_whose_file_is_not_there_is_shown_without_runs_and_planned_once_it_is(spec, method, tmp_path):
    file = tmp_path / "weights.safetensors"
    words = [f"method={method}", "student.pretrained=true", f"student.file='{file}'"]
    small = spec.replace(seeds=[0], rows={"there": words})
    told = f"student.file: {file}: cannot be read (No such file or directory)"
    with pytest.raises(ConfigError, match=re.escape(told)):
        plan_of("small", small, tmp_path)
    plan = plan_of("small", small, tmp_path, lenient=True)
    [there] = plan.cells
    assert (there.runs, there.lacks) == ([], told)
    assert kept_plan("small", small, tmp_path) is None  # or it would say so when the file is there
    table = table_of("small", small, plan, tmp_path, lambda _: None)
    assert table.grid()[1][1] == "not planned"
    assert f"not planned: all cells: {told}" in table.footer()
    file.write_bytes(b"weights")
    [there] = plan_of("small", small, tmp_path, lenient=True).cells
    assert (len(there.runs), there.lacks) == (1, "")


def test_the_key_of_a_missing_file_is_the_word_of_the_command_line():
    words = ["experiment=dual_student/digits", "students=[resnet8,{name: resnet14, pretrained: true, file: gone.pth}]"]
    with Composer() as composer, pytest.raises(ConfigError, match=r"^students\.1\.file: gone\.pth: cannot be read"):
        run_key(composer.typed(words))


def test_published_numbers_are_shown_where_weights_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    text = main(["table=dho_heads", "outputs=o"])
    assert "not planned | paper 65.37" in text
    assert "not planned: all cells: student.file: data/dino_resnet50_pretrain.pth" in text
    assert "; see conf/experiment/dho/imagenet_r50.yaml" in text
    with pytest.raises(ConfigError, match="dino_resnet50_pretrain"):
        main(["table=dho_heads", "plan=true", "outputs=o"])


def test_files_are_picked_by_groups_alone():
    groups = [
        [],
        ["loss=dkd"],
        ["loss=dkd", "+loss/term@loss.wttm=wttm"],
        ["loss=dkd", "~loss.ce"],
        ["experiment=demo", "loss=dkd"],
    ]
    values = ["dataset.num_labels=50", "++student.args.width=4", "+ramps.x.key=loss.kd.weight"]
    with Composer() as composer:
        bare = [composer.picked(words) for words in groups]
        assert [composer.picked([*words, *values]) for words in groups] == bare
        assert bare[1] == bare[3] != bare[0]
        assert len({tuple(found) for found in bare}) == 4
    with Composer() as composer:  # the other way round: nothing is known yet
        assert [composer.picked([*values, *words]) for words in groups] == bare
