"""Image files that a table names: columns path, label and, if you like, split; .csv, or .parquet with the extra hf."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from kdrun.config.dataset import OwnFilesConfig
from kdrun.core.errors import ConfigError, DataError, allowed
from kdrun.core.parquet import pyarrow
from kdrun.core.registry import register
from kdrun.core.schema import FileContent, OutsideKey
from kdrun.core.texts import text_of
from kdrun.data.drawing import drawn_test
from kdrun.data.found import identity_of_own
from kdrun.data.listing import Listing, read_coop_split
from kdrun.data.packed import absent

KEY = "dataset.path"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@register("dataset", "listed")
class Listed:
    """The files of a list. Classes are its labels, sorted: as numbers where all are, else as texts."""

    class Config(OwnFilesConfig):
        path: Annotated[str, FileContent()]
        """The list; its content, and names and sizes of the images, not their place, count for the run key."""
        root: Annotated[str | None, OutsideKey()] = None
        """Folder that the paths are relative to; null: that of the list."""
        image: str = "path"
        """Column of paths."""
        label: str = "label"
        split: str = "split"
        """Column that says train, val or test; without one, `test_fraction` of each class is drawn."""

    @staticmethod
    def files(config: Config) -> Listing:
        path = Path(config.path).expanduser()
        folder = path.parent if config.root is None else Path(config.root).expanduser()
        if config.coop_split is not None:
            return read_coop_split(Path(config.coop_split), folder, KEY)
        columns = _columns(path, config)
        names = class_names(columns[config.label])
        number = {name: k for k, name in enumerate(names)}
        files = [
            (folder / image, number[label])
            for image, label in zip(columns[config.image], columns[config.label], strict=True)
        ]
        if missing := [str(file) for file, _ in files if not file.is_file()]:
            raise DataError(*absent(missing, f"{KEY}: {path}"))
        _refuse_twice(files, path)
        listing = Listing(files, (), names, folder, KEY)
        splits = columns.get(config.split)
        if splits is not None:
            listing = _split(listing, splits, f"{KEY}: {path}: column {config.split}")
        return listing if listing.test and config.test_fraction is None else _with_test(listing, path, config)

    @classmethod
    def identity(cls, config: Config) -> str | None:
        """What the run key has beside the list: names, labels and sizes of the images, and which are turned."""
        return identity_of_own(cls, config, whole=True)


def class_names(labels: Sequence[str]) -> list[str]:
    """The different labels in their order."""
    found = sorted(set(labels))
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found


def _split(listing: Listing, splits: Sequence[str], where: str) -> Listing:
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    for row, (file, given) in enumerate(zip(listing.train, splits, strict=True), start=1):
        part = SPLITS.get(given.strip().lower())
        if part is None:
            raise DataError(f"{where}: row {row} says {given!r}{allowed(given, SPLITS)}")
        parts[part].append(file)
    if not parts["train"]:
        raise DataError(f"{where}: no row says train")
    return replace(listing, train=parts["train"], val=parts["val"], test=parts["test"])


def _with_test(listing: Listing, path: Path, config: Listed.Config) -> Listing:
    if listing.test:
        raise DataError(f"dataset.test_fraction: {path} names test images too; leave one of the two out")
    if config.test_fraction is None:
        raise DataError(
            f"{KEY}: {path}: names no test images: a column {config.split} may, or dataset.test_fraction=0.2 draws a "
            "fifth of each class, the same for all seeds"
        )
    train, test, notes = drawn_test(listing.train, listing.folder, config)
    return replace(listing, train=train, test=test, notes=notes)


def _refuse_twice(files: Sequence[tuple[Path, int]], path: Path) -> None:
    seen: dict[Path, int] = {}
    for row, (file, _) in enumerate(files, start=1):
        if file in seen:
            raise DataError(f"{KEY}: {path}: rows {seen[file]} and {row} name the same file, {file}")
        seen[file] = row


def _columns(path: Path, config: Listed.Config) -> Mapping[str, list[str]]:
    """The columns that there are of the three, as texts. Raises DataError where one is missing or a cell is empty."""
    table = _parquet(path, config) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    for key in ("image", "label"):
        name = getattr(config, key)
        if name not in table:
            raise DataError(f"dataset.{key}: {path}: no column {name!r}{allowed(name, table)}")
    wanted = {name: table[name] for name in (config.image, config.label, config.split) if name in table}
    if not wanted[config.image]:
        raise DataError(f"{KEY}: {path}: no rows")
    for name, cells in wanted.items():
        if "" in cells:
            raise DataError(f"{KEY}: {path}: column {name}: row {cells.index('') + 1} is empty")
    return wanted


def _csv(path: Path) -> dict[str, list[str]]:
    try:
        text = text_of(path, KEY)
    except ConfigError as error:
        raise DataError(*error.lines) from None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if not rows:
        raise DataError(f"{KEY}: {path}: empty")
    names = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise DataError(f"{KEY}: {path}: row {number} has {len(row)} cells, the first line names {len(names)}")
    return {name: [row[k].strip() for row in rows[1:]] for k, name in enumerate(names)}


def _parquet(path: Path, config: Listed.Config) -> dict[str, list[str]]:
    parquet = pyarrow(f"{KEY}: {path}:").parquet
    try:
        file: Any = parquet.ParquetFile(path)
        asked = [name for name in (config.image, config.label, config.split) if name in file.schema_arrow.names]
        table = file.read(columns=asked)
    except (OSError, ValueError) as error:  # also pyarrow's ArrowInvalid
        raise DataError(f"{KEY}: {path}: damaged, or no parquet file ({error})") from None
    columns = {name: ["" if v is None else str(v) for v in table.column(name).to_pylist()] for name in asked}
    return {name: columns.get(name, []) for name in file.schema_arrow.names}
