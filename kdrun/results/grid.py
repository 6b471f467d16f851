"""Columns of a table that are written once for all values of a grid."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

Values = Mapping[str, Sequence[str | int]]
"""Name -> what stands in the place of `<name>`."""


def spread_out(node: Mapping[str, Any]) -> dict[str, Any]:
    """The content of conf/table/<name>.yaml with each column that its `grid` stands for, and an empty grid.

    `<dataset> <k>-shot: [experiment=dho/<dataset>, dataset.num_labels=<k>/class]` is a column for each pair. A column
    that is written out wins over the one of this name that the grid gives. Aggregates are spread by their names, and
    what they average by what is left. What has no such form is left to the schema.

    Raises:
        ValueError: a name of the grid is used nowhere, or in a column's words alone; a value is there twice.
    """
    grid: Any = node.get("grid")
    columns: Any = node.get("columns")
    aggregates: Any = node.get("aggregates", {})
    if not (grid and _is_grid(grid) and _is_lists(columns) and _is_lists(aggregates)):
        return dict(node)
    for name, values in grid.items():
        if not values or len(set(map(str, values))) < len(values):
            raise ValueError(f"grid: {name}: {'a value is there twice' if values else 'give it a value or more'}")
        if not any(f"<{name}>" in column for column in columns):
            raise ValueError(f"grid: {name}: no column has <{name}> in its name")
    given: dict[str, list[str]] = {}
    for column, words in columns.items():
        if _used(column, grid):
            if missing := [name for name in _used(" ".join(words), grid) if name not in _used(column, grid)]:
                raise ValueError(f"columns: {column}: has <{missing[0]}> in its words, but not in its name")
            given |= dict(_each(column, words, grid))
    given |= {column: words for column, words in columns.items() if not _used(column, grid)}
    means = {
        name: [part for text in parts for part, _ in _each(text, [], grid)]
        for aggregate, texts in aggregates.items()
        for name, parts in _each(aggregate, texts, grid)
    }
    return {**node, "grid": {}, "columns": given, "aggregates": means}


def _each(text: str, words: Sequence[str], grid: Values) -> Iterator[tuple[str, list[str]]]:
    """A text and the words that go with it, for each value of the names that the text holds."""
    names = _used(text, grid)
    for values in product(*(grid[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        yield _filled(text, chosen), [_filled(word, chosen) for word in words]


def _filled(text: str, chosen: Mapping[str, str | int]) -> str:
    for name, value in chosen.items():
        text = text.replace(f"<{name}>", str(value))
    return text


def _used(text: str, grid: Values) -> list[str]:
    return [name for name in grid if f"<{name}>" in text]


def _is_grid(grid: Any) -> bool:
    return isinstance(grid, Mapping) and all(
        isinstance(values, list) and all(isinstance(value, str | int) for value in values) for values in grid.values()
    )


def _is_lists(node: Any) -> bool:
    return isinstance(node, Mapping) and all(
        isinstance(name, str) and isinstance(words, list) and all(isinstance(word, str) for word in words)
        for name, words in node.items()
    )
