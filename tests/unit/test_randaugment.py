"""Strong views against Pillow, image by image, and against the rules of the three public programs."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_image

from kdrun.core.errors import ConfigError
from kdrun.data.views.fixed import apply_fixed, fixed
from kdrun.data.views.levels import COUNTS, Op
from kdrun.data.views.randaugment import StrongParams, StrongRecipe, apply_strong, draw_strong
from kdrun.data.views.view import mapped
from tests.each import each

RECIPES = {
    "official": StrongRecipe(),
    "kekmodel": StrongRecipe(levels="kekmodel"),
    "usb": StrongRecipe(num_ops=3, p_op=1.0, levels="usb", cutout=0.5, fill=(125, 123, 114)),
}
NAMES = list(RECIPES)
SIGNED = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
ENHANCE = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS)
DROPS_ALPHA = (Op.AUTOCONTRAST, Op.EQUALIZE, Op.POSTERIZE, Op.SOLARIZE)
OPS = list(Op)[:14]  # of all but the rules for ImageNet
PLAIN = StrongRecipe(num_ops=1, p_op=1.0, cutout=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the public programs, as they are written: level 1..9 and sign, or a uniform number, to Pillow's argument ----


def public_value(levels, op, level, size):
    """The unsigned argument at an integer `level` of 10; `size` is (height, width)."""
    side = size[1] if op == Op.TRANSLATE_X else size[0]
    if op == Op.ROTATE:
        return int(level * 30 / 10)
    if op in (Op.SHEAR_X, Op.SHEAR_Y):
        return float(level) * 0.3 / 10
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        return int(level * 10 / 10) if levels == "official" else int(float(level) * 0.3 / 10 * side)
    if op in ENHANCE:
        return float(level) * 1.8 / 10 + 0.1 if levels == "official" else float(level) * 0.9 / 10 + 0.05
    if op == Op.POSTERIZE:
        return 4 - int(level * 4 / 10) if levels == "official" else int(level * 4 / 10) + 4
    return 256 - int(level * 256 / 10) if op == Op.SOLARIZE else 0


def usb_range(op, size):
    if op in ENHANCE:
        return 0.05, 0.95
    side = size[1] if op == Op.TRANSLATE_X else size[0]
    ranges = {Op.ROTATE: 30, Op.SHEAR_X: 0.3, Op.SHEAR_Y: 0.3, Op.TRANSLATE_X: 0.3 * side, Op.TRANSLATE_Y: 0.3 * side}
    if op in ranges:
        return -ranges[op], ranges[op]
    return {Op.POSTERIZE: (4, 8), Op.SOLARIZE: (0, 256)}.get(op, (0, 0))


def some_values(levels, op, n, size, rng):
    if levels == "usb":
        value = rng.uniform(*usb_range(op, size), n)
        return np.floor(value) if op == Op.POSTERIZE else value
    value = np.array([public_value(levels, op, level, size) for level in rng.integers(1, 10, n)], dtype=np.float64)
    return value * rng.choice([-1, 1], n) if op in SIGNED else value


# ---- Pillow ----


def pil_op(image, op, v):
    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    # The official program keeps an alpha channel, which these four operations do not know.
    if image.mode == "RGBA" and op in DROPS_ALPHA:
        return pil_op(image.convert("RGB"), op, v).convert("RGBA")
    return {
        Op.IDENTITY: lambda: image,
        Op.ROTATE: lambda: image.rotate(v),
        Op.SHEAR_X: lambda: affine(1, v, 0, 0, 1, 0),
        Op.SHEAR_Y: lambda: affine(1, 0, 0, v, 1, 0),
        Op.TRANSLATE_X: lambda: affine(1, 0, v, 0, 1, 0),
        Op.TRANSLATE_Y: lambda: affine(1, 0, 0, 0, 1, v),
        Op.BRIGHTNESS: lambda: ImageEnhance.Brightness(image).enhance(v),
        Op.CONTRAST: lambda: ImageEnhance.Contrast(image).enhance(v),
        Op.COLOR: lambda: image if image.mode == "L" else ImageEnhance.Color(image).enhance(v),
        Op.SHARPNESS: lambda: ImageEnhance.Sharpness(image).enhance(v),
        Op.POSTERIZE: lambda: ImageOps.posterize(image, int(v)),
        Op.SOLARIZE: lambda: ImageOps.solarize(image, v),
        Op.AUTOCONTRAST: lambda: ImageOps.autocontrast(image),
        Op.EQUALIZE: lambda: ImageOps.equalize(image),
    }[op]()


def to_pil(array):
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def pil_view(array, recipe, ops, values, box):
    """One image through the whole recipe."""
    transparency = recipe.levels == "official" and array.shape[-1] == 3
    image = to_pil(array)
    if transparency:
        image = image.convert("RGBA")
    for op, value in zip(ops, values, strict=True):
        image = pil_op(image, op, value)
    out = np.array(image).reshape(*array.shape[:2], -1)
    if transparency:
        out = np.where(out[..., 3:] == 0, recipe.fill, out[..., :3])
    top, bottom, left, right = box
    out[top:bottom, left:right] = recipe.fill
    return out.astype(np.uint8)


# ---- images ----


@cache
def real_images(n=500, size=(32, 32), channels=3):
    """Half digits, colored at random, half crops of two photos."""
    rng = np.random.default_rng(0)
    height, width = size
    out = []
    for digit in load_digits().images[: n // 2] / 16:
        big = np.kron(digit, np.ones((-(-height // 8), -(-width // 8))))[:height, :width, None]
        paper, ink = rng.integers(0, 256, (2, 1, 1, 3))
        out.append(paper + big * (ink - paper))
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for k in range(n - n // 2):
        photo = photos[k % 2]
        y, x = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
        out.append(photo[y : y + height, x : x + width])
    images = np.stack(out).round().astype(np.uint8)
    return np.ascontiguousarray(images if channels == 3 else images[..., :1])


@cache
def extreme_images(size=(32, 32), channels=3):
    """Constant, two-level, nearly constant, noise, narrow noise, gradients, and a mixture per channel."""
    rng = np.random.default_rng(1)
    shape = (*size, channels)
    out = [np.full(shape, v) for v in (0, 1, 2, 100, 127, 128, 254, 255)]
    for low, high in ((0, 255), (0, 1), (254, 255), (100, 101), (3, 200), (127, 128)):
        out += [rng.choice([low, high], shape), rng.choice([low, high], shape, p=[0.99, 0.01])]
    for low, high in ((0, 256), (0, 2), (100, 140), (250, 256), (0, 7)):
        out += [rng.integers(low, high, shape) for _ in range(3)]
    ramp = np.linspace(0, 255, size[1])[None, :, None]
    out += [
        np.broadcast_to(g, shape)
        for g in (ramp, 255 - ramp, ramp / 3 + 90, np.linspace(0, 255, size[0])[:, None, None])
    ]
    dot = np.full(shape, 77)
    dot[size[0] // 2, size[1] // 2] = 255
    corner = np.zeros(shape)
    corner[0, 0] = 255
    out += [dot, corner, np.arange(np.prod(shape)).reshape(shape) % 256]
    mixed = np.stack([np.full(size, 9), rng.integers(0, 256, size), rng.choice([0, 255], size)], -1)
    out += [mixed[..., :channels], mixed[..., ::-1][..., :channels]]
    return np.stack(out).astype(np.uint8)


def single(op, values):
    """Parameters of one operation for every image."""
    values = torch.from_numpy(np.asarray(values, dtype=np.float64))[:, None]
    return StrongParams(torch.full(values.shape, int(op)), values, torch.zeros(len(values), 4, dtype=torch.int64))


def assert_as_pillow(images, op, values):
    # Black fill outside: the transparency of `official` is tested with whole recipes.
    got = apply_strong(torch.from_numpy(images), replace(PLAIN, levels="usb"), single(op, values)).numpy()
    expected = np.stack([
        np.array(pil_op(to_pil(image), op, value)).reshape(image.shape)
        for image, value in zip(images, values.tolist(), strict=True)
    ])  # fmt: skip
    np.testing.assert_array_equal(got, expected)


# ---- operations ----


@each("op", OPS)
@each("levels", NAMES)
def test_operation_is_pillows_bit_for_bit(op, levels):
    rng = np.random.default_rng([int(op), NAMES.index(levels)])
    images = np.concatenate([real_images(), extreme_images(), extreme_images()])
    assert_as_pillow(images, op, some_values(levels, op, len(images), (32, 32), rng))


@pytest.mark.parametrize(
    "shape",
    [(32, 32, 1), (8, 8, 3), (8, 8, 1), (17, 23, 3), (30, 9, 1), (64, 64, 3), (225, 224, 3), (2, 5, 3)],
    ids=str,
)
@each("op", OPS)
def test_operation_at_other_sizes(op, shape):
    rng = np.random.default_rng([int(op), *shape])
    size, channels = shape[:2], shape[2]
    few = 1 if max(size) > 100 else 4
    images = np.concatenate([extreme_images(size, channels)[:: 8 // few], real_images(12 * few, size, channels)[::2]])
    values = [some_values(levels, op, len(images), size, rng) for levels in NAMES]
    assert_as_pillow(np.concatenate([images] * 3), op, np.concatenate(values))


@pytest.mark.parametrize(
    "op",
    [Op.ROTATE, *ENHANCE, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.SOLARIZE, Op.POSTERIZE],
    ids=lambda op: op.name.lower(),
)
def test_operation_at_special_arguments(op):
    special = {
        Op.ROTATE: [0, 90, 180, 270, -90, 45, 30, -30, 360, 0.01, 359.99],
        Op.SOLARIZE: [0, 0.001, 1, 127.5, 128, 255, 255.5, 256],
        Op.POSTERIZE: range(1, 9),
        Op.TRANSLATE_X: [0, 0.5, -0.5, 0.499, -0.501, 0.499999, -0.500001, 31.5, 40, -40], Op.TRANSLATE_Y: [0, 0.5, -0.5, 1.499999, 1.5, -1.5, 31, 32, -33],
    }.get(op, [0, 1, 0.5, 0.999, 1.001, 2, 5.5, -0.5])  # fmt: skip
    images = np.concatenate([real_images()[::20], extreme_images()])
    for value in special:
        assert_as_pillow(images, op, np.full(len(images), value, dtype=np.float64))


# ---- whole recipes ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (21, 34, 3)], ids=str)
def test_recipe_is_pillows_image_by_image(name, shape):
    size, channels = shape[:2], shape[2]
    fill = (10, 20, 30) if channels == 3 else (99,)
    recipe = replace(RECIPES[name], fill=fill, num_ops=3, p_op=0.8)
    images = real_images(500 if shape == (32, 32, 3) else 200, size, channels)
    if name == "official" and channels == 1:  # gray, with transparency: what three equal channels give
        recipe = replace(recipe, fill=(99, 99, 99))
        params = draw_strong(recipe, generator(3), len(images), size)
        colored = np.repeat(images, 3, -1)
        expected = np.stack([pil_view(i, recipe, *p) for i, p in zip(colored, rows(params), strict=True)])[..., :1]
    else:
        params = draw_strong(recipe, generator(3), len(images), size)
        expected = np.stack([pil_view(i, recipe, *p) for i, p in zip(images, rows(params), strict=True)])
    got = apply_strong(torch.from_numpy(images), recipe, params)
    np.testing.assert_array_equal(got.numpy(), expected)


def rows(params):
    return zip(params.op.tolist(), params.value.tolist(), params.box.tolist(), strict=True)


@pytest.mark.parametrize("second", OPS, ids=lambda op: op.name.lower())
def test_official_outside_is_gray_unless_transparency_is_dropped(second):
    recipe = replace(RECIPES["official"], fill=(200,), cutout=0)
    images = torch.full((2, 8, 8, 3), 60, dtype=torch.uint8)
    op = torch.tensor([[Op.TRANSLATE_X, second], [Op.IDENTITY, second]])
    value = torch.tensor([[3.0, 4], [0, 4]], dtype=torch.float64)
    got = apply_strong(images, recipe, StrongParams(op, value, torch.zeros(2, 4, dtype=torch.int64)))
    outside = got[0, 0 if second != Op.TRANSLATE_Y else 3, -1].unique().item()
    assert (outside == 200) is (second not in DROPS_ALPHA)
    if second not in SIGNED:
        assert not (got[1] == 200).any()
    other = apply_strong(
        images,
        replace(recipe, levels="kekmodel"),
        StrongParams(op[:, :1], value[:, :1], torch.zeros(2, 4, dtype=torch.int64)),
    )
    assert (other[0, :, -3:] == 0).all()


def test_no_operation_and_no_cutout_is_a_copy():
    images = torch.from_numpy(real_images(20))
    for levels in NAMES:
        recipe = StrongRecipe(num_ops=0, levels=levels, cutout=0)
        params = draw_strong(recipe, generator(), 20, (32, 32))
        got = apply_strong(images, recipe, params)
        assert params.op.shape == (20, 0)
        assert torch.equal(got, images)
        assert got.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_input_is_unchanged_and_output_is_contiguous(name):
    images = torch.from_numpy(real_images(64).transpose(0, 3, 1, 2).copy()).permute(0, 2, 3, 1)  # not contiguous
    before = images.clone()
    recipe = RECIPES[name]
    params = draw_strong(recipe, generator(), 64, (32, 32))
    got = apply_strong(images, recipe, params)
    assert torch.equal(images, before)
    assert got.is_contiguous()
    assert got.dtype == torch.uint8
    assert torch.equal(got, apply_strong(before.contiguous(), recipe, params))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_small_batches(name, n):
    recipe, images = RECIPES[name], real_images(7)[:n]
    params = draw_strong(recipe, generator(n), n, (32, 32))
    recipe_rgb = replace(recipe, fill=recipe.fill * (3 // len(recipe.fill)))
    got = apply_strong(torch.from_numpy(images), recipe, params).numpy()
    assert got.shape == images.shape
    for view, image, row in zip(got, images, rows(params), strict=True):
        np.testing.assert_array_equal(view, pil_view(image, recipe_rgb, *row))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_independent(name):
    recipe = RECIPES[name]
    same = torch.from_numpy(real_images()[-1:]).expand(16, -1, -1, -1)
    params = draw_strong(recipe, generator(), 16, (32, 32))
    assert len(apply_strong(same, recipe, params).flatten(1).unique(dim=0)) >= 15
    images = torch.from_numpy(real_images())
    params = draw_strong(recipe, generator(1), len(images), (32, 32))
    shuffled = torch.randperm(len(images), generator=generator(2))
    moved = StrongParams(params.op[shuffled], params.value[shuffled], params.box[shuffled])
    together = apply_strong(images, recipe, params)
    assert torch.equal(apply_strong(images[shuffled], recipe, moved), together[shuffled])
    few = shuffled[:5]
    alone = apply_strong(images[few], recipe, StrongParams(params.op[few], params.value[few], params.box[few]))
    assert torch.equal(alone, together[few])


# ---- drawing ----


@pytest.mark.parametrize("name", NAMES)
def test_draw_is_a_function_of_the_generator(name):
    first, second, other = (draw_strong(RECIPES[name], generator(seed), 64, (32, 32)) for seed in (4, 4, 5))
    for field in ("op", "value", "box"):
        assert torch.equal(getattr(first, field), getattr(second, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))


def test_random_numbers_consumed_do_not_depend_on_the_recipe_or_on_what_was_drawn():
    after = set()
    for seed in range(3):
        for recipe in (*(replace(r, num_ops=2) for r in RECIPES.values()), StrongRecipe(p_op=0.0, cutout=0)):
            g = generator(seed)
            draw_strong(recipe, g, 50, (32, 32))
            after.add((seed, torch.rand(1, generator=g).item()))
    assert len(after) == 3


@pytest.mark.parametrize("p_op", [0.0, 0.3, 0.5, 1.0])
def test_operations_are_equally_likely_and_applied_with_p_op(p_op):
    n = 70_000
    op = draw_strong(StrongRecipe(p_op=p_op), generator(), n, (32, 32)).op
    for slot in op.T:
        share = slot.bincount(minlength=14) / n
        expected = torch.full((14,), p_op / 14)
        expected[Op.IDENTITY] += 1 - p_op
        assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()
    both = (op[:, 0] == Op.ROTATE) & (op[:, 1] == Op.EQUALIZE)  # the slots are independent
    assert abs(both.float().mean() - (p_op / 14) ** 2) < 1e-3


@pytest.mark.parametrize("name", ["official", "kekmodel"])
@pytest.mark.parametrize("size", [(32, 32), (24, 50)], ids=str)
def test_drawn_values_are_the_public_levels(name, size):
    params = draw_strong(replace(RECIPES[name], num_ops=1, p_op=1.0), generator(), 60_000, size)
    for op in OPS:
        value = params.value[params.op == op]
        allowed = Counter(public_value(name, op, level, size) for level in range(1, 10))
        drawn = Counter(abs(v) if op in SIGNED else v for v in value.tolist())
        assert drawn.keys() == allowed.keys(), op
        for key, times in allowed.items():
            assert abs(drawn[key] / len(value) - times / 9) < 0.03
        if op in SIGNED:
            assert 0.46 < (value[value != 0] > 0).double().mean() < 0.54


@pytest.mark.parametrize("size", [(32, 32), (24, 50)], ids=str)
def test_drawn_values_of_usb_fill_their_ranges(size):
    params = draw_strong(replace(RECIPES["usb"], num_ops=1), generator(), 60_000, size)
    for op in OPS:
        value = params.value[params.op == op]
        low, high = usb_range(op, size)
        if op == Op.POSTERIZE:
            assert (
                value.long().bincount() / len(value) - torch.tensor([0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25])
            ).abs().max() < 0.03
        elif high > low:
            assert low <= value.min() < low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) < value.max() <= high
            share = torch.histc((value - low).float() / (high - low), 10, 0, 1) / len(value)
            assert (share - 0.1).abs().max() < 0.025


# ---- cutout ----


def public_cutout(image, levels, cutout, u):
    """The public programs' cutout at uniform numbers (vertical, horizontal, side)."""
    height, width = image.shape[:2]
    if levels == "official":
        y, x = int(u[0] * height), int(u[1] * width)  # randint(low=0, high=length)
        out, half = image.copy(), int(cutout) // 2
        out[max(0, y - half) : min(height, y + half), max(0, x - half) : min(width, x + half)] = 255
        return out
    if levels == "kekmodel":
        v, x, y = cutout, u[1] * width, u[0] * height
    else:  # np.random.uniform(w) has the lower bound w and the upper bound 1
        v, x, y = u[2] * cutout * width, width + (1 - width) * u[1], height + (1 - height) * u[0]
    x, y = int(max(0, x - v / 2)), int(max(0, y - v / 2))
    out = Image.fromarray(image)
    ImageDraw.Draw(out).rectangle((x, y, min(width, x + v), min(height, y + v)), (255, 255, 255))
    return np.array(out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (31, 45)], ids=str)
