"""The files of a dataset as they lie on the disk now: which there are, whether they have changed, what is in them.

A dataset of image files has a listing; another one names its `sources`. One that does neither, a user's own, is known
by its arrays.
"""

import gc
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdrun.config.dataset import DatasetConfig, Facts, FilesConfig, OwnFilesConfig
from kdrun.core.contents import Contents
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.hashing import content_hash
from kdrun.core.registry import line_in_plugin, lookup
from kdrun.core.remembered import Remembered
from kdrun.core.schema import FileContent, marker
from kdrun.data.images import list_images, name_below, passed_over
from kdrun.data.listing import Listing, unlabeled_files
from kdrun.data.orientation import turned

MOST_STREAMED = 4 << 30  # bytes of streamed image files that are read for their hash before the first step


@dataclass(frozen=True)
class Found:
    """What a dataset is made of."""

    config: DatasetConfig
    """Without what says how its images are split and shown."""
    listing: Listing | None
    """Of image files."""
    contents: Contents | None
    """None: nobody says which files there are."""
    key: tuple[object, ...]
    """Another one where the configuration or the files have changed."""

    def content(self, most: float = math.inf) -> str | None:
        """Hash of the files, their names and labels; None: not known.

        Args:
            most: bytes that are read for it, where it is not remembered.
        """
        contents, config = self.contents, self.config
        if contents is None or contents.missing:
            return None
        if isinstance(config, FilesConfig) and config.stream:
            most = min(most, MOST_STREAMED)
        files = contents.read() if contents.size <= most else contents.known
        if files is None or self.listing is None:
            return files
        return hashlib.sha256(f"{files} {self.listing.digest}".encode()).hexdigest()


def found(config: DatasetConfig, outputs: Path) -> Found:
    """The files of a dataset, fetched where they are missing and may be.

    Raises:
        DataError: what its reader cannot find or read.
    """
    plain = unsplit(config)
    key = (type(plain), plain.model_dump_json(), _hashes(plain), outputs)
    return _FOUND.value(key, lambda: _look(plain, key, outputs))


_FOUND: Remembered[tuple[object, ...], Found] = Remembered()


def _hashes(config: DatasetConfig) -> tuple[str, ...]:
    """Of the files and folders that a configuration names."""
    fields = type(config).model_fields.items()
    files = [(name, getattr(config, name), file) for name, field in fields if (file := marker(field, FileContent))]
    return tuple(content_hash(path, f"dataset.{name}", file) for name, path, file in files if path is not None)


def unsplit(config: DatasetConfig) -> DatasetConfig:
    """Without what says how its images are split and shown, in which the runs of a sweep differ."""
    return config.replace(
        num_labels=None, split_seed=None, split_file=None, val_seed=0, val_fraction=0.0, mean=None, std=None,
        class_names=None, upstream=0.0, part="downstream", resident="auto",
    )  # fmt: skip


@contextmanager
def _uncollected() -> Iterator[None]:
    """A million paths are made and kept: the collector of garbage would go through all of them time and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def _look(config: DatasetConfig, key: tuple[object, ...], outputs: Path) -> Found:
    part = lookup("dataset", config.name, "dataset.name")
    if isinstance(config, FilesConfig):
        with named_plugin(config):
            listing: Any = part.files(config)
        if not isinstance(listing, Listing):
            given = type(listing).__name__
            raise ConfigError(f"dataset={config.name}: files gives a {given}, expected Listing; {PAGE}")
        passed: list[Path] = []
        listing = replace(listing, unlabeled=unlabeled_files(config, passed))
        if config.unlabeled is not None:
            told = passed_over(passed, Path(config.unlabeled).expanduser())
            listing = replace(listing, notes=[*listing.notes, *told])
        contents = Contents(listing.paths, listing.folder, outputs)
        return Found(config, listing, contents, (*key, contents.seen, listing.digest))
    paths = _sources(part, config)
    if paths is None:
        return Found(config, None, None, key)
    if config.unlabeled is not None:
        pool = Path(config.unlabeled).expanduser()
        paths += list_images(pool, "dataset.unlabeled") if pool.is_dir() else [pool]
    contents = Contents(paths, paths[0].parent, outputs)
    return Found(config, None, contents, (*key, contents.seen))


PAGE = "see docs/extend/dataset.md"


@contextmanager
def named_plugin(config: DatasetConfig) -> Iterator[None]:
    """What a user's reader raises, in one line with its place."""
    try:
        yield
    except (KdrunError, OSError, MemoryError):
        raise
    except Exception as error:
        place = line_in_plugin(error)
        if place is None:
            raise
        raise ConfigError(f"dataset={config.name}: {place}: {type(error).__name__}: {error}") from error


