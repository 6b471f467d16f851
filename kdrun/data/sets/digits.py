"""Handwritten digits, 8x8 pixels, 1,797 images: scikit-learn's copy of the UCI set (Alpaydin and Kaynak, 1998).

Comes with scikit-learn, needs no download. The set has no official test part: kdrun takes the last 400 images in file
order, which other hands wrote than most of the training images, so the test asks for more than memory of a writer.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdrun.config.dataset import Captions, DatasetConfig, Facts
from kdrun.core.registry import register
from kdrun.data.arrays import Arrays
from kdrun.data.types import channel_statistics

NUM_TEST = 400
# Ours, as the templates below, none of which is among them.
CAPTIONS = Captions(
    templates=(
        "{word}",
        "a {word}",
        "the digit {word}",
        "a handwritten {word}",
        "a {tone} {word}",
        "a {word} in {tone} strokes",
        "the digit {word} written with a {tone} pen",
        "a small image of a {tone} handwritten {word}",
    ),
    tones=(("thin", "fine", "light"), ("thick", "bold", "heavy")),
    words=(
        ("0", "zero", "nought"),
        ("1", "one", "ace"),
        ("2", "two", "deuce"),
        ("3", "three", "trey"),
        ("4", "four", "quad"),
        ("5", "five", "quint"),
        ("6", "six", "half dozen"),
        ("7", "seven", "septet"),
        ("8", "eight", "octet"),
        ("9", "nine", "nonet"),
    ),
)


@register("dataset", "digits")
class Digits:
    class Config(DatasetConfig):
        mirror: bool = False

    facts = Facts(
        size=8, channels=1, classes=10, train=1_397, test=NUM_TEST,
        prompts=("a photo of the number {}.", "the figure {} on paper.", "somebody wrote {} here."), captions=CAPTIONS,
    )  # fmt: skip

    @staticmethod
    def sources(config: Config) -> list[Path]:
        """The files that are read."""
        path = _file()
        return [] if path is None else [path]

    @staticmethod
    def load(config: Config) -> Arrays:
        table = _table()
        pixels = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        labels = table[:, -1].astype(np.int64)
        mean, std = channel_statistics(pixels[:-NUM_TEST])
        return Arrays(
            pixels[:-NUM_TEST], labels[:-NUM_TEST], pixels[-NUM_TEST:], labels[-NUM_TEST:],
            class_names=tuple("0123456789"), mean=mean, std=std,
        )  # fmt: skip


def _file() -> Path | None:
    """scikit-learn's; None: where it is not expected."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return path if path.is_file() else None


def _table() -> npt.NDArray[np.float64]:
    """(1797, 65): 64 pixels from 0 to 16, and the digit."""
    path = _file()
    if path is not None:  # importing scikit-learn takes two seconds, this 30 ms
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels]).astype(np.float64)
