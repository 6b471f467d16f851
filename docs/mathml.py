"""Equations as MathML, which browsers draw by themselves: nothing is fetched."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    drawn = convert(node.astext(), display="block")
    writer.body.append(f'<div style="margin: 1em 0; overflow-x: auto; overflow-y: hidden">{drawn}</div>')
    raise nodes.SkipNode
