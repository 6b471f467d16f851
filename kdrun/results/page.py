"""One HTML file that opens from disk without a network: inline CSS, inline SVG, no scripts; light, dark, on paper."""

import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from kdrun.results.plots.figure import texts_stay_text

CSS = """
:root { color-scheme: light dark; --bg: #fff; --ink: #1b1b1b; --muted: #5c5c5c; --line: #dedede; --soft: #f5f5f3;
  --bar: #bbb; --good: #00664a; --bad: #a83200; --warn: #7a4b00; --link: #0a58a5; }
@media (prefers-color-scheme: dark) { :root { --bg: #16181b; --ink: #e6e6e3; --muted: #a3a6ab; --line: #363a40;
  --soft: #1f2226; --bar: #555b63; --good: #5fd3ac; --bad: #ff9d7a; --warn: #f0c069; --link: #8ec5ff; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--bg); margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 60rem; } a { color: var(--link); } .lead { color: var(--muted); }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .93rem; }
.wide { overflow-x: auto; margin: .6rem 0; } .wide:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .34rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom;
  font-weight: 600; }
tbody tr:last-child > * { border-bottom: 2px solid var(--ink); } tbody th { font-weight: 500; }
tbody tr:hover > * { background: var(--soft); }
th:first-child { position: sticky; left: 0; background: var(--bg); max-width: 22rem; min-width: 7rem;
  overflow-wrap: break-word; }
.main th:first-child { padding-left: .1rem; } td.n { text-align: right; white-space: nowrap; }
thead th.n { text-align: right; min-width: 5rem; } .keys td { max-width: 17rem; overflow-wrap: break-word; }
.keys th:first-child { max-width: none; white-space: nowrap; }
small, .note, .spread, .paper { color: var(--muted); } .paper, .flag { display: block; font-size: .86rem; }
.count { font-size: .8rem; margin-left: .3rem; text-decoration: none; } .flag, .none { color: var(--warn); }
.published > * { font-style: italic; color: var(--muted); } .good { color: var(--good); } .bad { color: var(--bad); }
.notes { list-style: lower-alpha; margin: .6rem 0; padding-left: 1.6rem; max-width: 64rem; font-size: .92rem; }
.notes li { margin: .2rem 0; }
sup { font-size: .7em; line-height: 0; } code { font: .86em/1.4 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.2rem; }
figure { margin: .4rem 0; min-width: 0; break-inside: avoid; } figcaption { color: var(--muted); font-size: .9rem; }
figure svg { display: block; width: 100%; max-width: 47rem; height: auto; } svg text { fill: currentColor; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 3rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .3rem .5rem; } th:first-child { max-width: 9.5rem; min-width: 6rem; }
  .keys th:first-child { min-width: 9rem; white-space: normal; }
  figure { overflow-x: auto; } figure svg { min-width: 30rem; } }
@media print { :root { --bg: #fff; --ink: #000; --muted: #444; --line: #ccc; --soft: #fff; --bar: #bbb; --good: #00664a;
  --bad: #a83200; --warn: #7a4b00; --link: #000; } body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; } .wide { overflow: visible; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } .keys td { max-width: none; } a { text-decoration: none; } }
"""
# What pictures are drawn with -> what follows the page, light or dark.
COLORS = {
    "#000000": "currentColor", "#ffffff": "var(--bg)", "#e4e4e4": "var(--line)", "#777777": "var(--muted)",
    "#bbbbbb": "var(--bar)",
}  # fmt: skip


def page(title: str, lead: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """A whole page. Sections without content are left out; `lead` is text, content is HTML."""
    kept = [(name, content, anchor(name)) for name, content in sections if content]
    links = "".join(f'<a href="#{place}">{escape(name)}</a>' for name, _, place in kept)
    body = "\n".join(
        f'<section aria-labelledby="{place}"><h2 id="{place}">{escape(name)}</h2>\n{content}\n</section>'
        for name, content, place in kept
    )
    told = "".join(f'<p class="lead">{escape(line)}</p>' for line in lead)
    nothing_else = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{nothing_else}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    )
    top = f'<header><h1>{escape(title)}</h1>{told}<nav aria-label="Sections">{links}</nav></header>'
    page = f"<head>{head}<style>{CSS}</style></head>\n<body>{top}\n<main>\n{body}\n</main></body>"
    return f'<!doctype html>\n<html lang="en">{page}</html>\n'


def anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def grid(
    label: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), kind: str = ""
) -> str:
    """A table of texts that are HTML already; the first of each row is its head.

    Args:
        label: what it is, for those who hear it.
        numbers: columns that are aligned to the right.
    """
    right = [' class="n"' if i in numbers else "" for i in range(len(header))]
    head = "".join(f'<th scope="col"{right[i]}>{cell}</th>' for i, cell in enumerate(header))
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{right[i]}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return wide(
        label, f"<table{kind and f' class={kind!r}'}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    )


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
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", text)
    text = re.sub("|".join(COLORS), lambda match: COLORS[match[0]], text)
    # matplotlib's clips and marks have the same ids in all pictures, not always the same content
    mark = f"f{zlib.crc32(f'{title}{text}'.encode()):08x}"
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{mark}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return f"<figure>{text}<figcaption>{escape(title)}</figcaption></figure>"
