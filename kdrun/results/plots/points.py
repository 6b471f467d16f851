"""What two kinds of pictures are made of: two metrics of each run of a table."""

from pathlib import Path

from kdrun.core.errors import KdrunError
from kdrun.results.cell import value_of
from kdrun.results.fill import planned_records
from kdrun.results.plots.options import TableOptions
from kdrun.runs.metric import Metric, is_percent

Points = list[tuple[float, float]]
NAMES = {"top1": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier score"}


def points_of(options: TableOptions, x: str, y: str, net: str | None = None) -> dict[tuple[str, str], Points]:
    """(row, column) -> (x, y) of each finished run, in percent where tables show percent; no entry where none is done.

    Args:
        net: another network than `options.net`, e.g. `teacher`; what has none is left out.

    Raises:
        KdrunError: no run is done.
    """
    keys = [str(Metric(options.split, net or options.net, metric)) for metric in (x, y)]
    out: dict[tuple[str, str], Points] = {}
    missing = 0
    for row, column, records in planned_records(options.table, Path(options.outputs)):
        done = [record for record in records if record is not None and record["status"] == "done"]
        missing += len(records) - len(done)
        if net is not None:
            done = [record for record in done if keys[0] in record["metrics"]]
        if done:
            out[row, column] = [(scaled(x, value_of(r, keys[0])), scaled(y, value_of(r, keys[1]))) for r in done]
    if not out and net is None:
        raise KdrunError(f"table={options.table}: none of its {missing} runs is done in {options.outputs}")
    return out


def scaled(metric: str, value: float) -> float:
    return 100 * value if is_percent(metric) else value


def axis(metric: str) -> str:
    """`accuracy, %`."""
    return NAMES.get(metric, metric.replace("_", " ")) + (", %" if is_percent(metric) else "")
