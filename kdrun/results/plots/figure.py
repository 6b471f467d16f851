"""How all pictures look, and how they become files: the same numbers give the same bytes of SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdrun.core.errors import ConfigError
from kdrun.core.files import atomic_path, place_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH = 7.0  # inches; 700 px at the 100 dpi that texts and lines are sized for
DPI = 150  # of PNG
# Okabe and Ito 2008, told apart by all kinds of color vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
NARROW = 3.6  # inches of a picture that fits a small screen or stands beside another
GRAY = "#777777"
STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10, "axes.labelsize": 9.5, "legend.fontsize": 8.5, "legend.frameon": False,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True, "lines.linewidth": 1.7,
    "lines.markersize": 5.5, "savefig.dpi": DPI, "svg.hashsalt": "kdrun",
}  # fmt: skip
_PLAIN: list[dict[str, Any]] = []


@contextmanager
def texts_stay_text() -> Iterator[None]:
    """SVG that is drawn in this block has texts in the fonts of whoever shows it, not outlines of letters."""
    _PLAIN.append({"svg.fonttype": "none"})
    try:
        yield
    finally:
        _PLAIN.pop()


@contextmanager
def drawn(paths: Sequence[Path], height: float, width: float = WIDTH) -> Iterator[Figure]:
    """A figure to draw on, in inches; each path is written, whole, if the block ends well."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE, *_PLAIN]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        for path in paths:
            kind = path.suffix[1:]
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})


def places(default: Path, out: str | None = None) -> list[Path]:
    """The files of a picture: `out`, else PNG and SVG of the name `default`.

    Raises:
        ConfigError: `out` is neither, or lies in no folder.
    """
    if out is None:
        return [default.with_name(f"{default.name}.{kind}") for kind in ("png", "svg")]
    if not out.endswith((".png", ".svg")):
        raise ConfigError(f"out: {out}: write a name that ends in .png or .svg")
    return [place_for(out, "out")]


def told(paths: Sequence[Path]) -> str:
    return "\n".join(f"wrote {path}" for path in paths)


def color(k: int) -> str:
    return COLORS[k % len(COLORS)]


def marker(k: int) -> str:
    """Another one also where the colors begin anew."""
    return MARKERS[(k + k // len(COLORS)) % len(MARKERS)]


def band_alpha(count: int) -> float:
    """Of the bands of so many lines that may lie over each other."""
    return min(0.18, 0.7 / max(count, 1))


def legend(figure: Figure, place: Literal["lower", "upper"] = "lower") -> None:
    """Below or above all panels, in as many columns as fit; a label that several panels have stands once."""
    width = figure.get_figwidth()
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pairs in found for handle, label in zip(*pairs, strict=True)}
    where: Any = f"outside {place} center"
    figure.legend(list(handles.values()), list(handles), loc=where, ncols=legend_columns(list(handles), width))


def legend_columns(labels: Sequence[str], width: float = WIDTH) -> int:
    """A letter is about 0.075 inches wide, what stands beside a label 0.6."""
    each = 0.6 + 0.075 * max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / each)))


def legend_height(labels: Sequence[str]) -> float:
    """Inches."""
    return 0.1 + 0.19 * -(-len(labels) // legend_columns(labels))


def panels(figure: Figure, rows: int = 1, columns: int = 1, **options: Any) -> list[Axes]:
    """Axes row by row."""
    return list(figure.subplots(rows, columns, squeeze=False, **options).flat)
