"""Robustness to common corruptions: folders as CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019, 1903.12261).

Such a folder holds one `<corruption>.npy` for each corruption, uint8 (5 N, H, W, C): the N test images at severity 1,
then at 2, ... 5; and `labels.npy` (5 N,). 15 corruptions count for the mean, 4 extra ones stand apart.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.core.hashing import file_hash
from kdrun.core.progress import metered
from kdrun.core.schema import FileContent
from kdrun.training.evaluator import Evaluator, Logits

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")  # which the paper keeps for validation
SEVERITIES = 5
METRICS = ("top1", "nll", "brier", "ece", "overconfidence", "confidence_gap")  # error is 1 - top1
KEY = "evaluate.corruptions"
Results = dict[str, dict[str, dict[str, dict[str, float]]]]


class Corruptions:
    """A folder of that format, its files checked but not read.

    Args:
        shape: (H, W, C) of the images that the networks were trained on.

    Raises:
        DataError: a file that is missing, damaged or does not fit the dataset.
    """

    def __init__(self, folder: str, shape: Sequence[int], num_classes: int) -> None:
        self.folder = Path(folder).expanduser()
        self.labels = np.asarray(_array(self.folder / "labels.npy"))
        n = len(self.labels) if self.labels.ndim == 1 else 0
        if self.labels.dtype.kind not in "iu" or not n or n % SEVERITIES:
            found = f"{self.labels.dtype} {self.labels.shape}"
            raise DataError(f"{KEY}: {self.folder}/labels.npy: expected integers ({SEVERITIES} N,), got {found}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(f"{KEY}: {self.folder}/labels.npy: from {low} to {high}, allowed 0 to {num_classes - 1}")
        self.names = [name for name in (*CORRUPTIONS, *EXTRA) if name in CORRUPTIONS or self._path(name).exists()]
        for name in self.names:
            array = _array(self._path(name))
            if array.dtype != np.uint8 or array.shape != (n, *shape):
                expected = f"expected uint8 {(n, *shape)}, got {array.dtype} {array.shape}"
                raise DataError(f"{KEY}: {self._path(name)}: {expected}")

    key = KEY

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    @property
    def hash(self) -> str:
        """Of the labels, and of the names and sizes of all arrays."""
        arrays = FileContent(suffixes=frozenset({".npy"}))
        parts = [file_hash(str(path), KEY, arrays) for path in (self.folder, self.folder / "labels.npy")]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]

    def content(self, outputs: Path) -> str:
        """Hash of all files, read for it unless it is remembered in `outputs`."""
        return Contents([self._path(name) for name in ("labels", *self.names)], self.folder, outputs).read()

    def evaluate(self, ask: Callable[[Evaluator], Logits], device: torch.device, **options: Any) -> Results:
        """net -> corruption -> severity, "1" to "5" -> metric; one file is in memory at a time.

        Args:
            ask: gives the logits of all networks on an evaluator's images.
            options: of `Evaluator`.
        """
        out: Results = {}
        labels = torch.from_numpy(self.labels.astype(np.int64)).to(device)
        blocks = torch.arange(len(labels), device=device).chunk(SEVERITIES)
        for name in metered(self.names, "corruptions", len(self.names), "files"):
            images = torch.from_numpy(np.array(_array(self._path(name)))).to(device)
            splits = {f"{k + 1}": (images, at, labels[at]) for k, at in enumerate(blocks)}
            evaluator = Evaluator(splits, **options, told=f"{name}, severity")
            logits = ask(evaluator)
            found = evaluator.metrics(logits)
            for net in dict.fromkeys(net for _, net in logits):
                out.setdefault(net, {})[name] = {
                    severity: {metric: found[f"{severity}/{net}/{metric}"] for metric in METRICS}
                    for severity in evaluator.splits
                }
        return out


def summary(results: Results) -> dict[str, float]:
    """Means over corruptions and severities: `corrupted/<net>/<metric>`; `corrupted_extra/...` of the extra ones."""
    out: dict[str, float] = {}
    for net, by_name in results.items():
        for split, names in (("corrupted", CORRUPTIONS), ("corrupted_extra", EXTRA)):
            cells = [cell for name in names if name in by_name for cell in by_name[name].values()]
            out |= {f"{split}/{net}/{metric}": mean(cell[metric] for cell in cells) for metric in METRICS if cells}
    return out


def _array(path: Path) -> npt.NDArray[Any]:
    """An .npy file, mapped and not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{KEY}: {path}: no such file; expected the files of CIFAR-10-C or CIFAR-100-C") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{KEY}: {path}: not a readable .npy file ({error})") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{KEY}: {path}: not a readable .npy file (it holds several arrays)")
    return array
