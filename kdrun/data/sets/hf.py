"""Datasets of the Hugging Face hub: parquet files with an encoded image and a label in each row.

The images are unpacked once to files, so that they can be packed and streamed like all others.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from kdrun.config.dataset import FilesConfig
from kdrun.core.artifacts import Artifact
from kdrun.core.contents import Contents
from kdrun.core.errors import ConfigError, DataError, allowed
from kdrun.core.hashing import content_hash, json_hash
from kdrun.core.parquet import pyarrow
from kdrun.core.registry import register
from kdrun.core.schema import FileContent, OutsideKey
from kdrun.data.download import root_folder
from kdrun.data.listing import Listing

KEY = "dataset.path"
TESTS = ("test", "validation", "valid", "val")
ROWS = 256  # read at once
PARQUET = FileContent(or_name=True, suffixes=frozenset({".parquet"}))


@register("dataset", "hf")
class HuggingFace:
    """Classes are those of the files' own features where they name them, else the labels that there are."""

    class Config(FilesConfig):
        path: Annotated[str, PARQUET]
        """A folder of parquet files, of which names and sizes count for the run key, or a name of the hub."""
        revision: str | None = None
        """Of the hub: a branch, tag or commit; null: main."""
        image: str = "image"
        label: str = "label"
        train: str = "train"
        test: str | None = None
        """null: test, validation, valid or val."""
        root: Annotated[str, OutsideKey()] = "data"
        """Folder that holds, or will hold, hf/ with the unpacked images."""
        download: Annotated[bool, OutsideKey()] = True
        """Of what the hub's client has not stored yet."""

    @staticmethod
    def files(config: Config) -> Listing:
        if config.coop_split is not None:
            raise ConfigError("dataset.coop_split: CoOp's split files name image files; dataset=hf has none")
        root = root_folder(config.root)
        content = [content_hash(config.path, KEY, PARQUET), config.revision or ""]
        content += [config.image, config.label, config.train, config.test or ""]
        name = re.sub(r"\W+", "-", Path(config.path).name)
        unpacked = Artifact(root / "hf", {"content": content}, f"{name}-{json_hash(content)}")
        folder, known = Path(config.path).expanduser(), ""
        if folder.is_dir():  # else the revision tells
            known = Contents(sorted(folder.rglob("*.parquet")), folder, root / "hf").read()

        def build(folder: Path) -> dict[str, Any]:
            return {**unpack(config, folder), "parquet": known}

        def read(folder: Path, spec: dict[str, Any]) -> Listing:
            if spec.get("parquet", known) != known:  # an older one does not say
                raise ValueError(f"unpacked from other files of the same names and sizes than {config.path} has now")
            return listing_of(folder, spec)

        return unpacked.value(build, read)


def listing_of(folder: Path, spec: Mapping[str, Any]) -> Listing:
    """The images that `unpack` wrote."""
    train, test = (
        [(folder / split / f"{k:08d}.img", label) for k, label in enumerate(spec[split])] for split in ("train", "test")
    )
    return Listing(train, test, spec["class_names"], folder, KEY)


def unpack(config: HuggingFace.Config, folder: Path) -> dict[str, Any]:
    """Write train/ and test/ with a file for each row.

    Returns:
        The class names, and the labels of each split.

    Raises:
        DataError: no pyarrow, no such files, columns or labels.
    """
    parquet = pyarrow("dataset=hf").parquet
    files = _parquet_files(config)
    test = config.test or next((name for name in TESTS if of_split(files, name)), TESTS[0])
    labels: dict[str, list[Any]] = {}
    names: list[str] | None = None
    for split, wanted in (("train", config.train), ("test", test)):
        chosen = of_split(files, wanted)
        if not chosen:
            raise DataError(
                f"{KEY}: {config.path}: no parquet files of split {wanted}, such as {wanted}-00000-of-00001.parquet; "
                f"it has {', '.join(path.name for path in files[:5])}"
            )
        (folder / split).mkdir()
        labels[split] = []
        for path in chosen:
            try:
                table = parquet.ParquetFile(path)
                names = names or class_names(table.schema_arrow.metadata, config.label)
                for image, label in _rows(table, path, config):
                    (folder / split / f"{len(labels[split]):08d}.img").write_bytes(image)
                    labels[split].append(label)
            except ValueError as error:  # also pyarrow's ArrowInvalid
                raise DataError(f"{KEY}: {path}: damaged, or no parquet file ({error})") from None
    return numbered(labels, names, config)


def numbered(labels: dict[str, list[Any]], names: list[str] | None, config: HuggingFace.Config) -> dict[str, Any]:
    """The class names, and the labels of each split as numbers of them."""
    found = Counter(label for split in labels.values() for label in split)
    if all(isinstance(label, int) for label in found):
        names = names or [str(k) for k in range(max(found, default=-1) + 1)]
        for split, part in labels.items():
            if odd := sorted({label for label in part if not 0 <= label < len(names)}):
                raise DataError(
                    f"{KEY}: {config.path}: column {config.label} of the {split} images holds {odd[0]}, which is no "
                    f"class (0 to {len(names) - 1}); the hub hides test labels so: choose another split with "
                    f"dataset.{split}"
                )
        return {"class_names": names, **labels}
    if odd := [label for label in found if not isinstance(label, str)]:
        raise DataError(f"{KEY}: {config.path}: column {config.label}: {odd[0]!r} is neither a number nor a name")
    classes = sorted(found)
    number = {name: k for k, name in enumerate(classes)}
    return {"class_names": classes, **{split: [number[label] for label in part] for split, part in labels.items()}}


def of_split(files: Sequence[Path], split: str) -> list[Path]:
    """Those of a split: <split>.parquet, <split>-....parquet, or in a folder of that name."""
    return [path for path in files if re.split(r"[-.]", path.name)[0] == split or path.parent.name == split]


def class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names of the classes that the hub's libraries write into a file's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, ValueError, TypeError):
        return None


def _rows(table: Any, path: Path, config: HuggingFace.Config) -> Iterator[tuple[bytes, Any]]:
    """(encoded image, label) of each row."""
    columns = table.schema_arrow.names
    for key, name in (("image", config.image), ("label", config.label)):
        if name not in columns:
            raise DataError(f"dataset.{key}: {path}: no column {name!r}{allowed(name, columns)}")
    for batch in table.iter_batches(ROWS, columns=[config.image, config.label]):
        for image, label in zip(
            *(batch.column(name).to_pylist() for name in (config.image, config.label)), strict=True
        ):
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes):
                raise DataError(f"dataset.image: {path}: column {config.image!r} does not hold images as bytes")
            yield content, label


def _parquet_files(config: HuggingFace.Config) -> list[Path]:
    """All parquet files of the folder, or of the hub's dataset, fetched if they are not stored yet."""
    folder = Path(config.path).expanduser()
    if not folder.exists():
        from huggingface_hub import snapshot_download

        try:
            stored = snapshot_download(
                config.path,
                repo_type="dataset",
                revision=config.revision,
                allow_patterns="*.parquet",
                local_files_only=not config.download,
            )
        except Exception as error:  # hubs raise many kinds
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{KEY}: {config.path} is no folder here and cannot be fetched from the Hugging Face hub ({why}); give "
                "a folder with the dataset's parquet files"
            ) from None
        folder = Path(stored)
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(f"{KEY}: {config.path}: no parquet files; expected e.g. train-00000-of-00001.parquet")
    return files
