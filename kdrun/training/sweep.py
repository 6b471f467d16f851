"""Carries a graph out on an engine: what is ready starts, what another process holds is come back to at the end."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from kdrun.config.job import Job
from kdrun.core.errors import KdrunError
from kdrun.core.lock import held
from kdrun.runs.layout import lock_path, run_lock
from kdrun.runs.record import read_record, write_record
from kdrun.training.engines.engine import Engine
from kdrun.training.graph import ENDED, Graph, Node
from kdrun.training.task import AGAIN, DONE, MISTAKE, Ended, Task

log = logging.getLogger(__name__)
LOOK = 1.0  # seconds between two looks at what others hold
FINAL = {"NonFiniteLoss", "ConfigError", "DataError"}  # these would come again


class View(Protocol):
    """Is told what happens."""

    def changed(self, node: Node) -> None:
        """Its state is another one."""

    def tick(self) -> None:
        """Some time has gone by."""

    def stopping(self, count: int) -> None:
        """So many runs are being stopped."""


class Source(Protocol):
    """Where further runs come from while others are made."""

    def more(self, free: int) -> list[tuple[Job, str]]:
        """At most so many, each with a name; none: there are no more."""

    def ended(self, node: Node) -> None:
        """One that it gave, or what such a one needs. May say in `why` what came out."""

    def hopeless(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of these running ones that are to be stopped, `why` filled in."""


class Sweep:
    """The state of one sweep.

    Args:
        environment: of the runs.
        source: is asked for more where a slot would stay free.
    """

    def __init__(
        self, graph: Graph, engine: Engine, view: View, environment: Mapping[str, str] | None = None,
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.engine, self.view, self.source = graph, engine, view, source
        self.environment = environment or {}
        self.running: dict[str, Node] = {}
        self.hopeless: set[Node] = set()
        self.made = self.changes = 0
        self.looked = 0.0

    def run(self) -> None:
        """Until nothing can be made any more. A failure stops nothing but what needs it.

        Raises:
            Interrupted: stopped by a signal; so is all that ran, with checkpoints.
        """
        try:
            while True:
                before = self.changes
                self._ask()
                self._start()
                if self.changes == before and not self.running and not self.graph.count("held"):
                    break
                if self.running:
                    for name, ended in self.engine.wait(LOOK):
                        self._ended(self.running.pop(name), ended)
                elif self.graph.count("held"):
                    time.sleep(LOOK / 5)
                self._prune()
                self._look_at_held()
                self.view.tick()
        except BaseException:
            if self.running and not self.engine.inline:
                self.view.stopping(len(self.running))
            self.engine.stop()
            raise

    def _ask(self) -> None:
        """Fill what would stay free from the source."""
        limit = self.engine.config.limit
        while self.source is not None and (limit is None or self.made < limit):
            free = self.engine.slots - len(self.running) - self.graph.count("waiting")
            given = self.source.more(free) if free > 0 else []
            if not given:
                break
            for job, name in given:
                node = self.graph.add(job, name)
                if node.state in ENDED:
                    self.source.ended(node)

    def _start(self) -> None:
        """Fill the free slots. What another process holds, or has done meanwhile, takes none."""
        tasks: dict[str, Task] = {}
        while len(self.running) < self.engine.slots and (node := self.graph.next_ready()) is not None:
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
            self._set(node, node.state, node.why)

    def _ended(self, node: Node, ended: Ended) -> None:
        """What the record says of it, and where there is none, what its process said."""
        if ended.code == AGAIN:
            node.tries -= 1
            self.made -= node.tries == 0
            self._set(node, "held", "another process is at work on it")
            return
        if ended.code == DONE or node.finished():  # its job may have died after it
            self._set(node, "done")
            return
        if node in self.hopeless:
            _note(node)
            self._set(node, "pruned", node.why)
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

    def _prune(self) -> None:
        if self.source is not None:
            for node in self.source.hopeless([n for n in self.running.values() if n not in self.hopeless]):
                self.hopeless.add(node)
                self.engine.end(str(node.directory))

    def _look_at_held(self) -> None:
        if time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            for node in self.graph.in_state("held"):
                if not held(lock_path(node.directory)):
                    done = node.finished()
                    self._set(node, *(("done", "by another process") if done else ("waiting", "")))

    def _set(self, node: Node, state: str, why: str = "") -> None:
        self.changes += 1
        node.passed += state == "held"
        node.why, node.state = why, state
        if self.source is not None and state in ENDED:
            self.source.ended(node)
        self.view.changed(node)


def _note(node: Node) -> None:
    """Say in the record of a stopped run why. Whoever asks for the run has it go on from its checkpoint."""
    try:
        with run_lock(node.directory, wait=False):
            record = read_record(node.directory)
            if record is not None and record["status"] == "running":
                write_record(node.directory, record | {"error": {"type": "Pruned", "message": node.why}})
    except (KdrunError, OSError) as error:
        log.warning("%s: %s", node.directory, error)
