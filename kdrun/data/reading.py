"""One image file as eight-bit RGB: the one way in which training, evaluation and prediction read files.

| file | pixels |
|---|---|
| orientation in EXIF or XMP | turned with `dataset.exif=upright`, else as stored (of TIFF and HEIC the readers turn) |
| animation, several pages | the first frame |
| gray, 1 bit, palette | RGB |
| transparency | dropped: the color that a pixel has, or the palette, however transparent |
| 16 bits, gray | v / 257, rounded; 16 bits a channel of color: Pillow's upper eight bits |
| 32 bits, floats | refused: nobody knows their range |
| CMYK, YCbCr, LAB | Pillow's plain formula; by the profile with `dataset.color=srgb` |
| a color profile (a wide gamut) | ignored; converted to sRGB with `dataset.color=srgb` |
"""

import importlib
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.dataset import Reading
from kdrun.core.files import reason, regular
from kdrun.core.suffixes import suffix_of
from kdrun.data.orientation import upright

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN = Reading()
PLUGINS = {
    "pillow_heif": ("register_heif_opener", "register_avif_opener"),
    "pillow_avif": (),
    "pillow_jxl": (),
}
"""Packages that teach Pillow a format, and what to call once they are imported; absent ones are passed by."""
NEEDED = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pip install -U pillow, or pillow-avif-plugin"),
    ".jxl": "pip install pillow-jxl-plugin",
}
"""By the ending of a file that Pillow does not know: what reads it."""
UNKNOWN = "not an image"
NO_READER = f"{UNKNOWN} that this Pillow reads: "


def opened(path: Path) -> "Image":
    """Its header, by whatever reads it; no pixels yet. Close it, or use it as a context."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # ours counts, which a key can raise
    register_plugins()
    return Image.open(regular(path))


def read_rgb(path: Path, how: Reading = PLAIN) -> "Image | str":
    """All of an image, or `path (what is wrong)`."""
    from PIL import UnidentifiedImageError

    try:
        with opened(path) as image:
            if image.width * image.height > how.most:
                held = f"{image.width}x{image.height} are {image.width * image.height:,} pixels"
                return f"{path} ({held}, more than max_pixels={how.most}, which can be raised)"
            return _rgb(upright(image) if how.exif == "upright" else image, how.color)
    except UnidentifiedImageError:
        remedy = NEEDED.get(suffix_of(path.name))
        return f"{path} ({NO_READER + remedy if remedy else UNKNOWN})"
    except Exception as error:  # a damaged file may raise anything
        return f"{path} ({reason(error)})"


@lru_cache(maxsize=1)
def register_plugins() -> tuple[str, ...]:
    """Once in a process. Returns the packages that there are."""
    found = []
    for name, calls in PLUGINS.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for call in calls:
            getattr(module, call, int)()
        found.append(name)
    return tuple(found)


def _rgb(image: "Image", color: str = "stored") -> "Image":
    """Eight bits a channel. Raises ValueError for pixels whose range is not known."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255; Pillow would make 255 of all from 255 on
        return Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert the image to 8 or 16 bits")
    profile = image.info.get("icc_profile") if color == "srgb" else None
    if "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns; the colors are the same
    if profile:
        return _converted(image, profile)
    return image.convert("RGB")


SPACES = {"RGB ": "RGB", "CMYK": "CMYK", "GRAY": "L", "Lab ": "LAB"}
"""Color space of a profile -> mode of the pixels that it speaks of."""


def _converted(image: "Image", profile: bytes) -> "Image":
    """RGB as sRGB has it, by the image's own profile. Raises ValueError for a profile that is none."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = SPACES.get(source.profile.xcolor_space)
        if mode is None:
            raise ValueError(f"for {source.profile.xcolor_space.strip()}")
        pixels = image if image.mode == mode else image.convert(mode)
        made = ImageCms.profileToProfile(pixels, source, _srgb(), outputMode="RGB")
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        raise ValueError(
            f"its color profile cannot be used ({reason(error)}); dataset.color=stored does without"
        ) from None
    return image.convert("RGB") if made is None else made


@lru_cache(maxsize=1)
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")