def test_cutout_is_where_the_public_program_draws_it(name, size):
    recipe = replace(RECIPES[name], num_ops=0, fill=(255,))
    params = draw_strong(recipe, generator(7), 500, size)
    got = apply_strong(torch.zeros(500, *size, 3, dtype=torch.uint8), recipe, params).numpy()
    uniform = torch.rand(500, 3, generator=generator(7), dtype=torch.float64).tolist()
    black = np.zeros((*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(got, np.stack([public_cutout(black, name, recipe.cutout, u) for u in uniform]))


def test_cutout_sides_and_borders():
    boxes = {name: draw_strong(RECIPES[name], generator(), 20_000, (32, 32)).box for name in NAMES}
    sides = {name: torch.stack([b[:, 1] - b[:, 0], b[:, 3] - b[:, 2]]) for name, b in boxes.items()}
    for box in boxes.values():
        assert (box >= 0).all()
        assert (box <= 32).all()
    # official: up to 16, at least 8 at a border, everywhere alike
    assert (sides["official"].min(), sides["official"].max()) == (8, 16)
    assert sides["official"][:, (boxes["official"][:, 0] == 0) & (boxes["official"][:, 1] < 16)][0].max() < 16
    # kekmodel: 17 even at the upper and left border, less only at the others
    assert sides["kekmodel"].max() == 17
    inside = (boxes["kekmodel"][:, 1] < 32) & (boxes["kekmodel"][:, 3] < 32)
    assert (sides["kekmodel"][:, inside] == 17).all()
    # usb: up to half the width, any side alike but for the borders
    assert (sides["usb"].min(), sides["usb"].max()) == (1, 16)
    area = {name: (s[0] * s[1]).double().mean().item() for name, s in sides.items()}
    assert area["kekmodel"] > area["official"] > area["usb"] > 0


def test_fill_per_channel_and_luma_for_gray_images():
    recipe = replace(RECIPES["usb"], num_ops=0, cutout=6, levels="official")
    params = draw_strong(recipe, generator(), 8, (12, 12))
    colored = apply_strong(torch.zeros(8, 12, 12, 3, dtype=torch.uint8), recipe, params)
    assert set(map(tuple, colored.view(-1, 3).tolist())) == {(0, 0, 0), (125, 123, 114)}
    gray = apply_strong(torch.zeros(8, 12, 12, 1, dtype=torch.uint8), recipe, params)
    luma = np.array(Image.new("RGB", (1, 1), (125, 123, 114)).convert("L")).item()
    assert set(gray.flatten().tolist()) == {0, luma}


# ---- refusals ----


@pytest.mark.parametrize(("key", "value"), [
    ("num_ops", -1), ("p_op", -0.1), ("p_op", 1.5), ("p_op", float("nan")), ("levels", "kek"), ("levels", ""),
    ("cutout", -1), ("cutout", 1.5), ("cutout", 16.2), ("cutout", float("nan")), ("cutout", float("inf")),
    ("fill", ()), ("fill", (1, 2)), ("fill", (256,)), ("fill", (-1, 0, 0)), ("fill", (0.5,)),
])  # fmt: skip
def test_nonsense_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"^views\.strong\.{key}: "):
        StrongRecipe(**{key: value})


def test_cutout_wider_than_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"^views\.strong\.cutout: 16 is too wide for images of 8x8 pixels"):
        draw_strong(StrongRecipe(), generator(), 4, (8, 8))


