"""A whole dataset in memory or in a mapped file."""

from dataclasses import dataclass

import numpy as np

from kdrun.core.errors import DataError
from kdrun.data.streamed import ImageFiles
from kdrun.data.types import Images, Labels


@dataclass(frozen=True)
class Arrays:
    """A whole dataset. Positions in `train_images` are the indices that splits and records name."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    num_unlabeled: int = 0
    """Training images from `dataset.unlabeled`, the last ones; their label is -1."""
    source: str = "dataset"
    """What to blame for what is wrong with them: the key and the file or folder."""
    val: Labels | None = None
    """(V,) positions in `train_images` of the official validation images; None: a part is drawn."""
    folds: tuple[Labels, ...] = ()
    """Positions in `train_images` of the labeled images that `dataset.fold` chooses; empty: the dataset names none."""
    warnings: tuple[str, ...] = ()
    """What the record should say about them."""
    named: bool = True
    """False: `class_names` are mere numbers, because nobody gave names."""
    files: tuple[ImageFiles, ImageFiles] | None = None
    """Training and test images that are streamed; the arrays have their shapes, and black pixels."""

    packed: str | None = None
    """What names the file of pixels that holds all images, by its content; None: there is none."""

    def __post_init__(self) -> None:
        self._refuse_types()
        if self.num_classes < 2:
            given = ", ".join(self.class_names) or "none"
            raise DataError(f"{self.source}: classes: {given}; there must be two or more")
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.ndim != 4 or images.dtype != np.uint8:
                raise DataError(
                    f"{self.source}: {split} images: expected uint8 (N, H, W, C), got {images.dtype} {images.shape}"
                )
            if labels.shape != images.shape[:1]:
                raise DataError(f"{self.source}: {split}: {len(images)} images but labels of shape {labels.shape}")
            if not len(images):
                raise DataError(f"{self.source}: {split}: no images")
            if split == "train":
                labels = labels[: len(labels) - self.num_unlabeled]
            if labels.min() < 0 or labels.max() >= self.num_classes:
                found = f"from {labels.min()} to {labels.max()}"
                raise DataError(f"{self.source}: {split} labels: {found}, allowed 0 to {self.num_classes - 1}")

    def _refuse_types(self) -> None:
        """Of what a user's reader may have given."""
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            if not isinstance(getattr(self, name), np.ndarray):
                found = type(getattr(self, name)).__name__
                raise DataError(f"{self.source}: {name}: expected a NumPy array, got a {found}")
        for name in ("train_labels", "test_labels"):
            if getattr(self, name).dtype != np.int64:
                raise DataError(f"{self.source}: {name}: expected int64, got {getattr(self, name).dtype}")
        names = self.class_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.source}: class_names: expected a tuple of texts, got {names!r:.80}")
        channels = self.train_images.shape[-1:]
        for name in ("mean", "std"):
            if (len(getattr(self, name)),) != channels:
                raise DataError(f"{self.source}: {name}: expected {channels} numbers, got {getattr(self, name)}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
