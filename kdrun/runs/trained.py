"""A finished run as others meet it: one of its predictors, what it is shown of an image, and the names of its classes.

Neither data nor teacher are needed; where the dataset is not on this machine, class names and test images are missing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdrun.config.dataset import FilesConfig, OwnFilesConfig, Reading
from kdrun.core.errors import ConfigError, KdrunError, allowed
from kdrun.core.registry import lookup
from kdrun.data.images import decode
from kdrun.data.listing import FileDataset
from kdrun.data.load import load_dataset
from kdrun.data.types import Images
from kdrun.data.unlabeled import as_gray
from kdrun.data.views.center import Center
from kdrun.data.views.view import View, clean
from kdrun.metrics import fit_temperature
from kdrun.models.network import Network, NetworkSpec
from kdrun.runs.classes import class_names, numbers
from kdrun.runs.finished import FinishedRun
from kdrun.runs.metric import ENOUGH, Metric, more_validation


class Classifier(nn.Module):
    """A predictor as a module: pixels (B, C, H, W) uint8 -> logits, or log-probabilities, (B, classes) float32.

    Args:
        parts: what holds the weights.
        predict: of a view.
    """

    def __init__(self, parts: nn.Module, predict: Callable[[View], Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self._predict = predict

    def forward(self, pixels: Tensor) -> Tensor:
        index = torch.arange(pixels.shape[0], device=pixels.device)
        return self._predict(View(pixels, index)).float()


@dataclass(frozen=True)
class Shown:
    """What the networks of a run are shown of an image."""

    size: tuple[int, int]
    """Height and width of an image as the dataset has it."""
    channels: int
    crop: str
    """How files become such an image, see `kdrun.data.images.fit`."""
    how: Reading
    """How files are read."""
    center: Center | None
    class_names: tuple[str, ...]
    """In the order of the logits; numbers where they are not known."""
    test: Images | Sequence[Path]
    """Test images or their files; none where the dataset is not on this machine."""
    gone: str | None
    """Why it is not."""

    @property
    def unnamed(self) -> str | None:
        """Why classes have numbers for names; None: they have names."""
        return self.gone if self.class_names == numbers(len(self.class_names)) else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see."""
        height, width = self.size if self.center is None else (self.center.size, self.center.size)
        return self.channels, height, width

    def pixels(self, images: Images) -> Tensor:
        """(B, H, W, 3 or C) uint8, of the dataset's size -> (B, C, h, w) uint8."""
        if self.channels == 1 and images.shape[-1] == 3:
            images = as_gray(images)
        return clean(torch.from_numpy(images), torch.arange(len(images)), self.center).contiguous()

    def some(self, count: int) -> tuple[Tensor, str]:
        """Up to `count` test images as the networks see them, else random pixels, and in words which."""
        total = len(self.test)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
        if isinstance(self.test, np.ndarray):
            images = self.test[chosen]
        else:
            images, _ = decode([self.test[k] for k in chosen], self.size[0], self.crop, self.how)
        if len(images):
            return self.pixels(images), f"{len(images)} test images"
        drawn = torch.randint(0, 256, (count, *self.shape), generator=torch.Generator().manual_seed(0))
        return drawn.to(torch.uint8), f"{count} images of random pixels (seed 0)"


@dataclass(frozen=True)
class Trained:
    """One predictor of a finished run, on the CPU, in eval mode."""

    run: FinishedRun
    name: str
    """The predictor's."""
    classifier: Classifier
    network: Network | None
    """What the predictor is; None: it is made of more than one network."""
    shown: Shown
    temperature: float | None
    """Fitted on the run's validation images; None: it has none, or too few."""
    uncalibrated: str | None
    """Why there is no temperature."""

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.classifier.parameters())


def open_trained(run: FinishedRun, name: str | None = None, size: int | None = None) -> Trained:
    """A predictor of a run, its headline's by default.

    Args:
        size: side of the images, for a dataset that is not on this machine and has no size in its configuration.

    Raises:
        KdrunError: no such predictor; or the size is needed, or is another.
    """
    record = run.record
    name = name or str(record["headline"])
    if name not in (names := run.predictors):
        raise ConfigError(f"predictor: {name}: not one of {run.directory}{allowed(name, names)}")
    alone = run.config.method_class.alone.get(name, name)
    network = run.network(alone) if alone in record["nets"] else None
    if network is not None:
        classifier, spec = Classifier(network, lambda view: network(view).logits), network.spec
    else:
        method = run.method()
        classifier = Classifier(method, lambda view: method.predict(view)[name])
        spec = next(iter(method.networks().values())).spec
    temperature, why = _temperature(run, name)
    return Trained(run, name, classifier.eval(), network, _shown(run, spec, size), temperature, why)


def _temperature(run: FinishedRun, name: str) -> tuple[float | None, str | None]:
    """The temperature, or why there is none."""
    known = run.metrics.get(str(Metric("val", name, "temperature")))
    count = (run.record.get("split") or {}).get("val")
    if known is None and run.checkpoint != "last":
        return None, "an older run, which fitted a temperature for its last step alone"
    if known is None and f"val-{name}" in run.predicted:  # an older record
        logits, target = run.predictions("val", name)
        known, count = fit_temperature(logits, target).item(), len(target)
    if known is None or not math.isfinite(known):
        remedy = f"train with dataset.val_fraction=0.1, or what gives {ENOUGH} of them"
        return None, f"the run has no validation images to fit a temperature on; {remedy}"
    if count is not None and count < ENOUGH:
        few = f"its {count} validation images are too few to fit a temperature on, {ENOUGH} would be enough"
        return None, few + more_validation(run.config.dataset.val_fraction, count)
    return known, None


def _shown(run: FinishedRun, spec: NetworkSpec, side: int | None) -> Shown:
    config = run.config
    dataset = config.dataset.offline()
    names: Sequence[str]
    test: Images | Sequence[Path] = ()
    size, crop, gone = None, "center", None
    try:
        if isinstance(dataset, FilesConfig):
            size, crop = (dataset.pixels, dataset.pixels), dataset.pack.crop
            reader: type[FileDataset] = lookup("dataset", dataset.name, "dataset.name")
            listing = reader.files(dataset)
            names, test = listing.class_names, [path for path, _ in listing.test]
        else:
            arrays = load_dataset(dataset, run.outputs)
            size, names, test = arrays.test_images.shape[1:3], arrays.class_names, arrays.test_images
    except ConfigError as error:
        gone = f"the dataset is not on this machine: {error.lines[0]}"
    if gone is None and len(names) != spec.num_classes:
        gone = f"the dataset has {len(names)} classes by now, not {spec.num_classes}"
    if gone is not None:
        test = ()
    if size is None:
        side = side or spec.model.get("size")
        if side is None:
            raise KdrunError(f"size: missing; {gone}; give the side of its images in pixels")
        size = (side, side)
    elif side is not None and size != (side, side):
        raise ConfigError(f"size: {side}: images of dataset={dataset.name} are {size[0]}x{size[1]}; leave it out")
    height, width = size
    center = Center.of(config.views, (height, width))
    how = dataset.reading if isinstance(dataset, FilesConfig) else Reading()
    if not isinstance(dataset, OwnFilesConfig):  # whose images are as published: what it is shown now may be a photo
        how = replace(how, exif="upright")
    return Shown((height, width), spec.in_chans, crop, how, center, class_names(run, spec.num_classes), test, gone)