@each("kind", [(name, shape) for name in NAMES for shape in [(32, 32, 3), (32, 32, 1), (21, 34, 3)]])
def test_the_same_operations_on_all_images_give_the_same_bits(kind):
    name, shape = kind
    size, recipe, rng = shape[:2], replace(RECIPES[name], num_ops=3), np.random.default_rng(0)
    drawn = draw_strong(recipe, generator(), 12 * len(OPS), size)
    first = torch.tensor(OPS).repeat_interleave(12)  # each operation, at 12 levels
    value = torch.from_numpy(np.concatenate([some_values(name, op, 12, size, rng) for op in OPS]))
    op, values = drawn.op.clone(), drawn.value.clone()
    op[:, 0], values[:, 0] = first, value
    params = StrongParams(op, values, drawn.box)
    images = torch.from_numpy(np.concatenate([real_images(len(op) - 20, size, shape[2]),
                                              np.resize(extreme_images(size, shape[2]), (20, *shape))]))  # fmt: skip
    before = images.clone()
    got = apply_fixed(images, recipe, fixed(recipe, params, size))
    assert torch.equal(got, apply_strong(images, recipe, params))
    assert torch.equal(images, before)
    none = replace(recipe, num_ops=0)
    params = draw_strong(none, generator(), len(op), size)
    assert torch.equal(apply_fixed(images, none, fixed(none, params, size)), apply_strong(images, none, params))


