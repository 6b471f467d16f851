"""Other test sets of ImageNet's classes, which a finished run is measured on. Nothing of them is trained on.

ImageNet-V2 (Recht et al. 2019, arXiv 1902.10811; folders 0 to 999), ImageNet-Sketch (Wang et al. 2019, arXiv
1905.13549), ImageNet-A (Hendrycks et al. 2021, arXiv 1907.07174) and ImageNet-R (Hendrycks et al. 2021, arXiv
2006.16241), the latter two of 200 classes. As in the authors' code, a network chooses among the classes of the set.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdrun.config.dataset import DatasetConfig, FilesConfig, Reading
from kdrun.config.run import EvaluateConfig
from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.core.hashing import file_hash
from kdrun.core.schema import FileContent
from kdrun.core.suffixes import EXTENSIONS
from kdrun.data.classes import places
from kdrun.data.images import list_classes
from kdrun.data.streamed import ImageFiles
from kdrun.training.corruptions import METRICS
from kdrun.training.evaluator import Evaluator, Logits

FOLDERS = {
    "imagenet_v2": "imagenetv2-matched-frequency-format-val",
    "imagenet_sketch": "sketch",
    "imagenet_a": "imagenet-a",
    "imagenet_r": "imagenet-r",
}
SIZES = {"imagenet_v2": 1.26e9, "imagenet_sketch": 7.6e9, "imagenet_a": 0.69e9, "imagenet_r": 2.2e9}
"""Bytes of their archives, about."""
KEY = "evaluate.sets"
NUM_CLASSES = 1000  # of ImageNet, which ImageNet-V2 counts through


class ShiftedSet:
    """The images of one set whose classes the run knows.

    Args:
        name: a key of `FOLDERS`.
        root: what holds the set's folder.
        config: the run's dataset, whose folder of training images has the classes in their order.
        class_names: of the run, WordNet ids.

    Raises:
        DataError: the folder is absent or of another form, or shares fewer than two classes with the run.
    """

    def __init__(self, name: str, root: Path, config: Any, class_names: tuple[str, ...]) -> None:
        self.name = name
        self.key = f"{KEY}.{name}"
        self.folder = root / FOLDERS[name]
        if not isinstance(config, FilesConfig):
            raise DataError(
                f"{KEY}: {name}: dataset={config.name} has no WordNet ids as classes; choose dataset=imagenet"
            )
        if not self.folder.is_dir():
            raise DataError(f"{KEY}: {self.folder} is not there; put {name} there, or give evaluate.root")
        folders, paths, labels = list_classes(self.folder, key=KEY)
        wnids = _numbered(folders, config, self.folder) if folders[0].isdecimal() else folders
        known = places(wnids, class_names)
        self.classes = sorted(k for k in known if k is not None)
        """Columns of the run's logits that the set has images of."""
        if len(self.classes) < 2:
            raise DataError(
                f"{KEY}: {self.folder}: {len(self.classes)} of its {len(wnids)} classes ({wnids[0]}, ...) are among "
                f"the {len(class_names)} of dataset={config.name} ({class_names[0]}, ...); there must be two or more"
            )
        column = {k: place for place, k in enumerate(self.classes)}
        pairs = [(path, known[k]) for path, k in zip(paths, labels, strict=True)]
        chosen = [(path, column[k]) for path, k in pairs if k is not None]
        self.files = ImageFiles.of(
            [path for path, _ in chosen], config.pixels, config.pack.crop, Reading(config.max_pixels)
        )
        self.targets = torch.tensor([target for _, target in chosen])

    @property
    def hash(self) -> str:
        """Of the names and sizes of all images."""
        images = file_hash(str(self.folder), KEY, FileContent(suffixes=EXTENSIONS))
        return hashlib.sha256(images.encode()).hexdigest()[:12]

    def content(self, outputs: Path) -> str:
        """Hash of all images, read for it unless it is remembered in `outputs`."""
        paths = [self.files.path(k) for k in range(len(self.files))]
        return Contents(paths, self.folder, outputs).read()

    def evaluate(
        self, ask: Callable[[Evaluator], Logits], device: torch.device, outputs: Path, **options: Any
    ) -> dict[str, float]:
        """`<set>/<net>/<metric>` of every network.

        Args:
            ask: gives the logits of all networks on an evaluator's images.
            outputs: where the hash of the images is remembered.
            options: of `Evaluator`.
        """
        named = {self.name: self.files.named(self.content(outputs))}
        index = torch.arange(len(self.targets), device=device)
        evaluator = Evaluator({self.name: (self.files, index, self.targets.to(device))}, **options, named=named)
        columns = torch.tensor(self.classes, device=device)
        logits = {place: values[:, columns] for place, values in ask(evaluator).items()}
        found = evaluator.metrics(logits)
        return {key: value for key, value in found.items() if key.rpartition("/")[2] in METRICS}


def shifted_sets(asked: EvaluateConfig, dataset: DatasetConfig, class_names: tuple[str, ...]) -> list[ShiftedSet]:
    """Those of `evaluate.sets`, each once; `dataset` and `class_names` are the run's."""
    root = Path(asked.root).expanduser()
    return [ShiftedSet(name, root, dataset, class_names) for name in dict.fromkeys(asked.sets)]


def _numbered(folders: list[str], config: Any, place: Path) -> list[str]:
    """The WordNet ids of folders that are called by the number of their class among all of ImageNet's, sorted."""
    root = Path(str(getattr(config, "root", None) or getattr(config, "path", ""))).expanduser()
    train = root / str(getattr(config, "train", "train"))
    all_classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir()) if train.is_dir() else []
    odd = [name for name in folders if not name.isdecimal() or int(name) >= NUM_CLASSES]
    if odd or len(all_classes) != NUM_CLASSES:
        raise DataError(
            f"{KEY}: {place}: folder {odd[0]} is no number from 0 to {NUM_CLASSES - 1}"
            if odd
            else f"{KEY}: {place}: its folders are numbers of ImageNet's {NUM_CLASSES} classes, and {train} has "
            f"{len(all_classes)} class folders to count through; put all of them there"
        )
    return [all_classes[int(name)] for name in folders]
