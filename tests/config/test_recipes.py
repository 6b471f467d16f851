"""Every experiment is what its authors' arguments say, and what deviates is listed: conf/paper/recipes."""

import gc

import pytest
import yaml

from kdrun.config.recipes import FOLDER, Recipes, experiments_of, mistakes, read_recipes
from kdrun.core.errors import ConfigError
from kdrun.core.schema import build

COMMITS = {"somebody/code": "0123abc"}
LR = {"key": "schedule.lr", "value": 0.05, "source": "somebody/code, train.py:7 --lr"}
WHY = "a reason that is told"


def test_every_experiment_is_what_its_authors_give_it(composer):
    gc.disable()  # a fifth of the time of a hundred compositions
    try:
        assert mistakes(read_recipes(), experiments_of(), composer.typed) == []
    finally:
        gc.enable()


def test_nearly_every_paper_is_told_by_its_own_code():
    """What is known second hand says so, and of papers whose code can be read it is the exception."""
    recipes = read_recipes()
    for name, second_hand in (("dho", 0), ("fixmatch", 0), ("mixup_kd", 1), ("ttm", 20)):
        listed = recipes[f"recipes/{name}.yaml"]
        arguments = [argument for entry in listed.entries for argument in entry.arguments]
        assert len(arguments) > 10
        told = [argument for argument in arguments if argument.unread or argument.source.startswith("digest")]
        assert len(told) == second_hand, [argument.source for argument in told]


def told(composer, *entries, ours=None, experiments=("demo",)):
    node = {"entries": list(entries), "ours": ours or {}, "repositories": COMMITS if entries else {}}
    return mistakes({"recipes/a.yaml": build(Recipes, node, "a")}, experiments, composer.typed)


def entry(*arguments, experiments=("demo",), **more):
    return {"experiments": list(experiments), "arguments": list(arguments), **more}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (entry(LR), None),
        (entry({**LR, "value": 0.1}), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05, and somebody/code, train.py:7 --lr has 0.1; mend it, or list a deviation"),
        (entry({**LR, "value": 0.1}, deviations=[{"key": "schedule.lr", "ours": 0.05, "why": WHY}]), None),
        (entry({**LR, "value": 0.1}, deviations=[{"key": "schedule.lr", "ours": 0.2, "why": WHY}]), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05, and the deviation says 0.2"),
        (entry(LR, deviations=[{"key": "schedule.lr", "ours": 0.1, "why": WHY}]), "recipes/a.yaml, entries.0, experiment=demo: schedule.lr is 0.05 as in somebody/code, train.py:7 --lr: it no longer deviates; take out the deviation"),
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


ENTRY = "entries:\n  - experiments: [demo]\n    arguments:\n"
SEED = "      - {key: seed, value: 0, source: "
COMMIT = "repositories: {somebody/code: 0123abc}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("entries: [{experiments: [demo], arguments: [{key: seed, value: 0}]}]", "line 1: entries.0.arguments.0.source: missing"),
        (f"{ENTRY}{SEED}'paper, table 1'}}\n      - {{key: seed, value: 0}}\n", "line 5: entries.0.arguments.1.source: missing"),
        ("entries: [{experiments: [demo], arguments: []}]", "line 1: entries.0.arguments"),
        ("entrys: []", "line 1: entrys: unknown key; nearest: entries"),
        (f"{ENTRY}{SEED}'paper, table 1'}}\n    deviations:\n      - {{key: seed, ours: 1}}\n", "line 6: entries.0.deviations.0.why: missing"),
        # sources: each of a kind, without what it needs
        (f"{COMMIT}{ENTRY}{SEED}'somebody/code, train.py --seed'}}\n", "line 5: entries.0.arguments.0: the source 'somebody/code, train.py --seed' names no line; write train.py:<line>, or unread: true"),
        (f"{COMMIT}{ENTRY}{SEED}'somebody/code, train.py:0 --seed'}}\n", "line 5: entries.0.arguments.0: the source 'somebody/code, train.py:0 --seed' names no place"),
        (f"{COMMIT}{ENTRY}{SEED}'somebody/code, train.py:7', unread: true}}\n", "line 5: entries.0.arguments.0: unread is said of a repository's file without a line"),
        (f"{ENTRY}{SEED}'paper, table 1', unread: true}}\n", "line 4: entries.0.arguments.0: unread is said of"),
        (f"{ENTRY}{SEED}paper}}\n", "line 4: entries.0.arguments.0: the source 'paper' names no place"),
        (f"{ENTRY}{SEED}'paper, somewhere'}}\n", "line 4: entries.0.arguments.0: the source 'paper, somewhere' names no place"),
        (f"{ENTRY}{SEED}'digest'}}\n", "line 4: entries.0.arguments.0: the source 'digest' names no place"),
        (f"{ENTRY}{SEED}train.py}}\n", "line 4: entries.0.arguments.0: the source 'train.py' names no place"),
        (f"{ENTRY}{SEED}'somebody/code, train.py:7'}}\n", "line 4: entries.0.arguments.0: repositories names no commit of somebody/code"),
        (f"{COMMIT}{ENTRY}{SEED}'some/code, train.py:7'}}\n", "line 5: entries.0.arguments.0: repositories names no commit of some/code; nearest: somebody/code"),
        (f"{COMMIT}{ENTRY}{SEED}'paper, table 1'}}\n", "line 1: repositories.somebody/code: no source is in it; take it out"),
        ("repositories: {somebody/code: main}\nentries: []", "line 1: repositories.somebody/code: "),
    ],
)  # fmt: skip
def test_a_broken_list_is_refused_with_the_line(tmp_path, text, line):
    with pytest.raises(ConfigError) as refused:
        read_recipes(written(tmp_path, text))
    assert str(refused.value).startswith(f"recipes/x.yaml, {line}")


def written(tmp_path, text):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "x.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    "source",
    [
        "somebody/code, train.py:7",
        "somebody/code, a/b.py:7 --seed: 0",
        "package, a.py:12 seed",
        "digest: told by another",
    ]
    + [f"paper, {place}" for place in ("abstract", "table 3", "section on seeds", "equation 2, seed")],
)
def test_a_source_that_names_its_place_is_taken(tmp_path, source):
    names = source.partition(",")[0]
    commits = "" if names.startswith(("paper", "digest")) else f"repositories: {{{names}: 1.2.3}}\n"
    assert read_recipes(written(tmp_path, f"{commits}{ENTRY}{SEED}'{source}'}}\n"))


def test_a_file_read_at_another_commit_stands_below_its_repository(tmp_path):
    commits = "repositories: {somebody/code: 0123abc, somebody/code/a: 4567def}\n"
    lines = "".join(f"{SEED}'somebody/code, {file}:7'}}\n" for file in ("a/b.py", "ab.py"))
    assert read_recipes(written(tmp_path, f"{commits}{ENTRY}{lines}"))
    (tmp_path / "recipes" / "x.yaml").write_text(f"{commits}{ENTRY}{SEED}'somebody/code, a/b.py:7'}}\n")
    with pytest.raises(ConfigError, match=r"repositories\.somebody/code: no source is in it"):
        read_recipes(tmp_path / "recipes")


def test_all_lists_are_read():
    assert {f"recipes/{path.name}" for path in FOLDER.rglob("*.y*ml")} == set(read_recipes())
    assert all(yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml"))
