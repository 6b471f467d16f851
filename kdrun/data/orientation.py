"""Which way up an image is: the orientation that cameras note beside the pixels, 1 (as stored) to 8.

It stands in EXIF, or where that says nothing in XMP, and counts where it comes before the pixels. What no reader can
make sense of is taken as 1. TIFF is not asked: Pillow turns it by itself, whoever reads it.
"""

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kdrun.core.files import regular
from kdrun.core.machine import cores

if TYPE_CHECKING:
    from PIL.Image import Image

TAG = 0x0112
FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "JXL"})
"""What may say so, in Pillow's words."""
FIRST = 1 << 14  # bytes of a file that are looked at before Pillow is asked
PART = 64  # files that a thread is handed at once
THREADS = 8  # at the least: the disk is waited for


def orientation(image: "Image") -> int:
    """Of an opened image, whose pixels need not have been read."""
    from PIL import Image

    if image.format not in FORMATS:
        return 1
    try:
        found = Image.Image.getexif(image).get(TAG, 1)  # PNG's own would decode all pixels for it
    except Exception:  # a damaged block may raise anything
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright(image: "Image") -> "Image":
    """As its orientation says."""
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    known = orientation(image)
    if known == 1:
        return image
    turned = image.transpose(turns[known - 2])
    turned.format = image.format  # which says what 32-bit pixels mean
    return turned


def turned(paths: Sequence[Path]) -> dict[Path, int]:
    """The files whose orientation is not 1, of their headers alone.

    What cannot be read is not among them: whoever reads the pixels says so.
    """
    pool = ThreadPoolExecutor(max(cores(), THREADS), "orientation")
    parts = [paths[at : at + PART] for at in range(0, len(paths), PART)]
    try:
        found = (known for part in pool.map(_of_files, parts) for known in part)
        return {path: known for path, known in zip(paths, found, strict=True) if known != 1}
    finally:
        pool.shutdown(cancel_futures=True)


def _of_files(paths: Sequence[Path]) -> list[int]:
    return [_of_file(path) for path in paths]


def _of_file(path: Path) -> int:
    from PIL import Image

    try:
        with regular(path).open("rb") as file:
            if _surely_as_stored(file):
                return 1
            file.seek(0)
            with Image.open(file) as image:
                return orientation(image)
    except Exception:  # a damaged file may raise anything
        return 1


def _surely_as_stored(file: BinaryIO) -> bool:
    """Whether the first bytes of a file rule out that it says otherwise. It spares Pillow, ten times as slow."""
    head = file.read(FIRST)
    if head[:3] == b"\xff\xd8\xff":
        return _surely_as_stored_jpeg(head)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        end = head.find(b"IDAT")
        return end > 0 and not any(name in head[:end] for name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return head[12:16] != b"VP8X" or (len(head) > 20 and not head[20] & 0x0C)  # neither EXIF nor XMP
    return head[:4] in (b"GIF8", b"II*\0", b"MM\0*") or head[:2] == b"BM"


def _surely_as_stored_jpeg(head: bytes) -> bool:
    """Marker by marker up to the pixels: no EXIF and no XMP, or one EXIF block that says 1."""
    at, said = 2, False
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker, size = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the pixels
            return True
        if marker == 0xE1:
            block = head[at + 4 : at + 2 + size]
            if said or not block.startswith(b"Exif\0\0") or _in_exif(block[6:]) != 1:
                return False
            said = True
        at += 2 + size
    return False


def _in_exif(block: bytes) -> int | None:
    """The orientation in the first directory of a block; None: it is not sure."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, at)
        for k in range(count):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", block, at + 2 + 12 * k)
            if tag == TAG:
                return int(value) if (kind, number) == (3, 1) else None
    except struct.error:
        return None
    return None
