"""A report of each published table for the documentation site, and the table that links them.

python scripts/gallery.py out=docs/_build/reports      the reports alone; what is newer than its records is left
Sphinx: "scripts.gallery" among its extensions writes them into <site>/reports and fills docs/results/gallery.md.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.table import main as table
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.published import PACKED, PLAIN, Published, is_published, published_reader, read_published
from kdrun.results.spec import about
from kdrun.runs.record import Record

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = Path("outputs/published")
MARK = "<!-- gallery -->"


class Options(Schema):
    out: str


@dataclass(frozen=True)
class Entry:
    """A line of the gallery."""

    name: str
    title: str
    metric: str
    scale: str
    date: str
    """Of the commit that published it; "": not known."""

    def line(self) -> str:
        title = "" if self.title == self.name else f"<br>{escape(self.title)}"
        link = f'<a href="../reports/{self.name}.html">{escape(self.name)}</a>{title}'
        return f"| {' | '.join(text.replace('|', '&#124;') for text in (link, self.metric, self.scale, self.date))} |"


def folders() -> list[Path]:
    """Of published tables, relative to the repository."""
    with chdir(ROOT):
        return sorted(place for place in PUBLISHED.iterdir() if is_published(place))


def entries() -> Iterator[Entry]:
    with chdir(ROOT):
        for place in folders():
            told, read = read_published(place), published_reader(place)
            records = [read(run.place) for cell in told.plan.cells for run in cell.runs]
            done = [record for record in records if record is not None and record["status"] == "done"]
            yield Entry(place.name, _title(place), f"`{told.shows[0].metric}`", _scale(told, done), _date(place))


def markdown() -> str:
    return "\n".join(["| table | metric | scale | published |", "|---|---|---|---|", *(e.line() for e in entries())])


def write(out: Path) -> list[Path]:
    """The reports that are not there yet, or older than what they are made of."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with chdir(ROOT):
        code = max(path.stat().st_mtime for path in (ROOT / "kdrun" / "results").rglob("*.*"))
        for place in folders():
            page = out / f"{place.name}.html"
            newest = max(code, *(path.stat().st_mtime for path in place.iterdir()))
            if not page.is_file() or page.stat().st_mtime < newest:
                table([f"outputs={place}", "format=html", f"out={page}"])
                written.append(page)
    return written


def setup(app: Any) -> dict[str, bool]:
    """As an extension of Sphinx. `-D gallery=0`: without the reports, for a build that nobody reads."""
    app.add_config_value("gallery", True, "html", bool)
    app.connect("source-read", _fill)
    app.connect("build-finished", _reports)
    return {"parallel_read_safe": True}


def _fill(app: Any, page: str, source: list[str]) -> None:
    if page == "results/gallery":
        source[0] = source[0].replace(MARK, markdown())


def _reports(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html" and app.config.gallery:
        write(Path(app.outdir) / "reports")


def _title(place: Path) -> str:
    """The heading of its table.md, else the first sentence of its YAML file, else its name."""
    page = place / "table.md"
    first = page.read_text("utf-8").partition("\n")[0] if page.is_file() else ""
    sentence = about(place.name).partition(". ")[0].partition(": ")[0].rstrip(".")
    return first.removeprefix("# ") if first.startswith("# ") else sentence or place.name


def _scale(told: Published, records: list[Record]) -> str:
    """`4 x 1 cells, 3 seeds, 12 runs: resnet8 on digits, 300 steps`."""
    rows, columns = ({getattr(cell, name) for cell in told.plan.cells} for name in ("row", "column"))
    seeds = len({record["seed"] for record in records})
    nets = sorted({str(net.get("model")) for record in records for net in record["nets"].values()})
    data = sorted({record["dataset"] for record in records})
    steps = sorted({record["steps"] for record in records if record.get("steps")})
    spread = f"{steps[0]:,}" if len(set(steps)) == 1 else f"{steps[0]:,} to {steps[-1]:,}" if steps else ""
    size = f"{len(rows)} x {len(columns)} cells, {seeds} seed{'s' if seeds > 1 else ''}, {len(records)} runs"
    what = f"{_few(nets)} on {_few(data)}"
    return f"{size}: {what}{f', {spread} steps' if spread else ''}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _date(place: Path) -> str:
    asked = ["git", "log", "-1", "--format=%cs", "--", *(str(place / name) for name in (PLAIN, PACKED))]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


if __name__ == "__main__":
    pages = write(Path(from_arguments(Options, sys.argv[1:]).out))
    print("\n".join(f"wrote {page}" for page in pages) or "all are as new as their records")
