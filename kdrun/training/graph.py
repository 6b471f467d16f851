"""A plan as a graph: each run once, with those that it needs first; what is done is left out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from pathlib import Path

from kdrun.config.job import Job
from kdrun.config.names import ASKED, kind_of, seed_of, short_names
from kdrun.core.errors import KdrunError
from kdrun.runs.place import settled
from kdrun.runs.record import finished_record

STATES = ("done", "running", "held", "waiting", "failed", "blocked", "left", "pruned")
"""held: another process is at work on it; blocked: what it needs failed; left: beyond the limit; pruned: stopped by a
search, as it promised nothing."""
ENDED = ("done", "failed", "blocked", "left", "pruned")
STUCK = ENDED[1:]  # what needs these is not made
SEEDS = 8  # in one line


class Node:
    """One run of a graph.

    Args:
        role: what another run calls it; `train`: it was asked for.

    Attributes:
        behind: how many runs wait for it, directly or not.
        lacks: how many of those that it needs are not done.
        tries: how often it was started.
        passed: how often another process was found at work on it.
        number: its place in the graph.
    """

    def __init__(self, job: Job, role: str, graph: "Graph") -> None:
        self.job, self.role, self._graph, self._state = job, role, graph, "waiting"
        self.name = self.why = ""
        self.needs: list[Node] = []
        self.followers: list[Node] = []
        self.behind = self.lacks = self.tries = self.passed = self.number = 0

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        before, self._state = self._state, state
        if before != state:
            self._graph.moved(self, before)

    @property
    def directory(self) -> Path:
        return self.job.directory

    @property
    def measures(self) -> bool:
        """Whether there is something to measure of it when it is done."""
        evaluate = self.job.config.evaluate
        return self.role == "train" and (evaluate.corruptions is not None or bool(evaluate.sets))

    def finished(self) -> bool:
        """Whether it is done already, whoever did it, and nothing of it is left to measure."""
        try:
            return not self.measures and finished_record(self.directory) is not None
        except KdrunError:  # whoever makes it anew, or refuses it, says so
            return False


class Graph:
    """The nodes of a plan by directory, in the order in which they were asked for, what they need before them.

    What is done already is in it, but not what only that needed.
    """

    def __init__(self) -> None:
        self.nodes: dict[Path, Node] = {}
        self._states: dict[str, dict[Node, None]] = {state: {} for state in STATES}
        self._ready: list[tuple[int, int, int, Node]] = []
        """What waits for nothing, as a heap; some have begun since."""
        self._bad: list[Node] = []
        """What will not be done; what needs it is not told yet."""

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> "Graph":
        graph = cls()
        for job in jobs:
            graph._node(job, "train")
        nodes = list(graph.nodes.values())
        names = short_names([node.job.config for node in nodes], [node.role for node in nodes])
        for node, name in zip(nodes, names, strict=True):
            node.name = name
        graph._count()
        return graph

    def add(self, job: Job, name: str) -> Node:
        """One more that is asked for, and what it needs; the node that there is, where it is known already."""
        known = len(self.nodes)
        node = self._node(job, "train")
        fresh = list(self.nodes.values())[known:]
        names = short_names([other.job.config for other in fresh], [other.role for other in fresh])
        for other, text in zip(fresh, names, strict=True):
            other.name = name if other is node else text
        self._count()
        return node

    def __len__(self) -> int:
        return len(self.nodes)

    def in_state(self, *states: str) -> list[Node]:
        return [node for state in states for node in self._states[state]]

    def count(self, *states: str) -> int:
        return sum(len(self._states[state]) for state in states)

    def next_ready(self) -> Node | None:
        """What can be made now: first those on which most wait, last those that another process held."""
        while self._ready:
            node = heappop(self._ready)[-1]
            if node.state == "waiting" and not node.lacks:
                return node
        return None

    def moved(self, node: Node, before: str) -> None:
        """A node is in another state."""
        del self._states[before][node]
        self._states[node.state][node] = None
        if node.state == "waiting":
            self._offer(node)
        elif node.state in STUCK:
            self._bad.append(node)
        if "done" in (before, node.state):
            for other in node.followers:
                other.lacks += 1 if before == "done" else -1
                if other.state == "waiting":
                    self._offer(other)

    def block(self) -> list[Node]:
        """Mark what needs a run that failed; what was marked now."""
        found = []
        while self._bad:
            bad = self._bad.pop()
            for node in bad.followers:
                if node.state == "waiting":
                    node.why = f"needs {bad.name}, which {'failed' if bad.state == 'failed' else f'is {bad.state}'}"
                    node.state = "left" if bad.state == "left" else "blocked"
                    found.append(node)
        return found

    def leave(self, limit: int) -> None:
        """Mark what a sweep of so many runs does not come to, as if each was done before the next starts."""
        made: list[Node] = []
        while len(made) < limit and (node := self.next_ready()) is not None:
            node.state = "done"
            made.append(node)
        for node in self.in_state("waiting"):
            node.why, node.state = "beyond the limit", "left"
        for node in made:
            node.state = "waiting"

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state, each state that there is."""
        return {state: len(nodes) for state, nodes in self._states.items() if nodes}

    def picture(self, most: int = 40) -> str:
        """A line for each run that is to be made, those first on which most wait, and below it what waits for it.

        Runs that differ in their seeds alone stand in one line.

        Args:
            most: lines; of what there is beyond them, the number of runs is told.
        """
        todo = [node for node in self.nodes.values() if node.state != "done"]
        lines: list[str] = []
        hidden = 0
        for depth, nodes in _branches(todo):
            if len(lines) < most:
                lines.append("  " * depth + _line(nodes))
            else:
                hidden += len(nodes)
        more = [f"and {hidden} more"] if hidden else []
        needed = sum(node.role != ASKED for node in todo)
        also = f" ({needed} of them because others need it)" if needed else ""
        return "\n".join([*lines, *more, f"{len(self)} runs: {counted(self.counts)}{also}"])

    # --------------------------------------------------------------------------------------------------- private

    def _node(self, job: Job, role: str) -> Node:
        found = self.nodes.get(job.directory)
        if found is not None:
            if role == "train" and found.role != "train":  # asked for, and needed by another one too
                found.role, found.job = role, job
                found.state = "done" if found.finished() else "waiting"
            return found
        node = Node(job, role, self)
        self._states[node.state][node] = None
        if node.finished():
            node.state = "done"
        else:
            self._let_wait(node, [self._node(settled(other), name) for name, other in job.requires.items()])
        self.nodes[job.directory] = node  # behind what it needs
        return node

    def _let_wait(self, node: Node, needs: list[Node]) -> None:
        node.needs = needs
        node.lacks = sum(other.state != "done" for other in needs)
        for other in needs:
            other.followers.append(node)

    def _offer(self, node: Node) -> None:
        if not node.lacks:
            heappush(self._ready, (node.passed, -node.behind, node.number, node))

    def _count(self) -> None:
        """`behind` of each node, by which what is ready is offered."""
        waiting: dict[Node, set[Node]] = {}
        for number, node in reversed(list(enumerate(self.nodes.values()))):
            node.number = number
            own = waiting.get(node, set())
            node.behind = len(own)
            for other in node.needs:
                waiting.setdefault(other, set()).update(own, [node])
        self._ready.clear()
        for node in self._states["waiting"]:
            self._offer(node)


