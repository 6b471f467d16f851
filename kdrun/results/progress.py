"""What of a table is not done yet: states, prerequisites, cost, the commands that make it, and carrying them out."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from kdrun.core.errors import KdrunError
from kdrun.core.paths import conf_words
from kdrun.core.quantities import duration
from kdrun.results.cell import run_name
from kdrun.results.edited import edited_plugins
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan, plan_of
from kdrun.results.spec import table_spec
from kdrun.runs.record import read_record
from kdrun.runs.record import state_of as recorded_state
from kdrun.runs.whole import lacks, told

STATES = ("done", "running", "stopped", "failed", "missing", "damaged")
"""stopped: its record says running, but nobody works on it; the same command goes on from its checkpoint."""


@dataclass
class State:
    """Where one run stands."""

    state: str
    why: str = ""
    seconds: float | None = None
    device: str | None = None


def state_of(directory: Path) -> State:
    try:
        record = read_record(directory)
    except KdrunError as error:
        return State("damaged", str(error))
    if record is None:
        return State("missing")
    if record["status"] == "running":
        return State(recorded_state(directory, record))
    if record["status"] == "done" and record.get("files") is not None and (lost := lacks(directory, record)):
        return State("damaged", f"{told(directory, lost)}; the same command trains it anew")
    why = (record.get("error") or {}).get("message", "")
    return State(record["status"], why, (record.get("seconds") or {}).get("total"), record.get("device"))


@dataclass
class Todo:
    """A plan with the states of its runs; each prerequisite once, those of others first."""

    plan: TablePlan
    states: dict[str, State]
    """By place."""
    needed: dict[str, tuple[str, PlannedRun, list[PlannedCell]]] = field(default_factory=dict)
    """Place -> role, run, the cells that need it."""

    @classmethod
    def of(cls, plan: TablePlan, outputs: Path) -> "Todo":
        todo = cls(plan, {})
        for cell in plan.cells:
            for run in cell.runs:
                for role, other in _prerequisites(run):
                    _, _, cells = todo.needed.setdefault(other.place, (role, other, []))
                    if cell not in cells:
                        cells.append(cell)
        places = [*todo.needed, *(run.place for cell in plan.cells for run in cell.runs)]
        todo.states = {place: state_of(outputs / place) for place in dict.fromkeys(places)}
        return todo

    def undone(self, cell: PlannedCell) -> list[PlannedRun]:
        """Runs of a cell that nobody has made and nobody is making."""
        return [run for run in cell.runs if self.states[run.place].state not in ("done", "running")]

    def to_make(self) -> Iterator[tuple[PlannedCell, list[PlannedRun]]]:
        """The cells with runs of `undone`, each run once: columns may show other figures of the same one.

        Cells whose runs others of the table need (outer runs, say) come first.
        """
        seen: set[str] = set()
        for cell in sorted(self.plan.cells, key=lambda cell: not any(run.place in self.needed for run in cell.runs)):
            runs = [*{run.place: run for run in self.undone(cell) if run.place not in seen}.values()]
            seen.update(run.place for run in runs)
            if runs:
                yield cell, runs

    def wanted(self) -> list[PlannedRun]:
        """Prerequisites that undone runs need and that are no cell's own run, in the order of building."""
        own = {run.place for cell in self.plan.cells for run in cell.runs}
        needs = {
            other.place for cell in self.plan.cells for run in self.undone(cell) for _, other in _prerequisites(run)
        }
        return [
            run
            for place, (_, run, _) in self.needed.items()
            if place in needs - own and self.states[place].state not in ("done", "running")
        ]

    def estimate(self, cell: PlannedCell) -> tuple[float, str] | None:
        """Seconds of one run and whose they are: the mean of finished ones of the cell, else of row, else of column."""
        alike = {
            "cell": [cell],
            "row": [other for other in self.plan.cells if other.row == cell.row],
            "column": [other for other in self.plan.cells if other.column == cell.column],
        }
        for name, cells in alike.items():
            done = [self.states[run.place] for other in cells for run in other.runs]
            known = [state.seconds for state in done if state.state == "done" and state.seconds is not None]
            if known:
                return mean(known), name
        return None

    def estimate_needed(self, place: str) -> float | None:
        """As `estimate`, from finished prerequisites of the same role and network."""
        role, run, _ = self.needed[place]
        alike = [self.states[p] for p, (r, other, _) in self.needed.items() if (r, other.net) == (role, run.net)]
        known = [state.seconds for state in alike if state.state == "done" and state.seconds is not None]
        return mean(known) if known else None


