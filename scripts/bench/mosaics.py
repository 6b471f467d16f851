"""Small images as a few lossless WebP mosaics, for where only so much can be sent at once; and back, byte for byte.

python -m scripts.bench.mosaics pack OUT dataset=cifar100 dataset.root=data     any dataset of kdrun of one image size
python -m scripts.bench.mosaics unpack FOLDER[,FOLDER] OUT.npz                  what dataset=npz reads

10,000 images of CIFAR are 17 MB. A folder has train_00.webp and so on, of `per_mosaic` images, `cols` in a row;
index.npz with train_labels, test_labels and classes; meta.json with the SHA-256 of all pixels of a split. Mosaics may
be spread over several folders. Where some are missing, those that are there are unpacked, and it is said.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.core.files import atomic_path, npz_arrays, write_json
from kdrun.data.load import load_dataset

PER, COLS, SIDE = 2000, 50, 32
LONGEST = 16_383  # pixels of a side of a WebP image
SPLITS = ("train", "test")
Pixels = npt.NDArray[np.uint8]


def pack(out: Path, words: Sequence[str], per: int = PER, cols: int = COLS) -> list[Path]:
    """The mosaics of a dataset. Returns the files.

    Args:
        words: overrides that choose it.
        per: images of a mosaic, a multiple of `cols`.
    """
    with Composer() as composer:
        arrays = load_dataset(composer.typed([*words, "tracker=none"]).dataset)
    images = {"train": np.asarray(arrays.train_images), "test": np.asarray(arrays.test_images)}
    side = images["train"].shape[1]
    for split, pixels in images.items():
        if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3) or pixels.dtype != np.uint8:
            raise ConfigError(
                f"dataset: {split} images are {pixels.shape[1:]}; mosaics are of square ones of 3 channels"
            )
    if max(cols, per // cols) * side > LONGEST:
        raise ConfigError(f"dataset: images of {side} pixels: mosaics of {per} are larger than WebP's {LONGEST} pixels")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for split, pixels in images.items():
        for number, start in enumerate(range(0, len(pixels), per)):
            path = out / f"{split}_{number:02d}.webp"
            with atomic_path(path) as temporary:
                mosaic = Image.fromarray(_joined(pixels[start : start + per], cols))
                mosaic.save(temporary, "WEBP", lossless=True, quality=100, method=4)
            written.append(path)
    with atomic_path(out / "index.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, train_labels=arrays.train_labels, test_labels=arrays.test_labels,
            classes=np.array(arrays.class_names),
        )  # fmt: skip
    sums = {f"{split}_sha256": hashlib.sha256(pixels.tobytes()).hexdigest() for split, pixels in images.items()}
    write_json(out / "meta.json", {**sums, "per_mosaic": per, "cols": cols, "side": side})
    return written


def unpack(folders: Sequence[Path], out: Path) -> list[str]:
    """Mosaics as one .npz. Returns lines on what is missing.

    Raises DataError for folders that hold none, and for pixels that are not those that were packed.
    """
    meta, index = _about(folders)
    per, cols, side = meta["per_mosaic"], meta["cols"], meta.get("side", SIDE)
    said, content = [], {}
    for split in SPLITS:
        labels = index[f"{split}_labels"]
        files = sorted({path.name: path for folder in folders for path in folder.glob(f"{split}_*.webp")}.items())
        if not files:
            raise DataError(f"data: no {split}_*.webp in {', '.join(map(str, folders))}")
        parts, taken = [], []
        for name, path in files:
            number = int(Path(name).stem.rpartition("_")[2])
            chosen = labels[number * per : (number + 1) * per]
            parts.append(_apart(path, cols, side)[: len(chosen)])
            if len(parts[-1]) < len(chosen):
                raise DataError(f"data: {path}: {len(parts[-1])} images, {len(chosen)} were packed")
            taken.append(chosen)
        pixels, found = np.concatenate(parts), np.concatenate(taken)
        if len(found) < len(labels):
            said.append(f"{split}: {len(found):,} of {len(labels):,} images are here")
        elif hashlib.sha256(pixels.tobytes()).hexdigest() != meta[f"{split}_sha256"]:
            raise DataError(f"data: pixels of {split} are not those that were packed")
        content |= {f"{split}_images": pixels, f"{split}_labels": found.astype(np.int64)}
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **content, class_names=_names(index["classes"]))
    return said


def _about(folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    for folder in folders:
        if (folder / "meta.json").is_file() and (folder / "index.npz").is_file():
            return json.loads((folder / "meta.json").read_text()), npz_arrays(
                folder / "index.npz", ("train_labels", "test_labels", "classes")
            )
    raise DataError(f"data: no meta.json and index.npz of mosaics in {', '.join(map(str, folders))}")


def _names(classes: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Bytes or texts as texts."""
    return np.array([name.decode() if isinstance(name, bytes) else str(name) for name in classes.tolist()])


def _joined(pixels: Pixels, cols: int) -> Pixels:
    """(N, S, S, 3) as one image, `cols` in a row; black where the last row has fewer."""
    count, side = pixels.shape[:2]
    rows = -(-count // cols)
    filled = np.zeros((rows * cols, side, side, 3), np.uint8)
    filled[:count] = pixels
    across = filled.reshape(rows, cols, side, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(across).reshape(rows * side, cols * side, 3)


def _apart(path: Path, cols: int, side: int) -> Pixels:
    """The reverse."""
    try:
        with Image.open(path) as opened:
            mosaic = np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise DataError(f"data: {path}: {error}") from None
    if mosaic.shape[0] % side or mosaic.shape[1] != cols * side:
        raise DataError(f"data: {path}: {mosaic.shape[1]}x{mosaic.shape[0]} pixels are no rows of {cols} of {side}")
    rows = mosaic.shape[0] // side
    apart = mosaic.reshape(rows, side, cols, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(apart).reshape(-1, side, side, 3)


def main(words: Sequence[str]) -> int:
    try:
        if words[:1] == ["pack"] and len(words) > 2:
            files = pack(Path(words[1]), words[2:])
            print(f"{len(files)} mosaics, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {words[1]}")
        elif words[:1] == ["unpack"] and len(words) == 3:
            print("\n".join([*unpack([Path(name) for name in words[1].split(",")], Path(words[2])), words[2]]))
        else:
            print(__doc__)
            return 2
    except KdrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
