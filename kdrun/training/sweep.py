"""Carries a graph out on an engine: what is ready starts, what another process holds is come back to at the end."""

import time
from collections.abc import Mapping
from typing import Protocol

from kdrun.core.errors import KdrunError
from kdrun.core.lock import held
from kdrun.runs.layout import lock_path
from kdrun.runs.record import read_record
from kdrun.training.engines.engine import Engine
from kdrun.training.graph import Graph, Node
from kdrun.training.task import AGAIN, DONE, MISTAKE, Ended, Task

LOOK = 1.0  # seconds between two looks at what others hold
FINAL = {"NonFiniteLoss", "ConfigError", "DataError"}  # these would come again


class View(Protocol):
    """Is told what happens."""

    def changed(self, node: Node) -> None:
        """Its state is another one."""

    def tick(self) -> None:
        """Some time has gone by."""


class Sweep:
    """The state of one sweep.

    Args:
        environment: of the runs.
    """

    def __init__(self, graph: Graph, engine: Engine, view: View, environment: Mapping[str, str] | None = None) -> None:
        self.graph, self.engine, self.view = graph, engine, view
        self.environment = environment or {}
        self.running: dict[str, Node] = {}
        self.made = 0
        self.looked = 0.0

    def run(self) -> None:
        """Until nothing can be made any more. A failure stops nothing but what needs it.

        Raises:
            Interrupted: stopped by a signal; so is all that ran, with checkpoints.
        """
        try:
            while True:
                self._start()
                if not self.running and not self.graph.in_state("held"):
                    break
                if self.running:
                    for name, ended in self.engine.wait(LOOK):
                        self._ended(self.running.pop(name), ended)
                else:
                    time.sleep(LOOK / 5)
                self._look_at_held()
                self.view.tick()
        except BaseException:
            self.engine.stop()
            raise

    def _start(self) -> None:
        """Fill the free slots. What another process holds, or has done meanwhile, takes none."""
        tasks: dict[str, Task] = {}
        for node in self.graph.ready():
            if len(self.running) >= self.engine.slots:
                break
            if held(lock_path(node.directory)):
                self._set(node, "held", "another process is at work on it")
            elif node.finished():
                self._set(node, "done", "by another process")
            elif self.engine.config.limit is not None and self.made >= self.engine.config.limit:
                self._set(node, "left", "beyond the limit")
            else:
                name = str(node.directory)
                self.running[name] = node
                tasks[name] = Task.of(node.job, node.role, self.environment)
                node.tries += 1
                self.made += node.tries == 1
                self._set(node, "running")
        self.engine.start(tasks)
        for node in self.graph.block():
            self.view.changed(node)

    def _ended(self, node: Node, ended: Ended) -> None:
        """What the record says of it, and where there is none, what its process said."""
        if ended.code == AGAIN:
            node.tries -= 1
            self.made -= node.tries == 0
            self._set(node, "held", "another process is at work on it")
            return
        if ended.code == DONE:
            self._set(node, "done")
            return
        try:
            record = read_record(node.directory)
        except KdrunError:
            record = None
        error = (record or {}).get("error") or {}
        final = ended.code == MISTAKE or error.get("type") in FINAL
        why = error.get("message") or ended.text
        if not final and node.tries <= self.engine.config.retries:
            self._set(node, "waiting", f"tried again: {why}")
        else:
            self._set(node, "failed", why)

    def _look_at_held(self) -> None:
        if time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            for node in self.graph.in_state("held"):
                if not held(lock_path(node.directory)):
                    done = node.finished()
                    self._set(node, *(("done", "by another process") if done else ("waiting", "")))

    def _set(self, node: Node, state: str, why: str = "") -> None:
        node.passed += state == "held"
        node.state, node.why = state, why
        self.view.changed(node)
