"""One HTML file that opens from disk without a network: inline CSS, SVG and script; light, dark, on paper.

Without its script it shows the same: what the script adds is sorting, and the choice of two rows.
"""

import base64
import hashlib
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kdrun.results.plots.figure import NARROW, texts_stay_text

STYLE, SCRIPT = (Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
ALLOWED = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
"""What a browser may do with a page: ask for nothing, and run this script and no other."""
# What pictures are drawn with -> what follows the page, light or dark.
COLORS = {
    "#000000": "currentColor", "#ffffff": "var(--bg)", "#e4e4e4": "var(--line)", "#777777": "var(--muted)",
    "#bbbbbb": "var(--bar)", "#0072b2": "var(--blue)", "#d55e00": "var(--red)", "#009e73": "var(--green)",
    "#cc79a7": "var(--pink)", "#e69f00": "var(--gold)", "#56b4e9": "var(--sky)",
}  # fmt: skip
MINUS = "\N{MINUS SIGN}"
Text = str | tuple[str, float | None]
"""HTML of a cell, and by which number it is sorted; None: last."""


def page(title: str, lead: Sequence[str], made: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page. Sections without content are left out; `lead` is text, `made` and content are HTML."""
    kept = [(name, content, anchor(name)) for name, content in sections if content]
    links = "".join(f'<a href="#{place}">{escape(name)}</a>' for name, _, place in kept)
    body = "\n".join(
        f'<section aria-labelledby="{place}"><h2 id="{place}">{escape(name)}</h2>\n{content}\n</section>'
        for name, content, place in kept
    )
    told = "".join(f'<p class="lead">{marked(line)}</p>' for line in lead)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{ALLOWED}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    )
    top = (
        f'<header><h1>{escape(title)}</h1>{told}<p class="made">{made}</p><nav aria-label="Sections">{links}</nav>'
        "</header>"
    )
    whole = (
        f"<head>{head}<style>{STYLE}</style></head>\n<body>{top}\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script></body>"
    )
    return f'<!doctype html>\n<html lang="en">{whole}</html>\n'


def anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def marked(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def signed(text: str) -> str:
    """With minus signs as wide as a plus; hyphens and arrows stay."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", MINUS, text)


def number(value: float, digits: int) -> str:
    return signed(f"{value:.{digits}f}")


def grid(
    label: str, header: Sequence[str], rows: Sequence[Sequence[Text]], numbers: Sequence[int] = (), kind: str = ""
) -> str:
    """A table of texts that are HTML already; the first of each row is its head. A click on a head sorts it.

    Args:
        label: what it is, for those who hear it.
        numbers: columns that are aligned to the right and sorted as numbers.
        kind: its class.
    """
    right = [' class="n"' if i in numbers else "" for i in range(len(header))]
    head = "".join(f'<th scope="col"{right[i]}>{cell}</th>' for i, cell in enumerate(header))
    lines = []
    for row in rows:
        texts = [cell if isinstance(cell, tuple) else (cell, ...) for cell in row]
        cells = "".join(f"<td{right[i]}{sorts(by)}>{text}</td>" for i, (text, by) in enumerate(texts) if i)
        lines.append(f'<tr><th scope="row">{texts[0][0]}</th>{cells}</tr>')
    return wide(label, table(f"<thead><tr>{head}</tr></thead>", lines, kind))


def table(head: str, lines: Sequence[str], kind: str) -> str:
    body = "\n".join(lines)
    return f'<table class="{f"{kind} " if kind else ""}sortable">{head}<tbody>\n{body}\n</tbody></table>'


def sorts(by: Any) -> str:
    """The attribute of a cell that is sorted by this number; ...: by what it shows."""
    return "" if by is ... else f' data-v="{"" if by is None else f"{by:.6g}"}"'


def wide(label: str, table: str) -> str:
    """A table that scrolls by itself where it is wider than the window."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def svg(draw: Callable[[list[Path]], None], title: str) -> str:
    """What `draw` draws, as a figure of a page: its texts are text, its black and white the page's."""
    with tempfile.TemporaryDirectory() as folder, texts_stay_text():
        path = Path(folder) / "figure.svg"
        draw([path])
        text = path.read_text("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = _shorter(text)
    text = re.sub("|".join(COLORS), lambda match: COLORS[match[0]], text)
    # matplotlib's clips and marks have the same ids in all pictures, not always the same content
    kind = ' class="narrow"' if float(text.partition('viewBox="0 0 ')[2].partition(" ")[0]) <= 72 * NARROW else ""
    mark = f"f{zlib.crc32(f'{title}{text}'.encode()):08x}"
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{mark}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return f"<figure{kind}>{text}<figcaption>{escape(title)}</figcaption></figure>"


def _shorter(text: str) -> str:
    """The same picture in the font of the page, without indentation, names that nothing asks for, millionths of a
    pixel: half as many bytes."""
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    asked = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in asked else "", text)
    text = re.sub(r"\s*\n\s*", "\n", text).replace("\nL ", "L").replace("<g>\n</g>", "")
    places = r' (?:d|x|y|x1|x2|y1|y2|points|transform|width|height)="[^"]*"'
    return re.sub(places, lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)
