"""Image files decoded once to one file of pixels, which all runs share and map into memory.

`outputs/artifacts/packed/<key>` holds `images.bin`, the rows (H, W, C) uint8 of the readable files in their order, and
`spec.json`: what was packed, how many rows there are, and what could not be read. The key is the hash of the size, the
crop, and of the name (below the dataset's folder), size and modification time of every file: what is exchanged or
repaired is packed anew, and no file has to be read to know that nothing was. A copy with new times is packed anew too.

While it is built, the folder is called `<key>.partial`, and `progress.json` says how far it is; whoever comes next goes
on from there.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.dataset import Images
from kdrun.data.files import decoded
from kdrun.errors import DataError
from kdrun.files import named, write_json
from kdrun.lock import Lock

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the pixels change: it is part of the key
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

    def __init__(self, paths: Sequence[Path], folder: Path, size: int, crop: str, outputs: Path, key: str) -> None:
        self.paths = paths
        digest, missing, within = hashlib.sha256(), [], f"{folder}{os.sep}"
        for path in paths:
            try:
                stat = path.stat()
            except OSError as error:
                missing.append(f"{path} ({error.strerror})")
                continue
            digest.update(os.fsencode(f"{str(path).removeprefix(within)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        if missing:
            raise DataError(*absent(missing, key))
        self.spec: dict[str, Any] = {
            "version": VERSION, "size": size, "crop": crop, "num_files": len(paths), "files": digest.hexdigest(),
        }  # fmt: skip
        name = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = outputs.expanduser() / "artifacts" / "packed" / name
        self.row = size * size * 3

    def open(self) -> Packed | None:
        """None: not packed yet. Raises DataError for what is damaged."""
        damaged = f"{self.folder}: damaged packed images; delete the folder to pack them anew"
        try:
            found = json.loads((self.folder / "spec.json").read_text())
            shape = (found["num_images"], self.spec["size"], self.spec["size"], 3)
            whole = (self.folder / "images.bin").stat().st_size == found["num_images"] * self.row
        except FileNotFoundError:
            if not self.folder.exists():
                return None
            raise DataError(damaged) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{damaged} ({type(error).__name__}: {error})") from None
        if not whole or any(found.get(name) != value for name, value in self.spec.items()):
            raise DataError(damaged)
        # Read-only: a private copy on write would count as memory that is taken, and the file may be larger than that.
        images: Images = np.empty((0, *shape[1:]), np.uint8)
        if shape[0]:  # an empty file cannot be mapped
            images = np.memmap(self.folder / "images.bin", np.uint8, "r", shape=shape)
        return Packed(images, {int(position): problem for position, problem in found["unreadable"].items()})

    def build(self) -> Packed:
        """Pack the files unless it has been done; one process packs, others wait.

        Raises:
            DataError: they do not fit on the disk.
        """
        with Lock(self.folder.with_name(f"{self.folder.name}.lock")) as lock:
            packed = self.open()
            if packed is None:
                self._build(lock)
                packed = self.open()
        if packed is None:
            raise DataError(f"{self.folder}: was deleted while it was packed; run the same command again")
        return packed

    def _build(self, lock: Lock) -> None:
        partial = self.folder.with_name(f"{self.folder.name}.partial")
        state = self._state(partial)
        total, left = (n * self.row for n in (len(self.paths), len(self.paths) - state["next"]))
        free = shutil.disk_usage(self.folder.parent).free
        size = self.spec["size"]
        log.info(
            "packing %d images of %dx%d pixels, %s on disk, in %s%s", len(self.paths), size, size, readable(total),
            self.folder, f", from image {state['next']} on" if state["next"] else "",
        )  # fmt: skip
        if left > free:
            raise DataError(
                f"dataset.pack: {readable(left)} do not fit into {self.folder.parent}, {readable(free)} are free; "
                "give a smaller dataset.pack.size, or another execution.outputs"
            )
        partial.mkdir(parents=True, exist_ok=True)
        try:
            with named(partial / "images.bin"):
                self._write(partial, state, lock)
            count = len(self.paths) - len(state["unreadable"])
            write_json(partial / "spec.json", {**self.spec, "num_images": count, "unreadable": state["unreadable"]})
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise DataError(
                f"dataset.pack: {partial}: {error.strerror} after {state['next']} of {len(self.paths)} images; removed "
                "it. Make room, give a smaller dataset.pack.size, or another execution.outputs"
            ) from None
        (partial / "progress.json").unlink(missing_ok=True)
        os.replace(partial, self.folder)

    def _state(self, partial: Path) -> dict[str, Any]:
        """How far an earlier process came: the next file, and what was unreadable among those before it."""
        try:
            state: dict[str, Any] = json.loads((partial / "progress.json").read_text())
            rows = state["next"] - len(state["unreadable"])
            if (partial / "images.bin").stat().st_size >= rows * self.row:
                return state
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing, or nothing of use: from the start
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
            for image in decoded(self.paths[done:], self.spec["size"], self.spec["crop"]):
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


def absent(missing: Sequence[str], key: str, most: int = 20) -> list[str]:
    """A line for each missing file, up to `most`, and how many more there are."""
    lines = [f"{key}: missing image {path}" for path in missing[:most]]
    return lines + ([f"{key}: and {len(missing) - most} more of them"] if len(missing) > most else [])


def readable(size: float) -> str:
    """Bytes with a unit."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
