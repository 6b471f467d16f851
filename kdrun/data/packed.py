"""Image files decoded once to one file of pixels, which all runs share and map into memory.

`outputs/artifacts/packed/<key>` holds `images.bin`, the rows (H, W, C) uint8 of the readable files in their order, and
`spec.json`: what was packed, how many rows there are, and what could not be read. The key is the hash of the size, the
crop, and of the name (below the dataset's folder) and content of every file: a copy elsewhere shares the pixels, and
what is exchanged or repaired is packed anew.

While it is built, the folder is called `<key>.partial`, and `progress.json` says how far it is, with the sha256 of the
rows so far; whoever comes next goes on from there. `kdrun.core.artifacts` says how it is checked and built anew.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.config.dataset import Reading
from kdrun.core.artifacts import PROGRESS, Artifact
from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.core.files import named, remove, write_json
from kdrun.core.hashing import sha256_of_first
from kdrun.core.progress import Meter
from kdrun.core.quantities import readable
from kdrun.core.sums import sealed, unsealed
from kdrun.data.images import decoded
from kdrun.data.orientation import turned
from kdrun.data.reading import NO_READER, PLAIN, read_rgb
from kdrun.data.types import Images

log = logging.getLogger(__name__)
VERSION = 2  # raise it when the pixels change: it is part of the key
SAVE_EVERY = 5.0  # seconds between two notes of the progress
IMAGES = "images.bin"
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

    Raises:
        DataError: files that are not there; names `key` and them.
    """

    def __init__(self, contents: Contents, size: int, crop: str, outputs: Path, key: str, how: Reading = PLAIN) -> None:
        if contents.missing:
            raise DataError(*absent(contents.missing, key))
        self.contents = contents
        self.paths = contents.paths
        self.how = how
        self.row = size * size * 3
        self.outputs = outputs.expanduser()
        self.spec: dict[str, Any] = {"version": VERSION, "size": size, "crop": crop, "num_files": len(self.paths)}
        # what is as ever is not told: else what an older kdrun has packed would be packed again
        if how.most != PLAIN.most:
            self.spec["max_pixels"] = how.most
        if how.exif == "upright" and turned(self.paths):
            self.spec["exif"] = how.exif
        if how.color != PLAIN.color:
            self.spec["color"] = how.color

    @property
    def artifact(self) -> Artifact | None:
        """Where the pixels are, or will be; None: nobody has read the files for their hash yet."""
        known = self.contents.known
        return None if known is None else self._artifact(known)

    def _artifact(self, content: str) -> Artifact:
        return Artifact.of(self.outputs, "packed", {**self.spec, "files": content})

    def open(self) -> Packed | None:
        """None: not packed yet, or damaged: who needs the pixels packs them anew."""
        artifact = self.artifact
        return None if artifact is None else artifact.opened(self._read)

    def _read(self, folder: Path, found: dict[str, Any]) -> Packed:
        shape = (found["num_images"], self.spec["size"], self.spec["size"], 3)
        if (folder / IMAGES).stat().st_size != found["num_images"] * self.row:
            raise ValueError(f"{IMAGES} does not have {found['num_images']:,} images")
        # Read-only: a private copy on write would count as memory that is taken, and the file may be larger than that.
        images: Images = np.empty((0, *shape[1:]), np.uint8)
        if shape[0]:  # an empty file cannot be mapped
            images = np.memmap(folder / IMAGES, np.uint8, "r", shape=shape)
        unreadable = {int(position): problem for position, problem in found["unreadable"].items()}
        unknown = next((at for at, problem in unreadable.items() if NO_READER in problem), None)
        if unknown is not None and not isinstance(read_rgb(self.paths[unknown], self.how), str):
            raise ValueError(f"packed before {self.paths[unknown].name} had a reader")
        return Packed(images, unreadable)

    def build(self) -> Packed:
        """Pack the files unless it has been done; one process packs, others wait.

        Raises:
            DataError: they do not fit on the disk.
        """
        return self._artifact(self.contents.read()).resumed(self._build, self._read)

    def _build(self, partial: Path, still_ours: Callable[[], None]) -> dict[str, Any]:
        state, digest = self._state(partial)
        total, left = (n * self.row for n in (len(self.paths), len(self.paths) - state["next"]))
        free = shutil.disk_usage(partial.parent).free
        size = self.spec["size"]
        log.info(
            "packing %d images of %dx%d pixels, %s on disk, in %s%s", len(self.paths), size, size, readable(total),
            partial.with_suffix(""), f", from image {state['next']} on" if state["next"] else "",
        )  # fmt: skip
        if left > free:
            if not state["next"]:
                shutil.rmtree(partial, ignore_errors=True)
            raise DataError(
                f"dataset.pack: {readable(left)} do not fit into {partial.parent}, {readable(free)} are free; "
                "give a smaller dataset.pack.size, or another execution.outputs"
            )
        try:
            with named(partial / IMAGES):
                self._write(partial, state, digest, still_ours)
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise DataError(
                f"dataset.pack: {partial}: {error.strerror} after {state['next']} of {len(self.paths)} images; removed "
                "it. Make room, give a smaller dataset.pack.size, or another execution.outputs"
            ) from None
        return {"num_images": len(self.paths) - len(state["unreadable"]), "unreadable": state["unreadable"]}

    def _state(self, partial: Path) -> tuple[dict[str, Any], Any]:
        """How far an earlier process came: the next file, what was unreadable among those before it, and the running
        sha256 of the rows that it wrote."""
        try:
            state = unsealed(json.loads((partial / PROGRESS).read_text()), "sha256")
            digest = sha256_of_first(partial / IMAGES, (state["next"] - len(state["unreadable"])) * self.row)
            if digest.hexdigest() == state["sha256"]:
                return state, digest
            log.info("%s: is not as its note says; packing from the first image", partial)
        except FileNotFoundError:
            log.debug("%s: nothing is packed yet", partial)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("%s: its note is not legible (%s); packing from the first image", partial, error)
        for path in (partial / IMAGES, partial / PROGRESS):
            remove(path)
        return {"next": 0, "unreadable": {}}, hashlib.sha256()

    def _write(self, partial: Path, state: dict[str, Any], digest: Any, still_ours: Callable[[], None]) -> None:
        done = state["next"]
        with (partial / IMAGES).open("ab") as file, Meter("packing", len(self.paths), done=done) as meter:
            file.truncate((done - len(state["unreadable"])) * self.row)  # what came after the last note

            def note() -> None:
                file.flush()
                os.fsync(file.fileno())
                still_ours()
                write_json(partial / PROGRESS, sealed({**state, "sha256": digest.hexdigest()}))

            saved = time.monotonic()
            for image in decoded(self.paths[done:], self.spec["size"], self.spec["crop"], self.how):
                if isinstance(image, str):
                    state["unreadable"][str(state["next"])] = image
                else:
                    file.write(image.data)
                    digest.update(image.data)
                state["next"] += 1
                meter.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    note()
                    saved = time.monotonic()
            note()


def absent(missing: Sequence[str], key: str, most: int = 20) -> list[str]:
    """A line for each missing file, up to `most`, and how many more there are."""
    lines = [f"{key}: missing image {path}" for path in missing[:most]]
    return lines + ([f"{key}: and {len(missing) - most} more of them"] if len(missing) > most else [])
