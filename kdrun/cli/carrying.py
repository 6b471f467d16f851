"""Carrying out what was planned, on an engine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdrun.cli.search import Search
from kdrun.cli.views import Lines, Screen
from kdrun.config.job import Job
from kdrun.config.names import ASKED
from kdrun.config.sweep import SweepSettings
from kdrun.core import signals
from kdrun.core.errors import ConfigError
from kdrun.training.engines.engine import Engine, engine_of
from kdrun.training.graph import Graph
from kdrun.training.sweep import Sweep

NAMED = 5  # runs in one line


def carry_out(jobs: Sequence[Job], settings: SweepSettings, search: Search | None = None) -> int:
    """Make these runs and what they need. Returns the exit code: 0 all done, 1 not all, 2 the engine cannot.

    Args:
        search: finds more as it goes.

    Raises:
        Interrupted: stopped by a signal, all that ran with checkpoints.
    """
    try:
        kind, config = engine_of(settings.engine)
        graph = Graph.of(jobs)
        with kind(config) as made:
            settings.configure_log()
            if search is not None and search.config.pruner is not None:
                made.apart()
            done = graph.count("done")
            begun = f"{len(graph)} runs, {done} done already" if search is None else search.begin()
            print(f"{begun}; {made.text}", file=sys.stderr, flush=True)
            outputs = jobs[0].outputs if search is None else search.first.outputs
            try:
                with signals.during("starting the next run"), _view(graph, made, outputs) as view:
                    Sweep(graph, made, view, settings.environment, search).run()
            except signals.Interrupted as stop:
                asked = [node.state for node in graph.nodes.values() if node.role == ASKED]
                stop.text = f"{stop} ({asked.count('done')} of {len(asked)} runs are done)"
                raise
    except ConfigError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    return _told(graph, config.limit, search)


def _view(graph: Graph, engine: Engine, outputs: Path) -> Lines | Screen:
    """On a terminal a table that moves; but runs in this process show what they do by themselves."""
    if engine.inline or not sys.stderr.isatty() or os.environ.get("TERM") in (None, "dumb"):
        return Lines(graph, engine, outputs)
    from rich.console import Console

    return Screen(graph, engine, outputs, Console(stderr=True))


def _told(graph: Graph, limit: int | None, search: Search | None) -> int:
    """Name what is not done, and what was tried again."""
    nodes = list(graph.nodes.values())
    again = [f"{node.name} ({node.tries} times)" for node in nodes if node.tries > 1]
    bad = [node for node in nodes if node.state not in ("done", "left", "pruned")]
    lines = [f"tried again: {_listed(again)}"] if again else []
    lines += [f"failed: {node.directory}: {node.why} ({node.name})" for node in bad if node.state == "failed"]
    causes: dict[str, list[str]] = {}
    for node in bad:
        if node.state != "failed":
            causes.setdefault(f"{node.state}: {node.why}" if node.why else node.state, []).append(node.name)
    lines += [f"{cause}: {_listed(names)}" for cause, names in causes.items()]
    left = graph.count("left")
    if left:
        lines.append(f"left: {left} run{'s' * (left > 1)} beyond limit={limit}; the same command goes on")
    for line in lines:
        print(line, file=sys.stderr)
    if search is not None:
        print(search.text())
        return 1 if bad or search.failed() else 0
    asked = [node for node in nodes if node.role == ASKED]
    done = sum(node.state == "done" for node in asked)
    print(f"{done} of {len(asked)} runs done", file=sys.stderr if bad or left else sys.stdout)
    return 1 if bad or left else 0


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
