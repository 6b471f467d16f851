"""Users' own parts: the documented example word for word, a dataset, a network, and mistakes in a plugin."""

import re
from pathlib import Path

import pytest
import yaml

import kdrun
from kdrun.cli import table as tables
from kdrun.cli.plan import require_possible
from kdrun.cli.train import main
from kdrun.core.errors import KdrunError
from kdrun.core.paths import with_conf
from kdrun.core.schema import build
from kdrun.data.loader import Loader
from kdrun.results.jobs import table_jobs
from kdrun.results.plan import plan_of
from kdrun.results.spec import TableConfig
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER
from tests.docs.pages import PAGES, commands, files

pytestmark = pytest.mark.slow

[EXAMPLE] = [page for page in PAGES if "my_method.py" in files(page.read_text())]
"""README, or the page that has its example by now."""


def write_example(folder: Path) -> None:
    for name, text in files(EXAMPLE.read_text()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def example_command() -> list[str]:
    [words] = [command.words for command in commands(EXAMPLE) if "plugins=[my_method.py]" in command.words]
    return list(words[2:])


def test_the_example_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    short = [*FAST, *TEACHER]
    assert main([*example_command(), *short]) == 0
    found = dict(find_records(Path("outputs")))
    directory, record = next((d, r) for d, r in found.items() if r["method"] == "confident_distill")
    assert record["config"]["method"] == {"name": "confident_distill", "power": 2}
    assert len(record["plugins"]["my_method"]) == 64
    assert '"train/loss/probability_l1"' in (directory / "metrics.jsonl").read_text()
    assert '"train/teacher_weight"' in (directory / "metrics.jsonl").read_text()
    teacher = next(r for r in found.values() if r["method"] == "supervised")
    assert teacher["plugins"] == {}  # made of kdrun's own parts: shared with runs without the plugin

    path = tmp_path / "my_method.py"
    path.write_text(path.read_text().replace("amax(1) **", "amax(1).sqrt() **"))
    assert main([*example_command(), *short]) == 0
    after = dict(find_records(Path("outputs")))
    assert sum(r["method"] == "confident_distill" for r in after.values()) == 2  # edited, so run again
    assert sum(r["method"] == "supervised" for r in after.values()) == 1


def test_mistakes_in_a_users_config_are_caught_as_ours_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    assert main([*example_command(), *FAST, "method.power=-1"]) == 2
    assert capsys.readouterr().err == "error: method.power: must be greater than or equal to 0, got -1\n"
    assert main([*example_command(), *FAST, "+method.pover=1"]) == 2
    assert capsys.readouterr().err.startswith("error: method.pover: unknown key; nearest: power")
    assert main([*example_command(), *FAST, "teacher=none", "loss=ce"]) == 2
    assert "method=confident_distill needs a teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["plugins=[my_method.py]"],
            "<--config-dir>/loss/term/l1.yaml; see docs/extend/plugin.md",
        ),
        (["--config-dir", "my_conf"], "unknown loss 'l1' .*; one of your own is known by plugins="),
        (["--config-dir", "my_conf", "plugins=[my_method.py]"], "pair.teacher is there where needs says teacher=True"),
    ],
)
def test_what_is_forgotten_of_a_plugin_is_named(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    code = Path("my_method.py").read_text().replace('"probability_l1"', '"l1"').replace("teacher=True, over", "over")
    Path("my_method.py").write_text(code)
    Path("my_conf/loss/term/l1.yaml").write_text("name: l1\n")
    assert main([*words, *FAST, *TEACHER, "method=distill", "loss=l1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line


def test_a_table_says_which_runs_an_edited_plugin_has_put_out_of_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    words = [
        "method=distill",
        "loss=probability_l1",
        *FAST,
        *TEACHER,
        "execution.progress=false",
        "plugins=[my_method.py]",
    ]
    table = {"rows": {"mine": words, "KD": ["loss=kd", *FAST, *TEACHER]}, "columns": {"digits": []}, "seeds": [0]}
    Path("my_conf/table/own.yaml").write_text(yaml.safe_dump({"metric": "test/top1", "protocol": "last", **table}))
    assert main(["--config-dir", "my_conf", *words, "seed=0"]) == 0
    [directory] = [d for d, r in find_records(Path("outputs")) if r["method"] == "distill"]
    asked = ["--config-dir", "my_conf", "table=own"]
    assert "my_method.py is not" not in tables.main(asked)
    Path("my_method.py").write_text(Path("my_method.py").read_text() + "# edited\n")
    said = f"my_method.py is not what 1 finished runs were made with ({directory.name}): they do not count"
    assert said in tables.main(asked)
    assert said in tables.main([*asked, "plan=true"])


def test_a_row_of_a_plugin_before_rows_without_it_is_checked_and_planned_as_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_example(tmp_path)
    rows = {"mine": ["plugins=[my_method.py]", "loss=probability_l1"], "KD": ["loss=kd"]}
    words = ["method=distill", *FAST, *TEACHER]
    spec = build(TableConfig, {"rows": rows, "columns": {"digits": words}, "seeds": [0, 1]}, "table")
    with with_conf(tmp_path / "my_conf"):
        jobs = table_jobs("own", spec, Path("outputs"), []).jobs
        require_possible(jobs)
        places = [run.place for cell in plan_of("own", spec, Path("outputs")).cells for run in cell.runs]
    assert [job.place for job in jobs] == places
    with pytest.raises(KdrunError, match="plugins: stand among the words of a row or column"):
        tables.main(["table=demo", "plugins=[my_method.py]"])


OLD = "from kdrun import Method, MethodConfig, Step, Term, TermConfig, register\n"
OLD_METHOD = f"""{OLD}
@register('method', 'old')
class Old(Method):
    loss_roles = ('target', 'teacher')
    class Config(MethodConfig): ...
    def step(self, batch, ctx): return Step({{}})
    def predictors(self): return {{}}
"""
OLD_TERM = (
    f"{OLD}\n@register('loss', 'old')\nclass Old(Term):\n    against = 'teacher'\n    class Config(TermConfig): ..."
)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            OLD_METHOD,
            "plugins: bad.py: Old: written for an older kdrun: loss_roles is now needs, Needs(sides=...); predictors is now "
            "predict(view); see docs/extend/method.md",
        ),
        (
            OLD_TERM,
            "plugins: bad.py: Old: written for an older kdrun: against is now needs, Needs(teacher=True); see docs/extend/loss.md",
        ),
        ("def (", "plugins: bad.py: SyntaxError"),
        ("import nothing_of_this_name", "plugins: bad.py, line 1: ModuleNotFoundError"),
        (
            "from kdrun.core.registry import register\n@register('method', 'distill')\nclass X:\n    class Config: ...",
            "plugins: bad.py: register: method 'distill' exists already",
        ),
        (
            "from kdrun.core.registry import register\n@register('methods', 'x')\nclass X:\n    class Config: ...",
            "plugins: bad.py: register: unknown kind 'methods'; nearest: method",
        ),
        (
            "from kdrun.core.registry import register\n@register('method', 'x')\nclass X: ...",
            "plugins: bad.py: register: X needs a nested class Config",
        ),
    ],
)
def test_a_broken_plugin_is_one_line(tmp_path, monkeypatch, capsys, code, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(code)
    assert main(["plugins=[bad.py]", "tracker=none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


TERM = """
from kdrun import Needs, Term, TermConfig, register


@register("loss", "NAME")
class Counting(Term):
    seen = []

    class Config(TermConfig):
        pass

    @classmethod
    def needs(cls, config):
        return Needs(teacher=True)

    def forward(self, pair):
        return (pair.student.logits - pair.teacher.logits).square().mean(1)

    def after_step(self, pair):
        assert not pair.student.logits.requires_grad
        self.seen.append(len(pair.index))
        open("seen-NAME", "w").write(str(self.seen))
"""


def with_term(name: str, folder: str = ".") -> list[str]:
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "mine.py").write_text(TERM.replace("NAME", name))
    return [f"plugins=[{folder}/mine.py]", f"+loss.extra={{name: {name}, weight: 1.0}}", "loss=ce"]


def test_plugins_share_a_teacher_and_terms_are_told_of_each_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*FAST, *TEACHER, *with_term("first", "a")]) == 0
    assert Path("seen-first").read_text() == str([16] * 20)
    assert main([*FAST, *TEACHER, *with_term("second", "b")]) == 0  # the teacher is there; the other plugin is not
    found = dict(find_records(Path("outputs")))
    assert sorted(r["method"] for r in found.values()) == ["distill", "distill", "supervised"]
    assert {tuple(r["plugins"]) for r in found.values()} == {("mine",), ()}