IMAGENET = StrongRecipe(num_ops=1, p_op=1.0, levels="imagenet", cutout=0)


def imagenet_value(op, level):
    """As in imagenet/augment/rand_augment.py, at a level of 0 to 1."""
    if op in ENHANCE:
        return level * 1.8 + 0.1
    shear, shift = level * 0.3, level * 100
    return {
        Op.ROTATE: level * 30, Op.SHEAR_X: shear, Op.SHEAR_Y: shear, Op.TRANSLATE_X: shift, Op.TRANSLATE_Y: shift,
        Op.POSTERIZE: max(int(level * 4), 1), Op.SOLARIZE: min(int(level * 256), 255),
        Op.SOLARIZE_ADD: int(level * 110),
    }.get(op, 0)  # fmt: skip


def test_imagenet_has_sixteen_operations_at_eleven_levels():
    params = draw_strong(IMAGENET, generator(), 50_000, (224, 224))
    assert COUNTS["imagenet"] == len(Op) == 16
    for op in Op:
        value = params.value[params.op == op]
        assert abs(len(value) / 50_000 - 1 / 16) < 0.006
        allowed = {imagenet_value(op, level / 10) for level in range(11)}
        assert {abs(v) if op in SIGNED else v for v in value.tolist()} == allowed, op
    params = draw_strong(replace(IMAGENET, num_ops=2, p_op=0.5), generator(), 50_000, (224, 224))
    assert abs((params.op == Op.INVERT).float().mean().item() - 1 / 32) < 0.004


