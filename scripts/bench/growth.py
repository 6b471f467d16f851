"""Whether what a step, a run and a folder cost grows as it should: not at all, or with what there is to do.

python -m scripts.bench growth                        all but the long ones
python -m scripts.bench.growth soak=100000            the memory of one run, a line for every 10,000 steps
python -m scripts.bench.growth files=1281167          start of a run on so many image files, made for it in $TMPDIR
python -m scripts.bench.growth records=5000,50000     status, table and plan of so many records
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kdrun.config.compose import Composer
from kdrun.data.images import list_classes
from kdrun.training.assembly import Assembly
from kdrun.training.loop import Loop
from kdrun.training.tracking import Tracking
from scripts.bench.harness import report, rounds, write_random_images

TINY = ["method=supervised", "loss=ce", "student=resnet8", "student.args.width=4", "schedule.batch_size=16"]
STEPS = 400
EDGE = 100  # steps at either end of a run


def bench_growth() -> None:
    _bench_dataset()
    _bench_length()
    _bench_evaluations()
    records([500, 5000])
    files(10_000)
    files(100_000)


class Watched:
    """A loader that notes when each batch is asked for."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.times: list[float] = []

    def batch(self, step: int) -> Any:
        self.times.append(time.process_time())  # not the clock: other work may run beside
        return self.loader.batch(step)

    def close(self) -> None:
        self.loader.close()

    def steps(self) -> list[float]:
        """Seconds of CPU between two batches."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


class Runs:
    """Runs of kdrun's loop on random images, without what comes before and after it.

    Args:
        count: training images of 32 pixels.
    """

    def __init__(self, *overrides: str, steps: int, count: int = 5_000) -> None:
        self.steps = steps
        self._folder = tempfile.TemporaryDirectory()
        data = write_random_images(Path(self._folder.name) / "d.npz", count, 32)
        with Composer() as composer:
            self.config = composer.typed([
                *data, *TINY, "tracker=none", f"schedule.steps={steps}", f"execution.outputs={self._folder.name}",
                "execution.progress=false", "execution.device=cpu", "execution.threads=1", "dataset.val_fraction=0",
                *overrides,
            ])  # fmt: skip
        self.first = Assembly.of(self.config)

    def run(self, tracker: Tracking | None = None) -> list[float]:
        """Seconds of CPU of each step of a whole run."""
        made = Assembly.of(self.config)
        made.arrays, made.split = self.first.arrays, self.first.split
        watched: Any = Watched(made.loader) if tracker is None else made.loader  # what it notes would count as memory
        directory = Path(tempfile.mkdtemp(dir=self._folder.name))
        given: Any = (made.method, watched, made.evaluator, made.clock, directory, tracker or Tracking(), "bench")
        try:
            Loop(*given).run()
            return watched.steps() if tracker is None else []
        finally:
            watched.close()


def _bench_dataset() -> None:
    few, many = (Runs(steps=STEPS, count=count) for count in (5_000, 50_000))
    _report_pairs("a step with 5,000 images", "50,000 / 5,000 images", few, many)


def _bench_length() -> None:
    runs, ratios = Runs(steps=10 * STEPS), []
    for _ in range(rounds()):
        steps = runs.run()[1:]  # the first one warms up
        ratios.append(statistics.median(steps[-EDGE:]) / statistics.median(steps[:EDGE]))
    report(f"the last / the first {EDGE} of {10 * STEPS} steps", ratios, "")


def _bench_evaluations() -> None:
    rare, often = (Runs(f"schedule.eval_every_steps={every}", steps=STEPS) for every in (STEPS, 10))
    # one step in ten of the latter is followed by an evaluation: the median is of one that is not
    _report_pairs("a step of a run with 1 evaluation", f"{STEPS // 10} / 1 evaluations", rare, often)


def _report_pairs(first: str, ratio: str, one: Runs, other: Runs) -> None:
    one.run(), other.run()
    pairs = [(statistics.median(one.run()), statistics.median(other.run())) for _ in range(rounds())]
    report(first, [1e3 * a for a, _ in pairs], "ms of CPU")
    report(f"  {ratio}", [b / a for a, b in pairs], "")


# ------------------------------------------------------------------------------------------------------- memory


class Resident(Tracking):
    """Prints the memory of this process as a run goes on."""

    every = 10_000

    def __init__(self) -> None:
        self.began, self.seen = time.perf_counter(), [(0, resident())]

    def log(self, step: int, values: Any) -> None:
        if step % self.every == 0 and step > self.seen[-1][0]:
            self.seen.append((step, resident()))
            print(
                f"{step:>9,} steps  {self.seen[-1][1]:8.2f} MB  {time.perf_counter() - self.began:7.1f} s", flush=True
            )


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(steps: int) -> None:
    """One run of a tiny network, with an evaluation and a checkpoint every 1,000 steps and an averaged copy."""
    runs = Runs(
        "student.args.width=2", "schedule.batch_size=4", "schedule.ema_decay=0.99", "schedule.eval_every_steps=1000",
        "execution.checkpoint_every_steps=1000", "execution.threads=1", steps=steps,
    )  # fmt: skip
    seen = Resident()
    seen.every = min(Resident.every, max(steps // 10, 1))
    print(f"{'before':>9}        {seen.seen[0][1]:8.2f} MB", flush=True)
    runs.run(seen)
    half = seen.seen[len(seen.seen) // 2 :]
    grown = (half[-1][1] - half[0][1]) / max(half[-1][0] - half[0][0], 1)
    print(f"second half: {1e6 * grown:.1f} bytes a step")


# ------------------------------------------------------------------------------------------------------ records


MOST = """
import sys, time
from pathlib import Path