@pytest.mark.parametrize(("against", "weight"), [("teacher", {"ce": 1.0, "mine": 2.0}), ("target", {"mine": 2.0})])
def test_a_term_of_a_plugin_needs_no_more_than_its_own_yaml(tmp_path, monkeypatch, against, weight):
    from kdrun.config.compose import Composer

    monkeypatch.chdir(tmp_path)
    with_term(f"term_{against}")
    Path("mine.py").write_text(Path("mine.py").read_text().replace("teacher=True", f"teacher={against == 'teacher'}"))
    Path("conf/loss/term").mkdir(parents=True)
    Path("conf/loss/term/mine.yaml").write_text(f"# Mine.\nname: term_{against}\nweight: 2.0\n")
    with Composer("conf") as composer:
        config = composer.typed(["plugins=[mine.py]", "loss=mine"])
    assert {label: term.weight for label, term in config.losses.items()} == weight


def test_each_of_two_plugins_of_one_name_counts(tmp_path, monkeypatch):
    from kdrun.config.compose import Composer
    from kdrun.config.key import run_key

    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        with_term(f"term_{folder}", folder)
    terms = ["+loss.x={name: term_a, weight: 1.0}", "+loss.y={name: term_b, weight: 1.0}"]
    keys = set()
    for edited in (None, "a", "b"):
        if edited:
            path = Path(edited, "mine.py")
            path.write_text(path.read_text() + "# edited\n")
        with Composer() as composer:
            keys.add(run_key(composer.typed(["plugins=[a/mine.py,b/mine.py]", *terms])))
    assert len(keys) == 3


