"""Tables of many records."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench.harness import report, rounds

TABLE = """
import sys, time
from pathlib import Path
from kdrun.cli import table
from kdrun.results import fill
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.spec import TableConfig

outputs, planned = sys.argv[1], sys.argv[2] == "planned"
if planned:
    names = {name: [f"{name}{i}" for i in range(10)] for name in ("row", "column")}
    spec = TableConfig(
        seeds=list(range(50)), rows={n: [] for n in names["row"]}, columns={n: [] for n in names["column"]}
    )
    def runs(i, j):
        place = f"runs/distill/digits/n{10 * (j + 1)}"
        return [
            PlannedRun(seed=s, place=f"{place}/s{s}-{(10 * i + j) * 50 + s:012x}", net="resnet8", needs={})
            for s in range(50)
        ]
    plan = TablePlan(cells=[
        PlannedCell(row=row, column=column, overrides=[], given_teacher=False, teacher_temperature=1,
                    teacher_as_trained=True, deviations=[], runs=runs(i, j))
        for i, row in enumerate(spec.rows) for j, column in enumerate(spec.columns)
    ])
    fill.table_spec, fill.plan_of = lambda _: spec, lambda *_: plan
started = time.process_time()
text = table.main([f"outputs={outputs}", *(["table=t"] if planned else [])])
assert text.count("(n=50)") == 100
status = Path("/proc/self/status")  # not getrusage, whose maximum begins with that of the process before exec
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: nan"]
most = next(line for line in lines if line.startswith("VmHWM"))
print(time.process_time() - started, float(most.split()[1]) / 1e3)
"""


def bench_tables(size: int = 20_000) -> None:
    """Reading and printing 5,000 records of 20 kB: 10 rows, 10 columns, 50 seeds. CPU time after the imports."""
    path = Path(__file__).resolve().parents[2] / "outputs" / "published" / "mixup_kd_digits" / "records.jsonl"
    base = json.loads(path.read_text().splitlines()[0])
    more = (size - len(json.dumps(base))) // 55
    with tempfile.TemporaryDirectory() as folder:
        for k in range(5000):
            row, column, seed = k // 500, k // 50 % 10, k % 50
            schedule = {**base["config"]["schedule"], "lr": 0.01 * (row + 1)}
            record = {
                **base, "key": f"{k:012x}", "seed": seed, "num_labels": 10 * (column + 1),
                "config": {**base["config"], "seed": seed, "schedule": schedule},
                "metrics": {**base["metrics"], **{f"train/term/some_metric_of_a_name_{i}": i / 7 for i in range(more)}},
            }  # fmt: skip
            place = Path(folder) / "runs" / "distill" / "digits" / f"n{record['num_labels']}" / f"s{seed}-{k:012x}"
            place.mkdir(parents=True)
            (place / "record.json").write_text(json.dumps(record))
        for what in ("found", "planned"):
            command = [sys.executable, "-c", TABLE, folder, what]
            done = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(rounds())]
            seconds, memory = zip(*(map(float, text.split()) for text in done), strict=True)
            report(f"a table of 5,000 records of 20 kB, {what}", list(seconds), "s of CPU")
            report("  most memory of the process", list(memory), "MB")
