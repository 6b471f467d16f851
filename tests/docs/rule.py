"""The rule by which commands of README and docs are tested, which docs/tested.md tells to readers."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

import kdrun
from kdrun.cli import publish
from kdrun.cli.command import COMMANDS
from kdrun.cli.download import needs_of
from kdrun.cli.plan import plan
from kdrun.cli.table import TableOptions
from kdrun.config.compose import Composer, flags_first, parser
from kdrun.config.run import RunConfig
from kdrun.config.schedule import Clock, ScheduleConfig
from kdrun.config.sweep import plain as plain_node
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import registered
from kdrun.core.schema import build, from_arguments
from kdrun.results.analysis import options as analyses
from kdrun.results.plots import options as pictures
from kdrun.results.spec import table_spec
from tests.conftest import ROOT
from tests.docs import places
from tests.docs.places import printed

STEPS = 2
ALWAYS = ("execution.device=cpu", "execution.threads=1", "execution.progress=false")
HELP = {"--help", "-h", "--cfg", "-sc", "--hydra-help", "--version"}
LAUNCHERS = {"torchrun", "srun", "sbatch", "nohup", "docker", "tmux"}
SHELL = {
    ".", "source", "cd", "mkdir", "export", "eval", "for", "done", "wait", "ls", "cat", "cp", "curl", "wget", "unzip",
    "tar", "git", "wandb", "tensorboard", "mlflow", "trackio", "pre-commit", "open", "jupyter",
}  # fmt: skip
"""Programs that are not kdrun's: what they are given is not looked at."""
PLACEHOLDER = re.compile(r"<[^>]*>|\.\.\.|…")
KINDS = {
    "explain": r"^method: .*\n  idea: ",
    "status": r"\bdone\b",
    "compare": r"test/|val/",
    "predict": r"\bwrote ",
    "export": r"\bwrote ",
    "plot": r"\bwrote ",
    "download": r"(?m)^\d+ of \d+ present",
    "table html": r"^wrote ",
    "table csv": r"^[^\n]+,",
    "table latex": r"\\begin{tabular}",
    "table markdown": r"(?m)^\|-",
    "table plan": r"\d",
}
"""Command, with its format where it has one -> how what it prints looks."""


class Uncovered(AssertionError):
    """No rule says how a command is tested."""


def shorten(patch) -> None:
    """From now on each training ends after two steps; its words, and so its key, are those of the whole run."""
    whole = ScheduleConfig.clock

    def clock(self: ScheduleConfig, num_labeled: int) -> Clock:
        clock = whole(self, num_labeled)
        return Clock(clock.steps_per_epoch, min(clock.total_steps, STEPS))

    patch.setattr(ScheduleConfig, "clock", clock)


def plain(words: Sequence[str]) -> list[str]:
    """`kdrun train` and what follows, of the ways to say that; other programs as they are."""
    words = list(words)
    words[0] = words[0].rpartition("/")[2]
    if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
        module, rest = words[2], words[3:]
        if module in ("kdrun", "kdrun.train"):
            words = ["kdrun", *(["train"] if module == "kdrun.train" else []), *rest]
        elif module in ("pip", "pytest", "sphinx"):
            words = [module, *rest]
    if words[0] in ("python", "python3") and words[1:2] and (match := re.fullmatch(r"scripts/(\w+)\.py", words[1])):
        words = ["kdrun", match[1], *words[2:]] if match[1] in COMMANDS else words
    if words[0] == "kdrun" and (len(words) == 1 or words[1] not in {*COMMANDS, "help", *HELP}):
        words[1:1] = ["train"]
    return words


def is_run(words: Sequence[str]) -> bool:
    """Whether a command is carried out, and not only read."""
    return words[0] == "kdrun"


def read(words: list[str]) -> None:
    """Of another program: whether what it names of kdrun is there. Raises Uncovered."""
    program, rest = words[0], words[1:]
    if program in LAUNCHERS:
        ours = next((k for k, word in enumerate(words) if word in ("kdrun", "kdrun.train")), None)
        if ours is not None:
            composed(plain(["kdrun", *words[ours + 1 :]])[2:])
        assert ours is not None or any((ROOT / word).is_file() for word in rest), "names nothing of kdrun's"
    elif program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        unknown = [word for word in rest if "=" not in word and word not in targets]
        assert not unknown, f"make has no target {', '.join(unknown)}"
    elif program in ("pip", "uv", "pipx"):
        asked = {name for word in rest for names in re.findall(r"kdrun\[([\w,]+)\]", word) for name in names.split(",")}
        assert asked <= extras(), f"no extra {', '.join(sorted(asked - extras()))}"
    elif program in ("python", "python3", "sh", "bash"):
        module = rest[1] if rest[:1] == ["-m"] else None
        there = importlib.util.find_spec(module) if module else (ROOT / rest[0]).is_file() or Path(rest[0]).is_file()
        assert there, f"no {module or rest[0]}"
    elif program not in SHELL:
        raise Uncovered("no rule of docs/tested.md covers it")


@cache
def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def run(words: list[str], trained: set[object]) -> None:
    """`kdrun ...`, shortened by the rule. Raises AssertionError.

    Args:
        trained: what `train` has seen so far.
    """
    command, given = words[1], words[2:]
    if HELP & {command, *given} or command == "help":
        assert printed(words[1:]).strip()
    elif command in ("train", "sweep"):
        train(command, filled(given), trained)
    elif command == "publish":
        options = from_arguments(publish.Options, filled(given))
        assert options.table is None or table_spec(options.table)
    elif (table := table_of(given)) and (of_whole_runs(command, given) or not here(table)):
        check(command, filled(given))
    else:
        show(command, filled(given))


