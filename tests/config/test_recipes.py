"""Every experiment is what its authors' arguments say, and what deviates is listed: conf/paper/recipes."""

import pytest
import yaml

from kdrun.config.recipes import FOLDER, Recipes, experiments_of, mistakes, read_recipes
from kdrun.core.errors import ConfigError
from kdrun.core.schema import build

LR = {"key": "schedule.lr", "value": 0.05, "source": "somebody/code, train.py --lr"}
WHY = "a reason that is told"


def test_every_experiment_is_what_its_authors_give_it(composer):
    assert mistakes(read_recipes(), experiments_of(), composer.typed) == []


def test_nearly_every_paper_is_told_by_its_own_code():
    """What is known second hand says so, and of papers whose code can be read it is the exception."""
    for name in ("dho", "fixmatch"):
        listed = read_recipes()[f"recipes/{name}.yaml"]
        sources = [argument.source for entry in listed.entries for argument in entry.arguments]
        assert len(sources) > 10
        assert not [source for source in sources if source.startswith("digest")]


def told(composer, *entries, ours=None, experiments=("demo",)):
    return mistakes({"recipes/a.yaml": build(Recipes, {"entries": list(entries), "ours": ours or {}}, "a")},
                    experiments, composer.typed)  # fmt: skip


def entry(*arguments, experiments=("demo",), **more):
    return {"experiments": list(experiments), "arguments": list(arguments), **more}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (entry(LR), None),
        (entry({**LR, "value": 0.1}), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05, and somebody/code, train.py --lr has 0.1; mend it, or list a deviation"),
        (entry({**LR, "value": 0.1}, deviations=[{"key": "schedule.lr", "ours": 0.05, "why": WHY}]), None),
        (entry({**LR, "value": 0.1}, deviations=[{"key": "schedule.lr", "ours": 0.2, "why": WHY}]), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05, and the deviation says 0.2"),
        (entry(LR, deviations=[{"key": "schedule.lr", "ours": 0.1, "why": WHY}]), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05 as in somebody/code, train.py --lr: it no longer deviates; take out the deviation"),
        (entry(LR, deviations=[{"key": "seed", "ours": 0, "why": WHY}]), "recipes/a.yaml, entries.0, experiment=demo: seed: a deviation from nothing; list the authors' value under arguments"),
        (entry({**LR, "key": "schedule.lrr"}), "recipes/a.yaml, entries.0, experiment=demo: schedule.lrr: no such key in its configuration; nearest: lr"),
        (entry({**LR, "key": "students.3.name"}), "recipes/a.yaml, entries.0, experiment=demo: students.3.name: no such key in its configuration"),
        (entry({**LR, "key": "steps", "value": 300}), "recipes/a.yaml, entries.0, experiment=demo: steps: of how many labeled images? give labeled"),
        (entry({**LR, "key": "steps", "value": 300, "labeled": 9}), None),
        (entry(LR, overrides=["loss=kdd"]), "recipes/a.yaml, entries.0, experiment=demo: loss=kdd: no such option; nearest: kd"),
    ],
)  # fmt: skip
def test_a_list_and_its_experiment_that_differ_are_told(composer, given, line):
    found = told(composer, given)
    assert len(found) == (line is not None)
    assert line is None or found[0].startswith(line)


def test_experiments_that_are_not_there_or_in_no_list_are_told(composer):
    found = told(composer, entry(LR, experiments=["dmo"]), ours={"fixmatc/*": WHY}, experiments=("demo", "new/one"))
    assert [line.partition(";")[0].partition(" (")[0] for line in found] == [
        "recipes/a.yaml, entries.0: no experiment is called 'dmo'",
        "recipes/a.yaml, ours: no experiment is called 'fixmatc/*'",
        "experiment=demo: has no recipe",
        "experiment=new/one: has no recipe",
    ]
    assert told(composer, ours={"*": WHY}, experiments=("demo", "new/one")) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("entries: [{experiments: [demo], arguments: [{key: seed, value: 0}]}]", "recipes/x.yaml.entries.0.arguments.0.source: missing"),
        ("entries: [{experiments: [demo], arguments: []}]", "recipes/x.yaml.entries.0.arguments"),
        ("entrys: []", "recipes/x.yaml.entrys: unknown key; nearest: entries"),
        ("entries: [{experiments: [demo], arguments: [{key: seed, value: 0, source: code}], deviations: [{key: seed, ours: 1}]}]", "recipes/x.yaml.entries.0.deviations.0.why: missing"),
    ],
)  # fmt: skip
def test_a_broken_list_is_refused_with_the_line(tmp_path, text, line):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_recipes(folder)
    assert str(refused.value).startswith(line)


def test_all_lists_are_read():
    assert {f"recipes/{path.name}" for path in FOLDER.rglob("*.y*ml")} == set(read_recipes())
    assert all(yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml"))
