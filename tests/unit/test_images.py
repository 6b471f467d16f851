"""Image files: thin ones, huge ones, and what is no regular file."""

import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.config.compose import Composer
from kdrun.config.dataset import MOST_PIXELS, Reading
from kdrun.config.key import run_key
from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.data import images, reading
from kdrun.data.images import MOST_RESIZED, decode, fit, list_images
from kdrun.data.packed import Pack
from kdrun.data.reading import read_rgb
from kdrun.data.streamed import ImageFiles

RNG = np.random.default_rng(0)


def smooth(width: int, height: int) -> Image.Image:
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    waves = [127 + 120 * np.sin(x / (9 + k)) * np.cos(y / (7 + k)) for k in range(3)]
    return Image.fromarray(np.stack(waves, 2).astype(np.uint8))


def before(rgb: Image.Image, size: int) -> np.ndarray:
    """As all images were resized before there was a limit."""
    scale = size / min(rgb.size)
    wide, high = (max(round(side * scale), size) for side in rgb.size)
    whole = rgb.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [8, 32, 224])
def test_every_image_below_the_limit_keeps_its_bytes(size):
    sides = [(1, 1), (1, 50), (50, 1), (8, 8), (224, 224), (500, 375), (375, 500), (640, 427), (1200, 90), (7, 300)]
    for width, height in sides:
        assert (size / min(width, height)) ** 2 * width * height <= MOST_RESIZED
        rgb = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        np.testing.assert_array_equal(fit(rgb, size, "center"), before(rgb, size))


def test_the_cropped_part_is_that_of_the_resized_whole(monkeypatch):
    monkeypatch.setattr(images, "MOST_RESIZED", 0)
    for width, height, size in [
        (300, 200, 64),
        (200, 301, 64),
        (50, 7, 32),
        (64, 64, 64),
        (90, 1, 20),
        (640, 427, 224),
    ]:
        rgb = smooth(width, height)
        away = fit(rgb, size, "center").astype(int) - before(rgb, size)
        assert np.abs(away).max() <= 2, (width, height, size)  # Pillow may take the two directions in another order


@pytest.mark.parametrize("sides", [(65_000, 1), (1, 65_000), (30_000, 2)])
def test_a_thin_image_costs_what_its_crop_costs(sides):
    rgb = Image.new("RGB", sides, (10, 20, 30))
    held, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    made = fit(rgb, 224, "center")
    assert time.perf_counter() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 200_000  # kB; it was 14 GB
    assert (made == (10, 20, 30)).all()


@pytest.fixture
def bomb(tmp_path) -> Path:
    path = tmp_path / "bomb.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 100_000
    return path


def test_a_file_of_too_many_pixels_is_not_decoded(bomb, monkeypatch):
    monkeypatch.setattr(reading, "_rgb", lambda image, color: pytest.fail("was decoded"))
    told = f"{bomb} (13000x13000 are 169,000,000 pixels, more than max_pixels={MOST_PIXELS}, which can be raised)"
    assert read_rgb(bomb) == told
    assert decode([bomb], 8)[1] == {0: told}
    with pytest.raises(DataError, match="max_pixels"):
        next(ImageFiles.of([bomb], 8, "center").batches([np_index(0)]))


def np_index(k: int):
    import torch

    return torch.tensor([k])


def test_the_limit_can_be_raised_beyond_pillows(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    assert isinstance(read_rgb(path, Reading(599)), str)
    assert not isinstance(read_rgb(path, Reading(600)), str)
    assert len(ImageFiles.of([path], 8, "center", Reading(599))[:1].paths) == 1
    assert ImageFiles.of([path], 8, "center", Reading(599))[:1].how.most == 599


def test_what_was_packed_stays_and_a_raised_limit_packs_anew(tmp_path):
    path = tmp_path / "data" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (30, 20)).save(path)

    def pack(*most: int):
        made = Pack(Contents([path], path.parent, tmp_path), 8, "center", tmp_path, "dataset.path", *map(Reading, most))
        return made.build(), made.artifact

    assert pack()[1].spec.keys() == {"version", "size", "crop", "num_files", "files"}
    assert list(pack(599)[0].unreadable) == [0]
    assert not pack(600)[0].unreadable


def test_only_regular_files_are_read(tmp_path):
    for name in ("pipe.jpg", "socket.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "null.png").symlink_to("/dev/null")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert list_images(tmp_path, "images") == [tmp_path / "a.png"]
    assert read_rgb(tmp_path / "pipe.jpg") == f"{tmp_path / 'pipe.jpg'} (not a regular file)"
    assert read_rgb(tmp_path / "gone.jpg") == f"{tmp_path / 'gone.jpg'} (No such file or directory)"
    with pytest.raises(DataError, match="not a regular file"):
        Pack(Contents([tmp_path / "null.png"], tmp_path, tmp_path), 8, "center", tmp_path, "dataset.path")


def test_the_limit_is_in_the_key_only_where_files_are_left_out(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / name / "a.png")
    words = ["dataset=imagefolder", f"dataset.path={tmp_path}", "method=supervised", "teacher=none", "loss=ce"]
    with Composer() as composer:

        def key(*more: str) -> str:
            return run_key(composer.typed([*words, *more]))

        assert key("dataset.max_pixels=7") == key()
        assert key("dataset.skip_unreadable=true") != key("dataset.skip_unreadable=true", "dataset.max_pixels=7")
