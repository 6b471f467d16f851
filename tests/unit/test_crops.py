"""Crops at random scales and the center for evaluation, against torchvision's one by one."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as official
from torchvision.transforms.v2 import functional as official_v2

from kdrun.config.compose import Composer
from kdrun.config.views import ViewsConfig, WeakConfig
from kdrun.core.errors import ConfigError
from kdrun.data.stream import Stream
from kdrun.data.views.center import Center
from kdrun.data.views.recipes import Crop, CropParams
from kdrun.data.views.resample import resize_boxes, resize_by_matrices, weights
from kdrun.data.views.view import clean

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def photos(n=6, size=(40, 56), channels=3, seed=0):
    """Smooth colors with hard edges and some noise, which is what resizing meets."""
    rng, (height, width) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (n, 1, 1, channels))
    images = 127 + 100 * np.sin(phase + y[None, ..., None] / 7 + x[None, ..., None] / 11)
    images[:, 10:20, 15:30] = rng.integers(0, 256, (n, 1, 1, channels))
    return torch.from_numpy(np.clip(images + rng.normal(0, 8, images.shape), 0, 255).astype(np.uint8))


BOXES = torch.tensor([[0, 0, 40, 56], [3, 5, 30, 30], [10, 20, 9, 7], [0, 16, 40, 40], [39, 55, 1, 1], [8, 0, 24, 24]])


def difference(first, second) -> tuple[int, float]:
    """The greatest, and the mean."""
    off = (first.int() - second.int()).abs()
    return int(off.max()), off.float().mean().item()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_operations_on_all_images_are_those_of_an_accelerator(mode):
    images, index = photos(n=9), torch.tensor([8, 0, 3, 3, 5, 1])
    crop = Crop((40, 56), 24, (0.3, 1.0), (0.75, 1.33), mode, True)
    params = CropParams(BOXES, torch.tensor([True, False, True, True, False, True]))
    got = crop.apply_fixed(images, index, crop.fixed(params)).permute(0, 2, 3, 1)
    expected = resize_by_matrices(images[index], BOXES, 24, mode)
    for k, flip in enumerate(params.flip.tolist()):
        assert torch.equal(got[k], expected[k].flip(1) if flip else expected[k])
    near = crop.apply(images, index, params).permute(0, 2, 3, 1)
    assert difference(got, near)[0] <= (1 if mode == "bilinear" else 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [24, 33])
def test_boxes_are_resized_as_by_torchvision(mode, size):
    images = photos()
    native = resize_boxes(images, BOXES, size, mode)
    matrices = resize_by_matrices(images, BOXES, size, mode)
    for k, (top, left, height, width) in enumerate(BOXES.tolist()):
        place = (top, left, height, width, [size, size], MODES[mode])
        v1, v2 = (
            module.resized_crop(images[k].permute(2, 0, 1), *place, antialias=True).permute(1, 2, 0)
            for module in (official, official_v2)
        )
        pillow = np.asarray(official.resized_crop(Image.fromarray(images[k].numpy()), *place))
        assert difference(native[k], v2) <= (1, 0.01)  # the same kernel, where the processor has AVX2
        assert difference(matrices[k], v1) <= (1, 0.01)  # v1 computes in float32 too
        most = 1 if mode == "bilinear" else 3
        assert difference(native[k], torch.from_numpy(pillow.copy()))[0] <= most
        assert difference(native[k], matrices[k])[0] <= most
        assert difference(native[k], matrices[k])[1] < 0.3


@pytest.mark.parametrize("mode", MODES)
def test_weights_by_hand(mode):
    whole = weights(torch.tensor([2]), torch.tensor([4]), 8, 4, mode)
    assert torch.equal(whole[0], torch.eye(8)[2:6])  # no change of scale: each pixel is its own
    half = weights(torch.tensor([0]), torch.tensor([8]), 8, 4, "bilinear")[0]
    torch.testing.assert_close(half[1], torch.tensor([0, 1, 3, 3, 1, 0, 0, 0]) / 8)  # a triangle of width 4
    torch.testing.assert_close(half[0], torch.tensor([3, 3, 1, 0, 0, 0, 0, 0]) / 7)  # cut off at the border
    torch.testing.assert_close(weights(torch.tensor([1]), torch.tensor([6]), 9, 5, mode).sum(2), torch.ones(1, 5))


def recipe(size=16, source=(40, 56), flip=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    return Crop(source, size, scale, ratio, "bilinear", flip)


def draw(crop, n, seed=0):
    return crop.draw(torch.Generator().manual_seed(seed), n)


@pytest.mark.parametrize("source", [(40, 56), (64, 64), (30, 90)])
def test_boxes_are_drawn_as_by_torchvision(source):
    n, image = 4000, torch.empty(1, *source)
    box = draw(recipe(source=source), n).box
    assert (box[:, :2] >= 0).all()
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= torch.tensor(source)).all()
    torch.manual_seed(0)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    for column in range(4):
        ours, other = (boxes[:, column].double() for boxes in (box, theirs))
        assert abs(ours.mean() - other.mean()) < 4 * other.std() * (2 / n) ** 0.5
        assert abs(ours.std() / other.std() - 1) < 0.06


@pytest.mark.parametrize("source", [(10, 100), (100, 10)])
def test_where_no_box_fits_the_center_is_taken(source):
    box = draw(recipe(source=source, scale=(1.0, 1.0)), 8).box
    image = torch.empty(1, *source)
    assert {tuple(row) for row in box.tolist()} == {
        tuple(RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3]))
    }


def test_flips_and_single_samples():
    images, crop = photos(), recipe()
    params = draw(crop, 32, 3)
    index = torch.randint(0, 6, (32,), generator=torch.Generator().manual_seed(1))
    views = crop.apply(images, index, params)
    assert views.shape == (32, 3, 16, 16)
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert 4 < params.flip.sum() < 28
    for k in range(32):
        alone = crop.apply(images, index[k : k + 1], CropParams(params.box[k : k + 1], torch.tensor([False])))[0]
        assert torch.equal(views[k], alone.flip(2) if params.flip[k] else alone)
    assert not draw(recipe(flip=False), 32).flip.any()


def test_a_gray_image_stays_gray_and_a_flat_one_flat():
    flat = torch.full((2, 20, 20, 1), 77, dtype=torch.uint8)
    crop = recipe(source=(20, 20))
    assert (crop.apply(flat, torch.tensor([0, 1, 1]), draw(crop, 3)) == 77).all()
    box = torch.tensor([[3, 4, 9, 8], [0, 0, 20, 20]])
    assert (resize_by_matrices(flat, box, 5, "bicubic") == 77).all()


def test_steps_made_together_are_those_made_one_by_one():
    images = photos(30)
    stream = Stream("labeled", images, torch.arange(30), torch.arange(30), 7, {"weak": recipe()}, 0)
    for step, samples in enumerate(stream.batches(range(4))):
        assert torch.equal(samples.views["weak"].pixels, stream.batch(step).views["weak"].pixels)


@pytest.mark.parametrize("size", [28, 40, 17])
@pytest.mark.parametrize("source", [(40, 40), (40, 56), (61, 40)])
def test_evaluation_shows_the_center(size, source):
    images = photos(3, source)
    center = Center.of(ViewsConfig(weak=WeakConfig(scale=[0.5, 1.0]), size=size, eval_ratio=0.7), source)
    got = clean(images, torch.tensor([2, 0]), center)
    whole = official.center_crop(images[[2, 0]].permute(0, 3, 1, 2), [28, 28])  # 0.7 of 40
    expected = whole if size == 28 else official_v2.resize(whole, [size, size], antialias=True)
    assert difference(got, expected) <= (1, 0.01)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_without_scales_evaluation_shows_the_whole_image():
    assert Center.of(ViewsConfig(), (8, 8)) is None


def test_what_does_not_go_together_is_refused():
    with Composer() as composer:
        with pytest.raises(
            ConfigError, match=r"views\.size: goes with crops at random scales; give views\.weak\.scale"
        ):
            composer.typed(["views.size=16"])
        with pytest.raises(ConfigError, match=r"views\.weak\.scale: the least comes first, got \[0\.5, 0\.1\]"):
            composer.typed(["views.weak.scale=[0.5,0.1]"])
        config = composer.typed(["views=imagenet", "views.weak.pad=2"])
    assert (config.views.size, config.views.eval_ratio, config.views.weak.pad) == (224, 0.875, None)
    assert config.views.weak.scale == [0.08, 1.0]
