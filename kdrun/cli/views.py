"""What one sees of a sweep while it goes on: a line for each change, or on a terminal a table that moves."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kdrun.config.names import kind_of
from kdrun.core.errors import KdrunError
from kdrun.core.quantities import duration
from kdrun.runs.pace import Pace, pace_of
from kdrun.runs.record import read_record
from kdrun.training.graph import ENDED, Graph, Node, counted
from kdrun.training.standing import Kind, Notice, Seen, Standing

if TYPE_CHECKING:
    from rich.console import Console, Group

    from kdrun.training.engines.engine import Engine

MINUTE = 60.0
OFTEN, SHARE = 0.5, 20
"""Seconds between two pictures; and of all the time, pictures take a twentieth at most."""
SAMPLE = 3  # runs of each kind that were done before: how long they took
TOLD = ("running", "queued", "held", "waiting", "failed", "blocked")
STYLES = {"failed": "red", "blocked": "yellow", "queued": "cyan", "held": "cyan", "waiting": "cyan", "run": "dim"}
KEPT = 300  # runs in the file of a sweep, and all that run


class Sight:
    """Sees what happens in a sweep, and keeps the file by which others see it. Use it as a context."""

    def __init__(self, graph: Graph, engine: "Engine", outputs: Path) -> None:
        self.graph, self.engine, self.outputs = graph, engine, outputs
        self.notice = Notice(outputs)
        self.dirty = True
        self.known: dict[Node, tuple[str, float]] = {}
        """The state of a node, and since when, in seconds of the epoch."""
        self.took: dict[str, list[float]] = {}
        """Kind -> seconds of finished runs."""

    def __enter__(self) -> Self:
        self._look_back()
        self.notice.__enter__()
        self._keep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.notice.__exit__(kind, error, trace)

    def changed(self, node: Node) -> None:
        """Its state is another one."""
        now = time.time()
        before, since = self.known.get(node, ("", now))
        if (before, node.state) == ("running", "done"):
            self.took.setdefault(kind_of(node.name), []).append(now - since)
        self.known[node] = node.state, now
        self.dirty = True
        self.show(node)
        if self.notice.due or self.engine.inline:  # which gives no sign while a run goes on
            self._keep()

    def tick(self) -> None:
        """Some time has gone by."""
        if self.dirty and self.notice.due:
            self._keep()

    def stopping(self, count: int) -> None:
        """So many runs are being stopped."""
        print(f"stopping {count} run{'s' if count > 1 else ''}, each with a checkpoint", file=sys.stderr, flush=True)

    def show(self, node: Node) -> None:
        """Tell of a change."""

    def standing(self) -> Standing:
        queued = self.engine.queued

        def state(node: Node) -> str:
            return "queued" if node.state == "running" and str(node.directory) in queued else node.state

        nodes = list(self.graph.nodes.values())
        waiting = Counter(kind_of(node.name) for node in nodes if state(node) in ("waiting", "queued"))
        kinds = {name: Kind(waiting=count) for name, count in waiting.items()}
        for name, took in self.took.items():
            kinds[name] = Kind(waiting=waiting[name], seconds=sum(took) / len(took))
        told = [
            self._seen(node, state(node))
            for node in nodes
            if node.state in TOLD and (node.state != "waiting" or node.why)
        ]
        told.sort(key=lambda run: TOLD.index(run.state))
        limit, counts = self.engine.config.limit, self.graph.counts
        if waits := sum(run.state == "queued" for run in told):
            counts |= {"running": counts["running"] - waits, "queued": waits}
        kept = max(KEPT, counts.get("running", 0))
        return Standing(
            host=os.uname().nodename, process=os.getpid(), slots=self.engine.slots,
            counts=counts, kinds=kinds, runs=told[:kept],
            more=None if limit is None else max(0, limit - sum(node.tries > 0 for node in nodes)) + waits,
        )  # fmt: skip

    def _seen(self, node: Node, state: str) -> Seen:
        since = self.known.get(node, ("", time.time()))[1]
        place, config = os.path.relpath(node.directory, self.outputs), node.job.config
        batch = sum(config.method_class.batch_sizes(config).values()) if state == "running" else 0
        return Seen(name=node.name, place=place, state=state, why=node.why, since=since, batch=batch)

    def _keep(self) -> None:
        self.dirty = False
        self.notice.tell(self.standing())

    def _look_back(self) -> None:
        """How long runs took that were done before."""
        for node in self.graph.in_state("done"):
            known = self.took.setdefault(kind_of(node.name), [])
            if len(known) < SAMPLE:
                try:
                    seconds = ((read_record(node.directory) or {}).get("seconds") or {}).get("total")
                except KdrunError:  # whoever needs it says so
                    seconds = None
                known += [] if seconds is None else [seconds]
        self.took = {name: took for name, took in self.took.items() if took}


class Lines(Sight):
    """A line for each change, and how things stand each minute."""

    def __init__(self, graph: Graph, engine: "Engine", outputs: Path) -> None:
        super().__init__(graph, engine, outputs)
        self.told = time.monotonic()

    def show(self, node: Node) -> None:
        state = "submitted" if node.state == "running" and self.engine.queues else node.state
        ended, why = self.graph.count(*ENDED), f": {node.why}" if node.why else ""
        print(f"[{ended}/{len(self.graph)}] {node.name} {state}{why}", file=sys.stderr, flush=True)

    def tick(self) -> None:
        super().tick()
        if time.monotonic() - self.told > MINUTE:
            self.told = time.monotonic()
            standing = self.standing()
            print(headline(standing, paces_of(standing, self.outputs)), file=sys.stderr, flush=True)


class Screen(Sight):
    """A table that moves: what runs, how far it is, what went wrong."""

    def __init__(self, graph: Graph, engine: "Engine", outputs: Path, console: "Console") -> None:
        from rich.live import Live

        super().__init__(graph, engine, outputs)
        self.console, self.next = console, 0.0
        self.live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        super().__enter__()
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.update(self._picture(rows=0), refresh=True)  # what failed is told below it
        self.live.stop()
        super().__exit__(kind, error, trace)

    def show(self, node: Node) -> None:
        self._draw()

    def tick(self) -> None:
        super().tick()
        self._draw()

    def _draw(self) -> None:
        began = time.monotonic()
        if began >= self.next:
            self.live.update(self._picture(rows=max(3, self.console.height - 3)), refresh=True)
            ended = time.monotonic()
            self.next = ended + max(OFTEN, SHARE * (ended - began))

    def _picture(self, rows: int) -> "Group":
        from rich.console import Group
        from rich.text import Text

        standing = self.standing()
        paces = paces_of(standing, self.outputs)
        lines = [(line, STYLES.get(line.split()[0], "")) for line in lines_of(standing, paces, rows)] if rows else []
        shown = [(headline(standing, paces), "bold"), *lines]
        return Group(*(Text(line, style, no_wrap=True, overflow="ellipsis") for line, style in shown))


# ----------------------------------------------------------------------------------------------------------- words


def paces_of(standing: Standing, outputs: Path) -> dict[str, Pace]:
    """Of what runs, by place."""
    return {run.place: pace_of(outputs / run.place) for run in standing.running}


def headline(standing: Standing, paces: Mapping[str, Pace]) -> str:
    """`3 of 7 done, 2 running, 2 waiting; about 4 min left`."""
    rest = counted({state: count for state, count in standing.counts.items() if state != "done"})
    text = f"{standing.counts.get('done', 0)} of {standing.total} done{', ' if rest else ''}{rest}"
    left = standing.left(paces, time.time()) if standing.running else None
    return text if left is None else f"{text}; about {duration(left)} left"


def lines_of(standing: Standing, paces: Mapping[str, Pace], most: int) -> list[str]:
    """A table of what runs, then what there is to say of others; so many lines at most."""
    rows = [("run", "step", "images/s", "left")]
    for run in standing.running:
        pace = paces[run.place]
        step = "starting" if pace.step is None else f"{pace.step}/{pace.steps}"
        rate = "" if pace.rate is None else f"{pace.rate * run.batch:,.0f}" if run.batch else f"{pace.rate:.1f} steps"
        rows.append((run.name, step, rate, "" if pace.left is None else duration(pace.left)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines = lines if standing.running else []
    lines += [
        f"{run.state} {run.name}{': ' if run.why else ''}{' '.join(run.why.split())}"
        for run in standing.runs
        if run.state != "running"
    ]
    hidden = len(lines) - most
    return lines if hidden <= 0 else [*lines[: most - 1], f"and {hidden + 1} more"]