def of_whole_runs(command: str, words: Sequence[str]) -> bool:
    """Whether a table is asked for what two steps of some of its runs do not give."""
    figure = next((word.removeprefix("metric=") for word in words if word.startswith("metric=")), "test/top1")
    return command in ("plot", "analyze") or figure.partition("/")[0] not in ("test", "val")


def check(command: str, words: list[str]) -> None:
    """The words alone, of what has no runs here. Raises ConfigError."""
    if command == "table":
        from_arguments(TableOptions, words)
    elif command in ("plot", "analyze"):
        kinds = pictures.KINDS if command == "plot" else analyses.KINDS
        from_arguments(kinds[words[0]], words[1:])


def show(command: str, words: list[str]) -> None:
    """What reads: it prints what it should, in kind."""
    kind = command
    if "execute=true" in words:
        words[words.index("execute=true")] = "dry=true"
    if command == "download" and "dry=true" not in words:
        words.append("dry=true")
    if command == "table":
        form = next((word.removeprefix("format=") for word in words if word.startswith("format=")), "text")
        kind = "table plan" if {"dry=true", "plan=true"} & set(words) else f"table {form}"
    text = printed([command, *words])
    assert re.search(KINDS.get(kind, r"\S"), text), f"printed another kind of thing: {text[:300]!r}"
    if kind == "table json":
        json.loads(text)


def table_of(words: Sequence[str]) -> str | None:
    return next((word.removeprefix("table=") for word in words if word.startswith("table=")), None)


@cache
def here(table: str) -> bool:
    """Whether the data of a table's first cell are here; of a table of the page's own: yes."""
    if not (CONF_DIR / "table" / f"{table}.yaml").is_file():
        return True
    spec = table_spec(table)
    first = [*next(iter(spec.columns.values())), *next(iter(spec.rows.values())), f"seed={spec.seeds[0]}"]
    return is_here(composed(first)[0][1])


def is_here(config: RunConfig) -> bool:
    """Whether all that a run reads is on this machine, as `kdrun download` tells it."""
    return all(need.missing is None for need in needs_of([config]))


def filled(words: Sequence[str]) -> list[str]:
    """With runs and data for the words that stand for a user's own; other words with a placeholder are left out."""
    found, out = 0, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "run":
            runs = list(matching(value))
            assert len(runs) > found, f"{word}: no command of the pages makes such a run"
            out.append(f"run={runs[found].as_posix()}")
            found += 1
        elif not PLACEHOLDER.search(word):
            out.append(word)
            if key in ("dataset.path", "dataset.unlabeled", "images") and not Path(value).is_absolute():
                places.make(Path(value))
    return out


def matching(pattern: str) -> list[Path]:
    """The finished runs that a path with `...` may stand for, those of distill first; else those of its method."""
    runs = sorted(record.parent for record in Path("outputs/runs").glob("*/*/*/*/record.json"))
    runs.sort(key=lambda run: run.parts[2] != "distill")
    patterns = f"{PLACEHOLDER.sub('*', pattern)}*", f"{'/'.join(pattern.split('/')[:3])}/*"
    found = ([run for run in runs if fnmatch(run.as_posix(), glob)] for glob in patterns)
    return next(filter(None, found), [])


def composed(words: Sequence[str]) -> list[tuple[tuple[str, ...], RunConfig]]:
    """Overrides and typed configuration of every job. Raises ConfigError where one is wrong."""
    arguments = parser().parse_args(flags_first(list(words)))
    with Composer(arguments.config_dir, arguments.config_name or "config") as composer:
        jobs = composer.expand(arguments.overrides, bool(arguments.multirun)) or []
        engine = plain_node(composer.settings.engine)
        build(registered("engine")[engine["name"]].Config, engine, "engine")
        return [(job, composer.job(job).config) for job in jobs]


def train(command: str, words: list[str], trained: set[object]) -> None:
    """All jobs are composed; the first is made where its data are here, once for each method, teacher and data set."""
    if "dry=true" in words:
        assert re.search(r"\d", printed([command, *words])), "no graph"
        return
    asked = ["-m", *words] if command == "sweep" else words
    asked = [f"engine.{word}" if word.startswith("limit=") else word for word in asked]
    if any(word.startswith("search=") for word in words):
        assert plan(flags_first(asked), start=False)
        return
    jobs = composed(asked)
    assert jobs, "a sweep of no runs"
    overrides, config = jobs[0]
    own = [word for word in words if word.startswith(("tracker", "plugins="))]
    kind = (config.method.name, config.teacher.source, config.dataset.name, *own)
    if kind in trained or not is_here(config):
        return
    trained.add(kind)
    flags = [word for before, word in pairwise(["", *words]) if "--config-dir" in (before, word.partition("=")[0])]
    quiet = [] if any(word.startswith("tracker=") for word in own) else ["tracker=none"]
    text = printed(["train", *flags, *overrides, *quiet, *ALWAYS])
    assert "done: " in text, f"made no run: {text[-200:]!r}"


def execute(code: str, patch) -> None:
    """A block of Python, with `images` that fit the network it loads. One that downloads is only compiled."""
    code = re.sub(r'"(outputs/runs/[^"]*\.\.\.)"', lambda match: f'"{matching(match[1])[0].as_posix()}"', code)
    compiled = compile(code, "page", "exec")
    names: dict[str, object] = {}
    load = kdrun.load

    def loaded(*arguments):
        network = load(*arguments)
        names["images"] = torch.zeros(2, network.spec.in_chans, 12, 12, dtype=torch.uint8)
        return network

    with patch.context() as inner:
        inner.setattr(kdrun, "load", loaded)
        if "download=True" not in code:
            exec(compiled, names)
