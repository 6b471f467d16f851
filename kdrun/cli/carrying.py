"""Carrying out what was planned: on an engine, with a line for each change."""

import sys
import time
from collections.abc import Sequence

from kdrun.config.job import Job
from kdrun.config.nodes import part_config
from kdrun.config.sweep import SweepSettings
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


def carry_out(jobs: Sequence[Job], settings: SweepSettings) -> int:
    """Make these runs and what they need. Returns the exit code: 0 all done, 1 not all, 2 the engine cannot.

    Raises:
        Interrupted: stopped by a signal, all that ran with checkpoints.
    """
    try:
        config = part_config("engine", settings.engine, "engine")
        graph = Graph.of(jobs)
        with lookup("engine", config.name, "engine.name")(config) as made:
            settings.configure_log()
            done = len(graph.in_state("done"))
            print(f"{len(graph)} runs, {done} done already; {made.text}", file=sys.stderr, flush=True)
            try:
                with signals.during("starting the next run"):
                    Sweep(graph, made, Lines(graph), settings.environment).run()
            except signals.Interrupted as stop:
                done = sum(graph.nodes[job.directory].state == "done" for job in jobs)
                stop.text = f"{stop} ({done} of {len(jobs)} runs are done)"
                raise
    except ConfigError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    return _told(graph, jobs)


def _told(graph: Graph, jobs: Sequence[Job]) -> int:
    """Name what is not done."""
    nodes = {job.directory: graph.nodes[job.directory] for job in jobs}
    bad = [node for node in graph.nodes.values() if node.state != "done"]
    for node in bad:
        print(f"{node.state}: {node.directory}{': ' + node.why if node.why else ''}", file=sys.stderr)
    done = sum(node.state == "done" for node in nodes.values())
    print(f"{done} of {len(nodes)} runs done", file=sys.stderr if bad else sys.stdout)
    return 1 if bad else 0