def _sources(part: Any, config: DatasetConfig) -> list[Path] | None:
    """The files that a dataset says it reads."""
    if not hasattr(part, "sources"):
        return None
    paths: list[Path] = list(part.sources(config))
    return paths or None


def identity_of_listing(part: Any, config: FilesConfig) -> str | None:
    """Hash of the listing (classes, names, labels and sizes of files) of what lies where a published dataset should.

    None: the published files, as far as the `fits` of its class tells, or none at all, or what its reader refuses; or
    `dataset.coop_split` says which they are.
    """
    if config.coop_split is not None:
        return None
    plain = unsplit(config).offline()

    @_uncollected()
    def look() -> str | None:
        listing: Listing = part.files(plain)
        if part.fits(listing, plain):
            return None
        files = ((path, path.stat().st_size) for path in listing.paths)
        return _digest(listing.digest, files, listing.folder)

    try:
        return _ODD.value((part, plain.model_dump_json()), look)
    except (ConfigError, OSError):
        return None  # the check says it


def identity_of_own(part: Any, config: OwnFilesConfig, whole: bool = False) -> str | None:
    """What the run key has of a user's own image files beside their configuration.

    Args:
        whole: the names, labels and sizes of all; false: the configuration says them.

    Returns:
        Hash of the files that are turned because `dataset.exif` is upright, and what `whole` asks for; None: neither.
    """
    plain = unsplit(config)

    @_uncollected()
    def look() -> str | None:
        listing: Listing = part.files(plain)
        paths = [*listing.paths, *(path for path, _ in unlabeled_files(config))]
        odd = turned(paths) if config.exif == "upright" else {}
        told = sorted(f"{name_below(path, listing.folder)}\0turned {how}\n" for path, how in odd.items())
        if not whole:
            return _digest("".join(told), (), listing.folder) if told else None
        files = ((path, path.stat().st_size) for path in listing.paths)
        return _digest("".join([listing.digest, *told]), files, listing.folder)

    try:
        return _ODD.value((part, plain.model_dump_json(), _hashes(plain)), look)
    except (ConfigError, OSError):
        return None  # the check says it


def identity_of_copy(sources: Sequence[Path], published: str | None = None) -> str | None:
    """Hash of the names and sizes of the files of a copy that nobody compares with the published one.

    Args:
        published: the same hash of the published files.

    Returns:
        None: they are as the published ones by names and sizes, or files are missing.
    """
    try:
        found = _digest("", [(path, path.stat().st_size) for path in sources], sources[0].parent)
    except OSError:
        return None
    return None if found == published else found


def _digest(told: str, files: Iterable[tuple[Path, int]], folder: Path) -> str:
    digest, within = hashlib.sha256(os.fsencode(told)), f"{folder}{os.sep}"
    for path, size in files:
        digest.update(os.fsencode(f"{str(path).removeprefix(within)}\0{size}\n"))
    return digest.hexdigest()


def has_official_counts(facts: Facts, listing: Listing) -> bool:
    """Whether classes and images of each part are as many as `facts` says; without official test images, all images."""
    train, val, test = len(listing.train), len(listing.val), len(listing.test)
    if len(listing.class_names) != facts.classes:
        return False
    if facts.test is None:
        return train + val + test == facts.train
    return (train, val, test) == (facts.train, facts.val or 0, facts.test)


_ODD: Remembered[tuple[object, ...], str | None] = Remembered()
