"""What all datasets have in common, and those of image files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.schema import FileContent, OutsideKey, Schema
from kdrun.core.suffixes import EXTENSIONS
from kdrun.core.texts import text_of

PHOTO = ("a photo of a {}.",)
MOST_PIXELS = 2**30 // 4 // 3
"""Of an image file, 89.5 million: 256 MB as RGB. Pillow warns of more, as of a decompression bomb."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What may be said of an image."""

    templates: tuple[str, ...]
    """{word} is the class, {tone} how bright the image is."""
    tones: tuple[tuple[str, ...], tuple[str, ...]]
    """Words for images darker and brighter than the mean of the dataset."""
    words: tuple[tuple[str, ...], ...] = ()
    """Words for each class; empty: the names of the classes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a dataset before a file of it is read: `facts` of its class. None: not known."""

    size: int | None = None
    """Side of the images in pixels; None also where they differ, or are not square."""
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...] | None = None
    classes: int | None = None
    train: int | None = None
    """Official training images; where there are no official test images, all images."""
    val: int | None = None
    test: int | None = None
    download: float | None = None
    """Bytes of the archives, about."""
    prompts: tuple[str, ...] = ()
    """Templates with {} for the class name, for a teacher that reads names; empty: "a photo of a {}."."""
    captions: Captions | None = None
    """For `method=contrastive`; None: what goes with any class names."""

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std`. Raises ConfigError where they are not stated."""
        if self.mean is None or self.std is None:
            raise ConfigError("Facts.mean, Facts.std: not stated for this dataset, whose reader asks for them")
        return self.mean, self.std

    def __post_init__(self) -> None:
        for template in self.prompts:
            if template.count("{}") != 1:
                raise ConfigError(f"Facts.prompts: {template!r} must hold {{}} once, where the class name goes")


def _num_labels(given: Any) -> Any:
    if isinstance(given, str) and len(given) > 24:  # it becomes part of a folder's name
        raise ValueError(f"{given[:24]!r}… is no number of labels; give e.g. 160, 16/class or 1%")
    if isinstance(given, str) and not re.fullmatch(r"0*[1-9]\d*/class|(?=.*[1-9])\d+(\.\d+)?%", given):
        raise ValueError(f"{given!r} is no number of labels; give e.g. 160, 16/class or 1%")
    if isinstance(given, int) and given <= 0:
        raise ValueError(f"{given} is no number of labels; give e.g. 160, 16/class or 1%")
    return given


NumLabels = Annotated[int | str | None, BeforeValidator(_num_labels)]
"""How many labels: in all, of each class (`16/class`), or of the training images (`1%`, rounded down)."""


class DatasetConfig(Schema):
    """What all datasets have in common; a dataset's own `Config` adds its keys."""

    name: str
    num_labels: NumLabels = None
    """Size of the labeled set, balanced over the classes, or `16/class`, or `1%`; null: the whole training part."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training images kept for validation, stratified."""
    val_seed: int = Field(0, ge=0)
    split_seed: int | None = Field(None, ge=0)
    """Seed of the labeled draw; null: the run's seed, so that a spread over seeds contains the draw."""
    upstream: float = Field(0.0, ge=0, lt=1)
    """Share of the training images that validation leaves, stratified, which is set apart for a teacher of source=clip;
    runs on the downstream part see none of them."""
    part: Literal["downstream", "upstream"] = "downstream"
    """Which of the two parts this run sees."""
    split_file: Annotated[str | None, FileContent()] = None
    """An .npz file with index arrays labeled (and unlabeled, val), instead of a draw."""
    unlabeled: Annotated[str | None, FileContent(suffixes=EXTENSIONS)] = None
    """Another unlabeled pool than the training images: a folder of images, or an .npz with an array `images`."""
    class_names: list[str] | None = Field(None, min_length=2)
    """Names of the classes for a teacher that reads them, in the order of the labels; or a text file with one a line;
    null: the dataset's own."""
    mirror: bool = True
    """Whether a mirrored image keeps its class (false for digits)."""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    """Per channel, of pixels scaled to [0, 1]; null: the dataset's own."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    resident: Annotated[bool | Literal["auto"], OutsideKey()] = "auto"
    """Whether the images are kept on the training device, or fetched from the host's memory (packed ones: from their
    file, through the page cache) batch by batch; auto: on the device where they fit."""

    @property
    def joins_pool(self) -> bool:
        """Whether images without labels join the training images in the unlabeled pool; false: they replace them."""
        return False

    def offline(self) -> Self:
        """The same, of what lies here: nothing is downloaded."""
        return self.replace(download=False) if hasattr(self, "download") else self

    @field_validator("class_names", mode="before")
    @classmethod
    def listed(cls, given: Any) -> Any:
        """The lines of a file."""
        if not isinstance(given, str):
            return given
        try:
            text = text_of(Path(given), "")
        except ConfigError as error:
            raise ValueError(f"not a readable text file with a name on each line: {error}") from None
        return [line.strip() for line in text.splitlines() if line.strip()]


def facts_of(name: object, key: str = "dataset.name") -> Facts:
    """The facts of a registered dataset. Raises ConfigError for an unknown name, and for facts of another type."""
    part = lookup("dataset", name, key)
    facts = getattr(part, "facts", Facts())
    if not isinstance(facts, Facts):
        raise ConfigError(f"{part.__qualname__}.facts: expected Facts(size=..., ...), got a {type(facts).__name__}")
    return facts


class PackConfig(Schema):
    """Image files, decoded once to a file of pixels that all runs share (outputs/artifacts/packed)."""

    size: Annotated[int | None, Field(gt=0), OutsideKey()] = None
    """Side in pixels; null: not packed, but decoded into memory by each process, at `dataset.size`."""
    crop: Literal["center", "square"] = "center"
    """center: short side resized, center square kept; square: both sides resized. Packed or not."""


@dataclass(frozen=True)
class Reading:
    """How a file becomes pixels, before they are resized."""

    most: int = MOST_PIXELS
    """`dataset.max_pixels`."""
    exif: str = "stored"
    """`dataset.exif`."""
    color: str = "stored"
    """`dataset.color`."""


class FilesConfig(DatasetConfig):
    """What all datasets of image files have in common."""

    size: int = Field(224, gt=0)
    """Side in pixels. What is packed has `pack.size`; the run key knows the size, not where the pixels are kept."""
    pack: PackConfig = Field(default_factory=PackConfig)
    stream: bool = False
    """Neither packed nor held in memory: the files of each batch are decoded for it, by `execution.workers`. Crops at
    random scales are then cut out of the file's own pixels, else all is as if the files were packed."""
    skip_unreadable: bool = False
    """Go on without files that cannot be decoded; the record says how many."""
    max_pixels: int = Field(MOST_PIXELS, gt=0)
    """Of a file: one that has more is not decoded, as it would be for a few kilobytes that claim to be a poster. It
    counts as unreadable, and for the run key where `skip_unreadable` goes on without it."""
    exif: Literal["upright", "stored"] = "stored"
    """upright: an image is turned as its orientation in EXIF or XMP says; stored: it is taken as torchvision does, of
    published datasets what everybody's figures are of. TIFF files are turned in either case: Pillow does it."""
    color: Literal["stored", "srgb"] = "stored"
    """srgb: what has a color profile (a wide gamut, CMYK) is converted to sRGB by it; stored: profiles are ignored."""
    coop_split: Annotated[str | None, FileContent()] = None
    """A split_zhou_<Dataset>.json of CoOp (Zhou et al. 2022, arXiv 2109.01134): its train, val and test images."""
    val: Literal["drawn", "official"] = "drawn"
    """drawn: `val_fraction` of the training images, official validation images among them; official: those alone."""

    @property
    def pixels(self) -> int:
        """Side in pixels, packed or not."""
        return self.pack.size or self.size

    @property
    def reading(self) -> Reading:
        return Reading(self.max_pixels, self.exif, self.color)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.stream and self.skip_unreadable:
            raise ValueError(
                "skip_unreadable: which files are unreadable is not known before they are streamed; set it or stream "
                "to false"
            )
        return self


class OwnFilesConfig(FilesConfig):
    """What datasets of a user's own image files have in common."""

    exif: Annotated[Literal["upright", "stored"], OutsideKey()] = "upright"
    """As people see them. The run key knows which files are turned, and nothing where none is."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of each class that is drawn as test images, where nobody has named any."""
    test_seed: int = Field(0, ge=0)
    """Of that draw, which goes by the names of the files: what is added later leaves most of it as it was."""
