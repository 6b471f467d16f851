"""A plan as a graph: each run once, with those that it needs first; what is done is left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.config.job import Job
from kdrun.config.names import short_names
from kdrun.core.errors import KdrunError
from kdrun.runs.place import settled
from kdrun.runs.record import finished_record

STATES = ("done", "running", "held", "waiting", "failed", "blocked", "left", "pruned")
"""held: another process is at work on it; blocked: what it needs failed; left: beyond the limit; pruned: stopped by a
search, as it promised nothing."""
ENDED = ("done", "failed", "blocked", "left", "pruned")


@dataclass(eq=False)
class Node:
    """One run.

    Args:
        role: what another run calls it; `train`: it was asked for.
        behind: how many runs wait for it, directly or not.
        tries: how often it was started.
        passed: how often another process was found at work on it.
    """

    job: Job
    role: str
    needs: list["Node"] = field(default_factory=list)
    name: str = ""
    behind: int = 0
    state: str = "waiting"
    why: str = ""
    tries: int = 0
    passed: int = 0

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

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> "Graph":
        graph = cls()
        for job in jobs:
            graph._node(job, "train")
        nodes = list(graph.nodes.values())
        for node, name in zip(nodes, short_names([node.job.config for node in nodes]), strict=True):
            node.name = name
        graph._count()
        return graph

    def add(self, job: Job, name: str) -> Node:
        """One more that is asked for, and what it needs; the node that there is, where it is known already."""
        known = len(self.nodes)
        node = self._node(job, "train")
        fresh = list(self.nodes.values())[known:]
        for other, text in zip(fresh, short_names([other.job.config for other in fresh]), strict=True):
            other.name = name if other is node else text
        self._count()
        return node

    def __len__(self) -> int:
        return len(self.nodes)

    def in_state(self, *states: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.state in states]

    def ready(self) -> list[Node]:
        """What can be made now, first those on which most wait, last those that another process held."""
        nodes = [n for n in self.in_state("waiting") if all(other.state == "done" for other in n.needs)]
        return sorted(nodes, key=lambda node: (node.passed, -node.behind))

    def block(self) -> list[Node]:
        """Mark what needs a run that failed; what was marked now."""
        found = []
        for node in self.in_state("waiting"):  # what a node needs stands before it
            bad = next((other for other in node.needs if other.state in ("failed", "blocked", "left", "pruned")), None)
            if bad is not None:
                node.state = "left" if bad.state == "left" else "blocked"
                node.why = f"needs {bad.name}, which {'failed' if bad.state == 'failed' else f'is {bad.state}'}"
                found.append(node)
        return found

    def picture(self) -> str:
        """A line for each run, below it what waits for it."""
        return "\n".join(_lines(self.nodes.values()))

    # --------------------------------------------------------------------------------------------------- private

    def _node(self, job: Job, role: str) -> Node:
        found = self.nodes.get(job.directory)
        if found is not None:
            if role == "train" and found.role != "train":  # asked for, and needed by another one too
                found.role, found.job = role, job
                found.state = "done" if found.finished() else "waiting"
            return found
        node = Node(job, role)
        if node.finished():
            node.state = "done"
        else:
            node.needs = [self._node(settled(other), name) for name, other in job.requires.items()]
        self.nodes[job.directory] = node
        return node

    def _count(self) -> None:
        """`behind` of each node."""
        waiting: dict[Node, set[Node]] = {}
        for node in reversed(list(self.nodes.values())):
            own = waiting.get(node, set())
            node.behind = len(own)
            for other in node.needs:
                waiting.setdefault(other, set()).update(own, [node])


def _lines(nodes: Iterable[Node]) -> Iterator[str]:
    nodes = list(nodes)
    below: dict[Node, list[Node]] = {}
    for node in nodes:
        for other in node.needs:
            below.setdefault(other, []).append(node)

    def told(node: Node, depth: int) -> Iterator[str]:
        others: Sequence[Node] = [other for other in node.needs if len(node.needs) > 1]
        also = f" (needs {', '.join(other.name for other in others)})" if others else ""
        role = "" if node.role == "train" else f"{node.role} "
        yield f"{'  ' * depth}{role}{node.name}: {node.state}{also}"
        for other in below.get(node, []):
            if other.needs[-1] is node:  # each once, below the last that it needs
                yield from told(other, depth + 1)

    for node in nodes:
        if not node.needs:
            yield from told(node, 0)