def _prerequisites(run: PlannedRun) -> Iterator[tuple[str, PlannedRun]]:
    """Everything that a run needs, what others need first."""
    for role, other in run.needs.items():
        yield from _prerequisites(other)
        yield role, other


def progress_text(name: str, outputs: Path, overrides: Sequence[str], commands: bool) -> str:
    """The plan of a table in words, with the commands that make what is missing if `commands`."""
    todo = Todo.of(plan_of(name, table_spec(name), outputs), outputs)
    lines = [f"plan of table={name}, in {outputs}", *_cells(todo)]
    own = {run.place for cell in todo.plan.cells for run in cell.runs}
    if todo.needed:
        lines += ["", "needed first, each made once:"]
    for place, (role, run, cells) in todo.needed.items():
        state, shared = todo.states[place], f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
        took = f", {duration(state.seconds)}" if state.state == "done" and state.seconds is not None else ""
        also = ", a run of the table itself" if place in own else ""
        lines.append(f"  {role} {run.net} ({run_name(Path(place))}): {state.state}{took}, for {shared}{also}")
    lines += ["", *_cost(todo)]
    lines += [f"{s.state}: {outputs / place}: {s.why}" for place, s in todo.states.items() if s.why]
    missing = [run for cell in todo.plan.cells for run in cell.runs if todo.states[run.place].state == "missing"]
    lines += edited_plugins(todo.plan, missing, outputs)
    if commands:
        made = commands_of(todo, outputs, overrides)
        lines += ["", *(made or ["# nothing is missing"])]
    return "\n".join(lines)


def _cells(todo: Todo) -> list[str]:
    rows = list(dict.fromkeys(cell.row for cell in todo.plan.cells))
    columns = list(dict.fromkeys(cell.column for cell in todo.plan.cells))
    found: dict[tuple[str, str], list[str]] = {}  # of all candidates, where a row is tuned
    for cell in todo.plan.cells:
        states = [todo.states[run.place].state for run in cell.runs]
        found.setdefault((cell.row, cell.column), []).extend(states)

    def text(states: list[str]) -> str:
        rest = [f"{states.count(name)} {name}" for name in STATES[1:] if name in states]
        return ", ".join([f"{states.count('done')}/{len(states)} done", *rest])

    grid = [["", *columns], *([row, *(text(found[row, column]) for column in columns)] for row in rows)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    return ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in grid]


def _cost(todo: Todo) -> list[str]:
    """Estimated time of what is missing, from finished runs alone."""
    total, count, behind = 0.0, 0, Counter[str]()
    for cell, runs in todo.to_make():
        seconds, name = todo.estimate(cell) or (0.0, "")
        total, count = total + seconds * len(runs), count + len(runs)
        behind[name] += len(runs)
    for run in todo.wanted():
        needed, count = todo.estimate_needed(run.place), count + 1
        total += needed or 0.0
        behind["" if needed is None else "kind"] += 1
    if not count:
        return ["nothing is missing"]
    devices = sorted({s.device for s in todo.states.values() if s.state == "done" and s.device})
    unknown = behind.pop("", 0)
    by = ", ".join(f"{n} by the same {name}" for name, n in behind.items())
    known = f"about {duration(total)} one after the other, as finished runs took on {', '.join(devices)} ({by})"
    rest = f"{unknown} of them without an estimate (no finished run of the kind)" if unknown else ""
    return [f"{count} runs to make: {'; '.join(filter(None, [known if unknown < count else '', rest]))}"]


def commands_of(todo: Todo, outputs: Path, extra: Sequence[str]) -> list[str]:
    """The command lines that make what is missing, one for each set of overrides, its seeds as a sweep."""
    return [shlex.join(["python", "-m", "kdrun.train", *arguments]) for arguments in arguments_of(todo, outputs, extra)]


def arguments_of(todo: Todo, outputs: Path, extra: Sequence[str]) -> list[list[str]]:
    """One command line for each cell of `Todo.to_make`, without the program."""
    out = []
    for cell, runs in todo.to_make():
        seeds = [run.seed for run in runs]
        place = [] if outputs == Path("outputs") else [f"execution.outputs={outputs}"]
        words = [*cell.overrides, f"seed={','.join(map(str, seeds))}", *place, *extra]
        out.append([*conf_words(), *(["-m"] if len(seeds) > 1 or extra else []), *words])
    return out
