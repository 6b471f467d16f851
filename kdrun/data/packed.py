"""Image files decoded once to one file of pixels, which all runs share and map into memory.

`outputs/artifacts/packed/<key>` holds `images.bin`, the rows (H, W, C) uint8 of the readable files in their order, and
`spec.json`: what was packed, how many rows there are, and what could not be read. The key is the hash of the size, the
crop, and of the name (below the dataset's folder) and content of every file: a copy elsewhere shares the pixels, and
what is exchanged or repaired is packed anew. `artifacts/contents` remembers the hash of files by their names, sizes and
times, so that they are read for it once.

While it is built, the folder is called `<key>.partial`, and `progress.json` says how far it is; whoever comes next goes
on from there.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.config.dataset import MOST_PIXELS
from kdrun.core.artifacts import Artifact
from kdrun.core.errors import DataError
from kdrun.core.files import named, write_json
from kdrun.core.hashing import file_sha256
from kdrun.core.lock import Lock
from kdrun.data.images import cores, decoded
from kdrun.data.types import Images

log = logging.getLogger(__name__)
VERSION = 2  # raise it when the pixels change: it is part of the key
SAVE_EVERY = 5.0  # seconds between two notes of the progress
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Packed:
    """Opened pixels."""

    images: Images
    """(M, size, size, 3), a mapped file: nothing is read before it is needed."""
    unreadable: dict[int, str]
    """Position among the files -> file and what is wrong with it; `images` has no row for it."""


class Pack:
    """The pixels of some files at some size, whether or not they have been packed.

    Args:
        folder: what the names of the files are relative to.

    Raises:
        DataError: files that are not there; names `key` and them.
    """

    def __init__(
        self, paths: Sequence[Path], folder: Path, size: int, crop: str, outputs: Path, key: str,
        most: int = MOST_PIXELS,
    ) -> None:  # fmt: skip
        self.paths = paths
        self.most = most
        self.names: list[str] = []
        seen, missing, within = hashlib.sha256(), [], f"{folder}{os.sep}"
        for path in paths:
            try:
                found = path.stat()
            except OSError as error:
                missing.append(f"{path} ({error.strerror})")
                continue
            if not stat.S_ISREG(found.st_mode):
                missing.append(f"{path} (not a regular file)")
                continue
            self.names.append(str(path).removeprefix(within))
            seen.update(os.fsencode(f"{path.absolute()}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        if missing:
            raise DataError(*absent(missing, key))
        self.row = size * size * 3
        self.outputs = outputs.expanduser()
        self.note = self.outputs / "artifacts" / "contents" / f"{seen.hexdigest()[:16]}.json"
        self.spec: dict[str, Any] = {"version": VERSION, "size": size, "crop": crop, "num_files": len(paths)}
        if most != MOST_PIXELS:  # else what an older kdrun has packed would be packed again
            self.spec["max_pixels"] = most
        try:
            self.artifact: Artifact | None = self._artifact(str(json.loads(self.note.read_text())["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            self.artifact = None  # not noted, or not legibly: `build` reads the files for it

    def _artifact(self, content: str) -> Artifact:
        """Where the pixels are, or will be, of files with this hash."""
        return Artifact.of(self.outputs, "packed", {**self.spec, "files": content})

    def _content(self) -> tuple[str, bool]:
        """Hash of all names and contents, and whether all could be read; what could not counts as empty."""
        from tqdm import tqdm

        digest, whole = hashlib.sha256(), True
        with ThreadPoolExecutor(cores(), "hash") as pool:
            hashes = pool.map(_file_digest, self.paths)
            bar = tqdm(hashes, total=len(self.paths), desc="hashing", unit="img", disable=None, leave=False)
            for name, found in zip(self.names, bar, strict=True):
                digest.update(os.fsencode(f"{name}\0{found}\n"))
                whole &= found != ""
        return digest.hexdigest(), whole

    def open(self) -> Packed | None:
        """None: not packed yet. Raises DataError for what is damaged."""
        if self.artifact is None:
            return None
        folder = self.artifact.folder
        damaged = f"{folder}: damaged packed images; delete the folder to pack them anew"
        try:
            found = json.loads((folder / "spec.json").read_text())
            shape = (found["num_images"], self.spec["size"], self.spec["size"], 3)
            whole = (folder / "images.bin").stat().st_size == found["num_images"] * self.row
        except FileNotFoundError:
            if not folder.exists():
                return None
            raise DataError(damaged) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{damaged} ({type(error).__name__}: {error})") from None
        if not whole or any(found.get(name) != value for name, value in self.artifact.spec.items()):
            raise DataError(damaged)
        # Read-only: a private copy on write would count as memory that is taken, and the file may be larger than that.
        images: Images = np.empty((0, *shape[1:]), np.uint8)
        if shape[0]:  # an empty file cannot be mapped
            images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
        return Packed(images, {int(position): problem for position, problem in found["unreadable"].items()})

    def build(self) -> Packed:
        """Pack the files unless it has been done; one process packs, others wait.

        Raises:
            DataError: they do not fit on the disk.
        """
        if self.artifact is None:
            content, whole = self._content()
            self.artifact = self._artifact(content)
            if whole:  # else a file may be made legible, which changes neither its size nor its time
                write_json(self.note, {"files": content})
        with self.artifact.lock as lock:
            packed = self.open()
            if packed is None:
                self._build(self.artifact, lock)
                packed = self.open()
        if packed is None:
            raise DataError(f"{self.artifact.folder}: was deleted while it was packed; run the same command again")
        return packed

    def _build(self, artifact: Artifact, lock: Lock) -> None:
        folder = artifact.folder
        partial = folder.with_name(f"{folder.name}.partial")
        state = self._state(partial)
        total, left = (n * self.row for n in (len(self.paths), len(self.paths) - state["next"]))
        free = shutil.disk_usage(folder.parent).free
        size = self.spec["size"]
        log.info(
            "packing %d images of %dx%d pixels, %s on disk, in %s%s", len(self.paths), size, size, readable(total),
            folder, f", from image {state['next']} on" if state["next"] else "",
        )  # fmt: skip
        if left > free:
            raise DataError(
                f"dataset.pack: {readable(left)} do not fit into {folder.parent}, {readable(free)} are free; "
                "give a smaller dataset.pack.size, or another execution.outputs"
            )
        partial.mkdir(parents=True, exist_ok=True)
        try:
            with named(partial / "images.bin"):
                self._write(partial, state, lock)
            count = len(self.paths) - len(state["unreadable"])
            write_json(partial / "spec.json", {**artifact.spec, "num_images": count, "unreadable": state["unreadable"]})
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise DataError(
                f"dataset.pack: {partial}: {error.strerror} after {state['next']} of {len(self.paths)} images; removed "
                "it. Make room, give a smaller dataset.pack.size, or another execution.outputs"
            ) from None
        (partial / "progress.json").unlink(missing_ok=True)
        os.replace(partial, folder)

    def _state(self, partial: Path) -> dict[str, Any]:
        """How far an earlier process came: the next file, and what was unreadable among those before it."""
        try:
            state: dict[str, Any] = json.loads((partial / "progress.json").read_text())
            rows = state["next"] - len(state["unreadable"])
            if (partial / "images.bin").stat().st_size >= rows * self.row:
                return state
            log.info("%s: is shorter than its note says; packing from the first image", partial)
        except FileNotFoundError:
            log.debug("%s: nothing is packed yet", partial)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s: its note is not legible (%s); packing from the first image", partial, error)
        return {"next": 0, "unreadable": {}}

    def _write(self, partial: Path, state: dict[str, Any], lock: Lock) -> None:
        from tqdm import tqdm

        done = state["next"]
        with (
            (partial / "images.bin").open("ab") as file,
            tqdm(total=len(self.paths), initial=done, desc="packing", unit="img", disable=None, leave=False) as bar,
        ):
            file.truncate((done - len(state["unreadable"])) * self.row)  # what came after the last note

            def note() -> None:
                file.flush()
                os.fsync(file.fileno())
                lock.require()
                write_json(partial / "progress.json", state)

            saved = time.monotonic()
            for image in decoded(self.paths[done:], self.spec["size"], self.spec["crop"], self.most):
                if isinstance(image, str):
                    state["unreadable"][str(state["next"])] = image
                else:
                    file.write(image.data)
                state["next"] += 1
                bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    note()
                    saved = time.monotonic()
            note()


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""


def absent(missing: Sequence[str], key: str, most: int = 20) -> list[str]:
    """A line for each missing file, up to `most`, and how many more there are."""
    lines = [f"{key}: missing image {path}" for path in missing[:most]]
    return lines + ([f"{key}: and {len(missing) - most} more of them"] if len(missing) > most else [])


def readable(size: float) -> str:
    """Bytes with a unit."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