def test_imagenet_s_own_operations_and_its_outside():
    images = torch.from_numpy(np.concatenate([real_images(20), extreme_images()]))
    n, dark = len(images), images < 128

    def shown(op, value):
        params = StrongParams(
            torch.full((n, 1), int(op)), torch.full((n, 1), float(value), dtype=torch.float64), torch.zeros(n, 4).long()
        )
        return apply_strong(images, IMAGENET, params)

    assert torch.equal(shown(Op.INVERT, 0), 255 - images)
    for added in (0, 55, 110):
        want = torch.where(dark, (images.int() + added).clamp(max=255), images.int())
        assert torch.equal(shown(Op.SOLARIZE_ADD, added).int(), want)
    assert (shown(Op.TRANSLATE_X, 20)[:, :, -20:] == 128).all()
    assert torch.equal(shown(Op.TRANSLATE_X, 20)[:, :, :-20], images[:, :, 20:])
    assert (shown(Op.TRANSLATE_X, 100) == 128).all()
    assert torch.equal(shown(Op.POSTERIZE, 1), images & 128)
    assert torch.equal(shown(Op.SOLARIZE, 0), 255 - images)


def test_imagenet_on_all_images_alike_gives_the_same_bits():
    recipe, size = replace(IMAGENET, num_ops=3), (32, 32)
    images = torch.from_numpy(real_images(400))
    params = draw_strong(recipe, generator(), len(images), size)
    assert len(params.op.unique()) == 16
    assert torch.equal(apply_fixed(images, recipe, fixed(recipe, params, size)), apply_strong(images, recipe, params))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_the_same_and_never_waits(name):
    images, recipe = torch.from_numpy(real_images()), RECIPES[name]
    params = draw_strong(recipe, generator(), len(images), (32, 32))
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = apply_strong(on_device, recipe, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = apply_strong(images, recipe, params)
    assert torch.equal(got.cpu(), expected)
    given = mapped(lambda tensor: tensor.cuda(), fixed(recipe, params, (32, 32)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = apply_fixed(on_device, recipe, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), expected)