MARKED = """
import torch
from kdrun import MethodConfig, register
from kdrun.methods.supervised import Supervised


@register("method", "marked")
class Marked(Supervised):
    class Config(MethodConfig):
        pass

    def before(self, start):
        torch.rand(3)  # as it likes: no step sees it
        with open("fresh", "a") as file:
            file.write(f"{start.fresh} ")
        return {"mark": (torch.arange(len(start.pool.images)) + 7, {"first": start.first})}

    def step(self, batch, ctx):
        samples = batch["labeled"]
        assert torch.equal(samples.extra["mark"], samples.views["weak"].index + 7)
        return super().step(batch, ctx)
"""


def test_what_a_method_makes_before_training_reaches_every_batch_also_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("marked.py").write_text(MARKED)
    Path("mine/method").mkdir(parents=True)
    Path("mine/method/marked.yaml").write_text(
        "# marked\ndefaults: [_self_, {override /loss@_global_.loss: ce}, {override /teacher@_global_.teacher: none}]\n"
        "name: marked\n"
    )
    line = ["--config-dir", "mine", "plugins=[marked.py]", *FAST, "method=marked", "execution.checkpoint_every_steps=4"]
    line += ["schedule.ema_decay=0.9", "student.head=mlp"]  # dropout draws from the global numbers
    plain = Loader.batch

    def broken(self, step):
        if step == 6:
            raise KdrunError("broken off")
        return plain(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", broken)
        assert main(line) == 1
    assert main(line) == 0
    assert Path("fresh").read_text() == "True False "
    ((directory, record),) = find_records(Path("outputs"))
    assert record["artifacts"] == {"mark": {"first": 20}}
    resumed = (directory / "student.safetensors").read_bytes()
    assert main([*line, "execution.outputs=again"]) == 0
    ((other, _),) = find_records(Path("again"))
    assert (other / "student.safetensors").read_bytes() == resumed


PARTS = """
import numpy as np
import timm
from torch import nn

from kdrun import Arrays, DatasetConfig, register


@register("dataset", "stripes")
class Stripes:
    class Config(DatasetConfig):
        count: int = 60

    @staticmethod
    def load(config):
        labels = np.arange(config.count) % 2
        images = np.zeros((config.count, 6, 10, 3), np.uint8)
        images[labels == 0, ::2] = 255
        images[labels == 1, :, ::2] = 255
        return Arrays(images, labels, images[:10], labels[:10], ("across", "down"), (0.5,) * 3, (0.5,) * 3)


@timm.models.register_model
def flat_linear(pretrained=False, num_classes=2, in_chans=3, **_):
    model = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 60, num_classes))
    model.get_classifier = lambda: model[1]
    return model
"""


def test_own_dataset_and_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)
    Path("mine/dataset").mkdir(parents=True)
    Path("mine/dataset/stripes.yaml").write_text("# two kinds\ndefaults: [base, _self_]\nname: stripes\ncount: 60\n")
    assert main([
        "--config-dir", "mine", "plugins=[parts.py]", "tracker=none", "method=supervised", "dataset=stripes", "student=timm",
        "student.name=flat_linear", "schedule.steps=30", "schedule.batch_size=16", "dataset.count=80", "dataset.mirror=false",
    ]) == 0  # fmt: skip
    ((directory, record),) = find_records(Path("outputs"))
    assert record["metrics"]["test/student/top1"] == 1.0
    assert set(record["plugins"]) == {"parts"}
    assert kdrun.load(directory).name == "flat_linear"
