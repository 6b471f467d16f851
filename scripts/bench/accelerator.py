"""What to measure where an accelerator is at hand, within so many minutes: one command, most telling first.

python -m scripts.bench.accelerator minutes=8 device=cuda out=FOLDER data=FOLDER
python -m scripts.bench.accelerator minutes=1 device=cpu out=FOLDER               tiny networks: figures mean nothing
python -m scripts.bench.accelerator minutes=3 out=FOLDER only=plain,graph         some of it

Each item is a process of its own with a cap in seconds, its share of what is left of the minutes: a crash, a hang or an
error of CUDA costs one item. `out` is written after each: accelerator.json and table.txt with all figures, printed.txt
with what the items printed, and at the end records*.tar.gz and predictions*.tar.gz of the runs. They are at most eight
files of at most 16 MiB, as the lent machine sends no more back. `data` is a folder of CIFAR-100 or CIFAR-10, mosaics
(scripts.bench.mosaics) or the published files; without it images are random, and accuracies no result.

On a machine without network but with torch, torchvision and timm the rest travels as wheels:

    sh scripts/bench/wheels.sh .whl                                                          # here
    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl   # there
    PYTHONPATH=/tmp/site python3 -m scripts.bench.accelerator minutes=8 device=cuda out="$OUT"   # there

Exit code: 0 where all items ran, 1 where one failed or none of its time was left, 2 for a mistake in the words.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.core.files import write_json, write_text
from kdrun.runs.record import finite
from kdrun.training.engines.server import server
from scripts.bench.archive import pack
from scripts.bench.item import DONE, OVER, Given, begin, lines_of
from scripts.bench.mps import daemon

KEYS = {"minutes": "8", "device": "cuda", "out": "", "data": "", "only": ""}
RESERVE = 0.03
"""Of all the time, at the end: archives, table."""
SOONER, PART = 2.0, 0.1
"""Seconds before its cap at which an item is asked to stop, but for no more than that part of it."""
LOOK = 60.0
"""Seconds at most to look at the machine, imports and the start of CUDA included."""
TOLD = 3  # last lines of an item that did not end well


@dataclass(frozen=True)
class Item:
    """One thing to measure."""

    name: str
    seconds: float
    """Of 480: its share of the time."""
    work: str
    """`module:function`, called with a `Given`."""
    what: str
    cuda: str = ""
    """Why it needs CUDA, where it does."""
    mps: bool = False
    """Whether it runs under a daemon of CUDA MPS that is started for it."""


ITEMS = (
    Item("correctness", 90, "scripts.bench.checks:check", "tests/gpu: each method beside the CPU, five systems first"),
    Item("plain", 40, "scripts.bench.on_device:plain", "loop beside bare step"),
    Item("graph", 40, "scripts.bench.on_device:graph", "the same with schedule.graph"),
    Item("side", 35, "scripts.bench.side:side", "KD runs side by side"),
    Item("side_mps", 35, "scripts.bench.side:side", "the same under CUDA MPS", "CUDA MPS is for NVIDIA's GPUs", True),
    Item("tuned", 20, "scripts.bench.on_device:tuned", "the loop with cudnn.benchmark", "cudnn is CUDA's"),
    Item("compile", 40, "scripts.bench.on_device:compiled", "the loop with schedule.compile",
         "on a CPU tests/unit tries schedule.compile"),
    Item("cell", 180, "scripts.bench.cell:cell", "a table's cell: teacher, then students side by side"),
)  # fmt: skip
"""Most telling first; the last one has what time is left."""


@dataclass
class Ran:
    """How an item went."""

    item: Item
    state: str
    """done, stopped at its cap, failed, killed, skipped, not reached."""
    why: str = ""
    cap: float = 0.0
    seconds: float = 0.0
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    printed: str = ""

    @property
    def well(self) -> bool:
        return self.state in ("done", "stopped at its cap", "skipped")


def asked(words: Sequence[str], known: Sequence[Item] = ITEMS) -> dict[str, str]:
    """What was given and what was not. Exits where a word is not understood."""
    parser = argparse.ArgumentParser(
        "python -m scripts.bench.accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help=f"key=value; keys: {', '.join(KEYS)}")
    given = dict(word.partition("=")[::2] for word in parser.parse_args(words).words)
    if unknown := [key for key in given if key not in KEYS]:
        parser.error(f"unknown option {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    options = {**KEYS, **given}
    try:
        minutes = float(options["minutes"])
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e4:
        parser.error(f"minutes: {options['minutes']} is no number of minutes above 0")
    if options["device"].partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"device: {options['device']} is neither cpu nor cuda")
    if not options["out"]:
        parser.error("out: missing; the folder for the figures, e.g. out=outputs/accelerator")
    if options["data"] and not Path(options["data"]).is_dir():
        parser.error(f"data: no folder {options['data']}")
    names = [item.name for item in known]
    if unknown := [name for name in options["only"].split(",") if name and name not in names]:
        parser.error(f"only: unknown {unknown[0]!r}; allowed: {', '.join(names)}")
    return options


class Work:
    """The items one after the other.

    Args:
        out: gets the files.
        folder: for what items need while they run; runs of kdrun lie below `folder`/outputs.
        seconds: for all items together.
    """

    def __init__(self, items: Sequence[Item], device: str, data: str, out: Path, folder: Path, seconds: float) -> None:
        self.items, self.device, self.data, self.out, self.folder = items, device, data, out, folder
        self.began, self.seconds = time.monotonic(), seconds
        self.ran: list[Ran] = []
        self.machine: dict[str, Any] = {}

    def run(self) -> None:
        path = self.folder / "machine.jsonl"
        print("looks at the machine", flush=True)
        found = self._child(Item("machine", 0, "scripts.bench.item:describe", ""), min(LOOK, self._left()), path)
        told = [line["machine"] for line in lines_of(path) if "machine" in line]
        self.machine = told[0] if told else {"unknown": found.why or found.state}
        for number, item in enumerate(self.items):
            left = self._left()
            cap = left * item.seconds / sum(other.seconds for other in self.items[number:])
            print(f"{item.name}: {item.what}, at most {cap:.0f} s", flush=True)
            self.ran.append(self._one(item, cap))
            self.write()
            print("\n".join(shown(self.ran[-1])), flush=True)

    def _left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def _one(self, item: Item, cap: float) -> Ran:
        if item.cuda and self.device == "cpu":
            return Ran(item, "skipped", item.cuda)
        if cap < 1:
            return Ran(item, "not reached", "no time was left")
        path, started = self.folder / f"{item.name}.jsonl", time.monotonic()
        if item.mps:
            with daemon(self.folder) as (given, why):
                if why:
                    return Ran(item, "skipped", why)
                ran = self._child(item, cap, path, given)
        else:
            ran = self._child(item, cap, path)
        ran.cap, ran.seconds = cap, time.monotonic() - started
        return ran

    def _child(self, item: Item, cap: float, path: Path, environment: dict[str, str] | None = None) -> Ran:
        """An item in a process of its own, killed with all that it has started."""
        printed, ends = self.folder / f"{item.name}.txt", time.time() + cap
        before = [figure for ran in self.ran for figure in ran.figures]
        given = Given(
            self.device, ends - min(SOONER, PART * cap), self.data, str(self.folder), str(path), before
        )  # fmt: skip
        process = server().Process(
            target=begin, args=(item.work, given, str(printed), environment or {}), name=item.name, daemon=False
        )
        process.start()
        late = True
        try:
            process.join(max(0.0, ends - time.time()))
            late = process.exitcode is None
        finally:
            kill(process)
        return self._told(Ran(item, "done"), process.exitcode, late, path, printed)

    def _told(self, ran: Ran, code: int | None, late: bool, path: Path, printed: Path) -> Ran:
        ran.printed = printed.read_text("utf-8", "replace") if printed.exists() else ""
        planned: list[str] = []
        running = ""
        for line in lines_of(path):
            planned += line.get("planned", [])
            running = line.get("begun", running)
            ran.notes += [line["note"]] if "note" in line else []
            if "failed" in line:
                ran.state, ran.why = "failed", ran.why or line["failed"]
                ran.notes.append(f"failed: {line['failed']}")
            if "what" in line:
                ran.figures.append({"item": ran.item.name, **line})
            if line.keys() & {"what", "failed"}:
                planned = [name for name in planned if name != line.get("of", line.get("what"))]
        ran.missed = planned
        during = f" in {running}" if running in planned else ""
        last = [line for line in ran.printed.splitlines() if line.strip()][-TOLD:]
        if late:
            ran.state, ran.why = "killed", f"at its cap{during}; it had printed: {' | '.join(last) or 'nothing'}"
        elif code == OVER and ran.state == "done":
            ran.state = "stopped at its cap" if ran.figures else "failed"
            ran.why = during.strip() if ran.figures else f"it measured nothing before its cap{during}"
        elif code not in (DONE, OVER):
            told = f"exit code {code}{during}; it had printed: {' | '.join(last) or 'nothing'}"
            ran.state, ran.why = "failed", ran.why or told
        return ran

    def table(self) -> list[str]:
        """Every figure, how each item went, and what was not reached."""
        lines = [*described(self.machine), f"{time.monotonic() - self.began:.0f} of {self.seconds:.0f} s"]
        for ran in self.ran:
            lines += ["", *shown(ran)]
        return lines

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        items = [
            {"name": ran.item.name, "what": ran.item.what, "state": ran.state, "why": ran.why,
             "cap_seconds": round(ran.cap, 1), "seconds": round(ran.seconds, 1), "notes": ran.notes,
             "not_reached": ran.missed, "figures": ran.figures}
            for ran in self.ran
        ]  # fmt: skip
        reached = {ran.item.name for ran in self.ran}
        write_json(self.out / "accelerator.json", finite({
            "machine": self.machine, "device": self.device, "tiny": self.device == "cpu", "seconds": self.seconds,
            "items": items, "not_reached": [item.name for item in self.items if item.name not in reached],
        }))  # fmt: skip
        write_text(self.out / "table.txt", "\n".join(self.table()) + "\n")
        printed = "".join(f"==== {ran.item.name}\n{ran.printed}\n" for ran in self.ran)
        write_text(self.out / "printed.txt", printed[-15 * 2**20 :])


def described(found: dict[str, Any]) -> list[str]:
    """The machine as lines of the table."""
    if "torch" not in found:
        return [f"the machine could not be looked at: {found.get('unknown')}"]
    chip = found.get("accelerator")
    flags = ", ".join(f"{name}: {'yes' if value else 'no'}" for name, value in chip["flags"].items()) if chip else ""
    commit = f", commit {found['commit'][:12]}" if found["commit"] else ""
    return [
        f"{chip['name']}, {chip['memory_gb']} GB, driver {chip['driver']}, CUDA {chip['cuda']}, cudnn {chip['cudnn']}; "
        f"{found['usable_cores']} cores; float32 with {flags}" if chip
        else f"{found['cpu']}, {found['usable_cores']} cores; tiny networks: the figures mean nothing",
        f"torch {found['torch']}, Python {found['python']}{commit}",
    ]  # fmt: skip


def shown(ran: Ran) -> list[str]:
    """An item as lines of the table."""
    took = f", {ran.seconds:.1f} s of {ran.cap:.0f}" if ran.seconds else ""
    why = f": {ran.why}" if ran.why and f"failed: {ran.why}" not in ran.notes else ""
    lines = [f"{ran.item.name} ({ran.item.what}): {ran.state}{took}{why}"]
    for figure in ran.figures:
        values = ", ".join(value_text(name, value, k == 0) for k, (name, value) in enumerate(figure["figures"].items()))
        beside = ", ".join(f"{key} {value}" for key, value in figure["told"].items())
        lines.append(f"  {figure['what']}: {values} [{beside}{'; ' if beside else ''}{figure['seconds']:.1f} s]")
    lines += [f"  {note}" for note in ran.notes]
    return lines + ([f"  not reached: {', '.join(ran.missed)}"] if ran.missed else [])


def value_text(name: str, value: dict[str, Any], whole: bool) -> str:
    """`loop 8.1 ms (8.05 to 8.3)`, or the median alone."""
    low, middle, high = (f"{value[key]:,.4g}" for key in ("min", "median", "max"))
    spread = f" ({low} to {high})" if whole and len(value["values"]) > 1 else ""
    return f"{name} {middle}{' ' + value['unit'] if value['unit'] else ''}{spread}"


def kill(process: Any) -> None:
    """An item and all that it has started: it leads a session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.exitcode is None:
        process.kill()
    process.join()


def main(words: Sequence[str], items: Sequence[Item] = ITEMS) -> int:
    options = asked(words, items)
    seconds = 60 * float(options["minutes"])
    chosen = [item for item in items if not options["only"] or item.name in options["only"].split(",")]
    out = Path(options["out"])
    with tempfile.TemporaryDirectory(prefix="accelerator-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        data = str(Path(options["data"]).resolve()) if options["data"] else ""
        work = Work(chosen, options["device"], data, out, folder, seconds * (1 - RESERVE))
        work.run()
        print("\n".join(pack(folder / "outputs", out)), flush=True)
        print("\n" + "\n".join(work.table()), flush=True)
    return 0 if all(ran.well for ran in work.ran) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
