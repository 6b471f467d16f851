"""Carrying out what was planned: on an engine, with a line for each change."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.cli.search import Search
from kdrun.config.job import Job
from kdrun.config.nodes import part_config
from kdrun.core import signals
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.training.graph import ENDED, STATES, Graph, Node
from kdrun.training.sweep import Sweep

MINUTE = 60.0


class Lines:
    """A line for each change, and how things stand each minute."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.told = graph, time.monotonic()

    def changed(self, node: Node) -> None:
        ended = len(self.graph.in_state(*ENDED))
        why = f": {node.why}" if node.why else ""
        role = "" if node.role == "train" else f"{node.role} "
        print(f"[{ended}/{len(self.graph)}] {role}{node.name} {node.state}{why}", file=sys.stderr, flush=True)

    def tick(self) -> None:
        if time.monotonic() - self.told > MINUTE:
            self.told = time.monotonic()
            print(standing(self.graph), file=sys.stderr, flush=True)


def standing(graph: Graph) -> str:
    """`7 done, 2 running, 3 waiting`."""
    counts = {state: len(graph.in_state(state)) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def carry_out(
    jobs: Sequence[Job], engine: dict[str, Any], environment: Mapping[str, str], search: Search | None = None
) -> int:
    """Make these runs and what they need. Returns the exit code: 0 all done, 1 not all, 2 the engine cannot.

    Args:
        search: finds more as it goes.

    Raises:
        Interrupted: stopped by a signal, all that ran with checkpoints.
    """
    try:
        config = part_config("engine", engine, "engine")
        graph = Graph.of(jobs)
        with lookup("engine", config.name, "engine.name")(config) as made:
            if search is not None and search.config.pruner is not None:
                made.apart()
            begun = f"{len(graph)} runs, {standing(graph)}" if search is None else search.begin()
            print(f"{begun}; {made.text}", file=sys.stderr, flush=True)
            try:
                with signals.during("starting the next run"):
                    Sweep(graph, made, Lines(graph), environment, search).run()
            except signals.Interrupted as stop:
                asked = [node.state for node in graph.nodes.values() if node.role == "train"]
                stop.text = f"{stop} ({asked.count('done')} of {len(asked)} runs are done)"
                raise
    except ConfigError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    return _told(graph, search)


def _told(graph: Graph, search: Search | None) -> int:
    """Name what is not done, and count."""
    asked = [node for node in graph.nodes.values() if node.role == "train"]
    bad = [node for node in graph.nodes.values() if node.state not in ("done", "pruned")]
    for node in bad:
        print(f"{node.state}: {node.directory}{': ' + node.why if node.why else ''}", file=sys.stderr)
    if search is not None:
        print(search.text())
        return 1 if bad or search.failed() else 0
    done = sum(node.state == "done" for node in asked)
    print(f"{done} of {len(asked)} runs done", file=sys.stderr if bad else sys.stdout)
    return 1 if bad else 0
