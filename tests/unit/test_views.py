"""Weak views against a brute-force pad, crop and flip of single images."""

import numpy as np
import pytest
import torch

from kdrun.config.views import StrongConfig, WeakConfig
from kdrun.core.errors import ConfigError
from kdrun.data.views.recipes import Strong, StrongViewParams, Weak, WeakParams
from kdrun.data.views.view import clean, join
from tests.each import each

SHAPES = [(8, 8, 1), (32, 32, 3), (6, 10, 3), (9, 5, 1)]


def random_images(shape, n=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (n, *shape), dtype=np.uint8))


def brute(image, recipe, dy, dx, flip):
    pad = recipe.pad
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect" if recipe.reflect else "constant")
    height, width = image.shape[:2]
    crop = padded[pad + dy : pad + dy + height, pad + dx : pad + dx + width]
    return (crop[:, ::-1] if flip else crop).transpose(2, 0, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@each("shape", SHAPES)
@each("reflect", [False, True])
@each("flip", [False, True])
@each("pad", [0, 1, 4])
def test_apply_is_pad_crop_and_flip(shape, reflect, flip, pad):
    images, recipe = random_images(shape), Weak(pad, reflect, flip)
    index = torch.randint(0, len(images), (64,), generator=generator(1))
    params = recipe.draw(generator(2), len(index))
    got = recipe.apply(images, index, params).numpy()
    rows = zip(index.tolist(), params.dy.tolist(), params.dx.tolist(), params.flip.tolist(), strict=True)
    expected = [brute(images[i].numpy(), recipe, dy, dx, flipped) for i, dy, dx, flipped in rows]
    np.testing.assert_array_equal(got, np.stack(expected))


@pytest.mark.parametrize("reflect", [False, True], ids=["zero", "reflect"])
def test_all_shifts_and_flips_of_one_image(reflect):
    images, recipe = random_images((7, 6, 3)), Weak(2, reflect, True)
    cases = [(dy, dx, flip) for dy in range(-2, 3) for dx in range(-2, 3) for flip in (False, True)]
    params = WeakParams(*(torch.tensor(column) for column in zip(*cases, strict=True)))
    got = recipe.apply(images, torch.full((len(cases),), 5), params)
    for view, case in zip(got, cases, strict=True):
        np.testing.assert_array_equal(view.numpy(), brute(images[5].numpy(), recipe, *case))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 2])
def test_views_are_uint8_and_channels_last(shape, pad):
    images, recipe = random_images(shape), Weak(pad, False, True)
    index = torch.tensor([3, 3, 0, 11])
    for view in (recipe.apply(images, index, recipe.draw(generator(), 4)), clean(images, index)):
        assert view.shape == (4, shape[2], *shape[:2])
        assert view.dtype == torch.uint8
        assert view.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pad", [0, 2])
def test_dataset_is_not_modified_by_views_or_through_them(pad):
    images, recipe = random_images((8, 8, 3)), Weak(pad, False, True)
    before = images.clone()
    index = torch.arange(12)
    for view in (recipe.apply(images, index, recipe.draw(generator(), 12)), clean(images, index)):
        view.zero_()
    assert torch.equal(images, before)


def test_samples_are_shifted_independently():
    images, recipe = random_images((8, 8, 3)), Weak(2, False, True)
    index = torch.arange(12)
    params = recipe.draw(generator(), 12)
    assert len(set(zip(params.dy.tolist(), params.dx.tolist(), params.flip.tolist(), strict=True))) > 3
    chosen = torch.tensor([7, 2])
    few = WeakParams(params.dy[chosen], params.dx[chosen], params.flip[chosen])
    together = recipe.apply(images, index, params)
    assert torch.equal(recipe.apply(images, index[chosen], few), together[chosen])


def test_every_shift_is_as_likely_as_the_others():
    params = Weak(2, False, True).draw(generator(), 50_000)
    cells = torch.bincount((params.dy + 2) * 10 + (params.dx + 2) * 2 + params.flip, minlength=50)
    assert len(cells) == 50
    assert cells.min() > 800
    assert cells.max() < 1200


def test_draw_is_a_function_of_the_generator():
    recipe = Weak(3, True, True)
    first, second, other = (recipe.draw(generator(seed), 32) for seed in (4, 4, 5))
    for name in ("dy", "dx", "flip"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize(("flip", "mirror", "flipped"), [(1, 1, True), (1, 0, False), (0, 1, False), (0, 0, False)])
def test_flip_needs_the_recipe_and_a_dataset_that_may_be_mirrored(flip, mirror, flipped):
    recipe = Weak.of(WeakConfig(flip=bool(flip)), (32, 32), mirror=bool(mirror))
    assert recipe.flip is flipped
    assert bool(recipe.draw(generator(), 200).flip.any()) is flipped


@pytest.mark.parametrize(("size", "pad"), [((32, 32), 4), ((8, 8), 1), ((64, 40), 5), ((7, 30), 0)])
def test_pad_null_is_an_eighth_of_the_shorter_side(size, pad):
    assert Weak.of(WeakConfig(), size, mirror=True).pad == pad


def test_given_pad_and_mode_are_taken():
    assert Weak.of(WeakConfig(pad=3, pad_mode="reflect"), (32, 32), mirror=True) == Weak(3, True, True)
    assert Weak.of(WeakConfig(pad=0), (32, 32), mirror=True) == Weak(0, False, True)


def test_no_pad_and_no_flip_is_the_clean_image():
    images, index = random_images((8, 8, 3)), torch.tensor([4, 1, 1])
    recipe = Weak(0, False, False)
    view = recipe.apply(images, index, recipe.draw(generator(), 3))
    assert torch.equal(view, clean(images, index))
    np.testing.assert_array_equal(view.numpy(), images.numpy()[[4, 1, 1]].transpose(0, 3, 1, 2))


def test_joined_parameters_are_those_of_both():
    recipe = Strong.of(StrongConfig(), Weak(1, True, True), (8, 8))
    parts = [recipe.draw(generator(seed), n) for seed, n in ((1, 3), (2, 5))]
    both = join(parts)
    assert isinstance(both, StrongViewParams)
    images = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8)
    index = torch.arange(8)
    alone = [recipe.apply(images, i, p) for i, p in zip(index.split([3, 5]), parts, strict=True)]
    assert torch.equal(recipe.apply(images, index, both), torch.cat(alone))


def test_a_strong_view_without_operations_and_cutout_is_a_weak_view():
    weak = Weak(1, True, True)
    recipe = Strong.of(StrongConfig(num_ops=0, cutout=0), weak, (8, 8))
    params = recipe.draw(generator(), 6)
    images, index = torch.randint(0, 256, (9, 8, 8, 1), dtype=torch.uint8), torch.arange(6)
    assert torch.equal(recipe.apply(images, index, params), weak.apply(images, index, params.weak))


def test_the_cutout_fits_the_image():
    images = torch.full((64, 8, 8, 3), 200, dtype=torch.uint8)
    recipe = Strong.of(StrongConfig(num_ops=0), Weak(0, False, False), (8, 8))
    out = recipe.apply(images, torch.arange(64), recipe.draw(generator(), 64))
    cut = (out == 127).all(1).flatten(1).sum(1)
    assert cut.max() == 16  # half of each side, less at the border
    assert cut.min() < 16
    with pytest.raises(ConfigError, match=r"views\.strong\.cutout: 9"):
        Strong.of(StrongConfig(cutout=9), Weak(0, False, False), (8, 8))