def counted(counts: Mapping[str, int]) -> str:
    """`2 running, 3 waiting`."""
    return ", ".join(f"{count} {state}" for state, count in counts.items())


Branch = tuple[int, list[Node]]


def _branches(nodes: Sequence[Node]) -> Iterator[Branch]:
    """Depth and runs of each line. What needs several runs stands below the last of them."""
    below: dict[Node | None, list[Node]] = {}
    for node in nodes:
        needs = [other for other in node.needs if other.state != "done"]
        below.setdefault(needs[-1] if needs else None, []).append(node)

    def of(parent: Node | None, depth: int) -> Iterator[Branch]:
        groups: dict[object, list[Node]] = {}
        for node in sorted(below.get(parent, ()), key=lambda node: -node.behind):
            alike = (kind_of(node.name), node.state, *map(id, node.needs))
            groups.setdefault(node if node in below else alike, []).append(node)
        for group in groups.values():
            yield depth, group
            yield from of(group[0], depth + 1)

    yield from of(None, 0)


def _line(nodes: Sequence[Node]) -> str:
    """`kd-resnet20-digits-100 s0 s1 s2: waiting`."""
    first = nodes[0]
    seeds = [seed_of(node.name) for node in nodes]
    shown = " ".join(seeds) if len(seeds) <= SEEDS else f"{seeds[0]} … {seeds[-1]} ({len(seeds)} seeds)"
    needs = [other.name for other in first.needs]
    also = f" (needs {', '.join(needs)})" if len(needs) > 1 else ""
    why = f": {first.why}" if first.why else ""
    return f"{kind_of(first.name)} {shown}".rstrip() + f": {first.state}{why}{also}"