def most_memory():  # not getrusage, whose maximum begins with that of the process before exec
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ["VmHWM: nan"]
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3
"""
READ = """
from kdrun.cli import status, table
from kdrun.results import progress
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.spec import TableConfig

outputs, what, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if what == "plan":
    names = {name: [f"{name}{i}" for i in range(10)] for name in ("row", "column")}
    seeds = range(count // 100)
    spec = TableConfig(seeds=list(seeds), rows={n: [] for n in names["row"]}, columns={n: [] for n in names["column"]})
    teacher = PlannedRun(seed=0, place="runs/distill/digits/n10/s0-000000000000", net="resnet8", needs={})
    def cell(row, column, i, j):
        place = f"runs/distill/digits/n{10 * (j + 1)}"
        runs = [
            PlannedRun(seed=s, place=f"{place}/s{s}-{(10 * i + j) * len(seeds) + s:012x}", net="resnet8",
                       needs={"teacher": teacher})
            for s in seeds
        ]
        return PlannedCell(row=row, column=column, overrides=[], given_teacher=False, teacher_temperature=1,
                           teacher_as_trained=True, deviations=[], runs=runs)
    plan = TablePlan(cells=[cell(r, c, i, j) for i, r in enumerate(spec.rows) for j, c in enumerate(spec.columns)])
    progress.table_spec, progress.plan_of = lambda _: spec, lambda *_: plan
started, cpu = time.perf_counter(), time.process_time()
if what == "status":
    text = status.main([f"outputs={outputs}"])
    assert f"{count} runs in " in text, text[-200:]
elif what == "table":
    text = table.main([f"outputs={outputs}"])
    assert text.count(f"(n={count // 100})") == 100, text[:400]
else:
    text = progress.progress_text("t", outputs, [], commands=True)
    assert text.count(f"{count // 100}/{count // 100} done") == 100, text[:400]
print(time.perf_counter() - started, time.process_time() - cpu, most_memory())
"""


def records(counts: list[int]) -> None:
    """Reading records as they are published: 10 rows, 10 columns, the rest seeds. After the imports."""
    path = Path(__file__).resolve().parents[2] / "outputs" / "published" / "mixup_kd_digits" / "records.jsonl"
    base = json.loads(path.read_text().splitlines()[0])
    for count in counts:
        seeds = count // 100
        with tempfile.TemporaryDirectory() as folder:
            for k in range(100 * seeds):
                row, column, seed = k // seeds // 10, k // seeds % 10, k % seeds
                schedule = {**base["config"]["schedule"], "lr": 0.01 * (row + 1)}
                config = {**base["config"], "seed": seed, "schedule": schedule}
                record = {**base, "key": f"{k:012x}", "seed": seed, "num_labels": 10 * (column + 1), "config": config}
                place = Path(folder) / "runs" / "distill" / "digits" / f"n{record['num_labels']}" / f"s{seed}-{k:012x}"
                place.mkdir(parents=True)
                (place / "record.json").write_text(json.dumps(record))
            for what in ("status", "table", "plan"):
                command = [sys.executable, "-c", MOST + READ, folder, what, str(100 * seeds)]
                done = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
                wall, cpu, memory = zip(*(map(float, text.split()) for text in done), strict=True)
                report(f"{what} of {100 * seeds:,} records", list(wall), "s")
                report("  of that, a thousand records", [1e3 * t / (100 * seeds) for t in cpu], "s of CPU")
                report("  most memory", list(memory), "MB")


# -------------------------------------------------------------------------------------------------------- files


LIST = """
import kdrun.training.assembly
from kdrun.config.compose import Composer
from kdrun.data.found import found
from kdrun.data.load import content_of, load_dataset

root, outputs, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with Composer() as composer:
    config = composer.typed([
        "dataset=imagenet", f"dataset.root={root}", "dataset.size=224", "dataset.stream=true", "method=supervised",
        "loss=ce", f"execution.outputs={outputs}",
    ])
started, cpu = time.perf_counter(), time.process_time()
known = found(config.dataset, outputs)
listed = time.perf_counter() - started
arrays = load_dataset(config.dataset, outputs)
assert len(arrays.train_labels) == count
assert content_of(config.dataset, outputs) is not None
print(listed, time.perf_counter() - started, time.process_time() - cpu, most_memory())
"""


def files(count: int) -> None:
    """What the start of a run takes for so many image files of 1,000 classes whose content is remembered.

    The files are empty: nothing reads them. There are 1,000 or a 25th as many test images.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, outputs = Path(folder) / "data", Path(folder) / "outputs"
        for split, size in (("train", count), ("val", max(count // 25, 1000))):
            for number in range(1000):
                place = root / split / f"n{number:08d}"
                place.mkdir(parents=True)
                for k in range(number, size, 1000):
                    os.close(os.open(place / f"n{number:08d}_{k}.JPEG", os.O_CREAT | os.O_WRONLY))
        started = time.perf_counter()
        list_classes(root / "train")
        report(f"{count:,} files by os.scandir", [time.perf_counter() - started], "s")
        command = [sys.executable, "-c", MOST + LIST, str(root), str(outputs), str(count)]
        subprocess.run(command, check=True, capture_output=True, text=True)  # reads the files for their hash
        done = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
        listed, whole, cpu, memory = zip(*(map(float, text.split()) for text in done), strict=True)
        report("  found and compared with what is remembered", list(listed), "s")
        report("  and their labels, names and content", list(whole), "s")
        report("  of that, a thousand files", [1e3 * t / count for t in cpu], "s of CPU")
        report("  most memory", list(memory), "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="soak=<steps>, files=<count>, records=<count>,<count>; default: all")
    for word in parser.parse_args().what or [""]:
        name, _, value = word.partition("=")
        if not word:
            bench_growth()
        elif name == "soak":
            soak(int(value))
        elif name == "files":
            files(int(value))
        elif name == "records":
            records([int(count) for count in value.split(",")])
        else:
            parser.error(f"{word}: expected soak=<steps>, files=<count> or records=<count>,<count>")


if __name__ == "__main__":
    main()
