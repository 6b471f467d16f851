"""Figures as files: all of them as JSON, the ratios of `step` as a picture."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdrun.core.files import write_json
from kdrun.results.plots.figure import GRAY, color, drawn, legend, panels
from kdrun.runs.record import finite

PANELS = {"loop / bare step": "kdrun's loop / bare step", "peers' loop / loop": "peers' loop (fp32) / kdrun's loop"}
GOAL = 1.02  # of the first
Figures = Sequence[Mapping[str, Any]]


def write(folder: Path, machine: Mapping[str, Any], ran: Mapping[str, Any], figures: Figures) -> list[Path]:
    """bench.json, and bench.svg where there are ratios; what lay there is replaced. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {**ran, "began": datetime.fromtimestamp(ran["began"], UTC).isoformat(timespec="seconds")}
    written = [folder / "bench.json"]
    write_json(written[0], finite({"machine": dict(machine), "ran": asked, "figures": [dict(one) for one in figures]}))
    if any(one.get("kind") in PANELS for one in figures):
        draw(figures, folder / "bench.svg")
        written.append(folder / "bench.svg")
    return written


def draw(figures: Figures, path: Path) -> None:
    """Bars of the median, whiskers from the least to the most: one row a case, one color a precision."""
    ratios = [one for one in figures if one.get("kind") in PANELS]
    precisions = list(dict.fromkeys(one["precision"] for one in ratios))
    rows = {kind: list(dict.fromkeys(one["case"] for one in ratios if one["kind"] == kind)) for kind in PANELS}
    shown = [kind for kind in PANELS if rows[kind]]
    longest = max(len(rows[kind]) for kind in shown)
    with drawn([path], 1.2 + 0.3 * longest) as figure:
        for axes, kind in zip(panels(figure, 1, len(shown)), shown, strict=True):
            start = 1.0 if kind == "loop / bare step" else 0.0
            for one in (one for one in ratios if one["kind"] == kind):
                k = precisions.index(one["precision"])
                place = rows[kind].index(one["case"]) + (k - (len(precisions) - 1) / 2) * 0.8 / len(precisions)
                whiskers = [[one["median"] - one["min"]], [one["max"] - one["median"]]]
                axes.barh(
                    place, one["median"] - start, 0.7 / len(precisions), left=start, color=color(k), xerr=whiskers,
                    error_kw={"elinewidth": 0.9, "ecolor": GRAY, "capsize": 2}, label=one["precision"],
                )  # fmt: skip
            axes.axvline(1.0, color="black", linewidth=0.8)
            if kind == "loop / bare step":
                axes.axvline(GOAL, color=GRAY, linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(rows[kind])), rows[kind])
            axes.invert_yaxis()
            axes.set_title(PANELS[kind])
            axes.grid(axis="y", visible=False)
        legend(figure)
