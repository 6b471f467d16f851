"""Views of DeiT's recipe: timm's increasing operations, random erasing, labeled images in the strong view."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, norm
from timm.data import auto_augment as timm_ops

from kdrun.data.views.erase import AREA, NOTHING, Erase, hashed, quantiles
from kdrun.data.views.fixed import apply_fixed, fixed
from kdrun.data.views.levels import COUNTS, Op, timm_values
from kdrun.data.views.randaugment import StrongParams, StrongRecipe, apply_strong, draw_strong
from kdrun.data.views.recipes import Strong, Weak
from kdrun.data.views.view import mapped
from kdrun.losses.labels import cross_entropy
from tests.conftest import TEACHER
from tests.contract.test_methods import VITS, fit, make
from tests.each import each
from tests.unit.test_logit_losses import pair, term
from tests.unit.test_mix import generator
from tests.unit.test_randaugment import extreme_images, real_images, rows

FILL = (124, 116, 104)
TIMM = StrongRecipe(levels="timm", cutout=0, fill=FILL)
NAMES = {
    Op.ROTATE: "Rotate", Op.SHEAR_X: "ShearX", Op.SHEAR_Y: "ShearY", Op.TRANSLATE_X: "TranslateXRel",
    Op.TRANSLATE_Y: "TranslateYRel", Op.BRIGHTNESS: "BrightnessIncreasing", Op.CONTRAST: "ContrastIncreasing",
    Op.COLOR: "ColorIncreasing", Op.SHARPNESS: "SharpnessIncreasing", Op.POSTERIZE: "PosterizeIncreasing",
    Op.SOLARIZE: "SolarizeIncreasing", Op.AUTOCONTRAST: "AutoContrast", Op.EQUALIZE: "Equalize", Op.INVERT: "Invert",
    Op.SOLARIZE_ADD: "SolarizeAdd",
}  # fmt: skip
OPS = list(NAMES)
KINDS = torch.int64, torch.float64, torch.bool  # of what `timm_values` takes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ERASE = Erase(1.0, MEAN, STD)


pytestmark = pytest.mark.usefixtures("one_thread")

# ---- operations ----


def by_timm(image, op, value):
    """A (H, W, C) image through timm's own function; of the argument that a shift has in pixels, the share."""
    gray = image.shape[-1] == 1
    pil = Image.fromarray(image[..., 0] if gray else image)
    if op == Op.IDENTITY or (gray and op == Op.COLOR):
        return image
    if op == Op.POSTERIZE and value == 0:
        return 0 * image  # of mmcv, and of Pillow before it refused to keep none of the bits
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        value = value / pil.size[op == Op.TRANSLATE_Y]
    whole = op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)
    given = () if timm_ops.LEVEL_TO_ARG[NAMES[op]] is None else (int(value) if whole else value,)
    color = Image.new("RGB", (1, 1), FILL).convert(pil.mode).getpixel((0, 0))
    made = timm_ops.NAME_TO_OP[NAMES[op]](pil, *given, fillcolor=color, resample=Image.Resampling.BICUBIC)
    return np.array(made).reshape(image.shape)


SHAPES = [(32, 32, 3), (21, 34, 3), (17, 23, 1), (101, 120, 3), (1, 5, 3), (4, 1, 1)]


@each("shape", SHAPES)
def test_operations_are_timms_bit_for_bit_on_both_ways(shape):
    size, channels = shape[:2], shape[2]
    large = max(size) > 100
    images = np.concatenate([real_images(20, size, channels), extreme_images(size, channels)[:: 6 if large else 2]])
    n = len(OPS) * (2 if large else 12)
    images = np.resize(images, (n, *shape))
    drawn = draw_strong(StrongRecipe(3, 1.0, "timm", 0, FILL), generator(1), n, size)
    magnitude = torch.rand(n, generator=generator(2), dtype=torch.float64) * 10
    magnitude[: 2 * len(OPS)] = torch.tensor([10.0, 0.0], dtype=torch.float64).repeat_interleave(len(OPS))
    op, value = drawn.op.clone(), drawn.value.clone()
    op[:, 0] = torch.tensor(OPS).repeat(n // len(OPS))
    value[:, 0] = timm_values(op[:, 0], magnitude, torch.arange(n) % 2 == 0, *size)
    op[n // 2 :, 1:] = Op.IDENTITY
    params = StrongParams(op, value, drawn.box)
    expected = []
    for image, (ops, values, _) in zip(images, rows(params), strict=True):
        made = image
        for which, what in zip(ops, values, strict=True):
            made = by_timm(made, Op(which), what)
        expected.append(made)
    given = torch.from_numpy(images)
    np.testing.assert_array_equal(apply_strong(given, TIMM, params).numpy(), np.stack(expected))
    np.testing.assert_array_equal(apply_fixed(given, TIMM, fixed(TIMM, params, size)).numpy(), np.stack(expected))
    assert np.array_equal(given.numpy(), images)


def test_what_operations_take_is_timms_at_each_magnitude(monkeypatch):
    size = (40, 60)
    for negative in (True, False):
        monkeypatch.setattr(timm_ops, "_randomly_negate", lambda v, sign=1 - 2 * negative: sign * v)
        for op, name in NAMES.items():
            function = timm_ops.LEVEL_TO_ARG[name]
            for magnitude in (0.0, 0.3, 2.5, 5.0, 7.77, 9.0, 9.99, 10.0):
                args = (op, magnitude, negative)
                given = (torch.tensor(arg, dtype=kind) for arg, kind in zip(args, KINDS, strict=True))
                found = timm_values(*given, *size).item()
                expected = 0 if function is None else function(magnitude, {})[0]
                if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
                    expected *= size[op == Op.TRANSLATE_X]
                assert found == pytest.approx(expected, abs=1e-12), args


def test_operations_are_equally_likely_and_magnitudes_normal():
    n = 60_000
    params = draw_strong(TIMM, generator(), n, (224, 224))
    assert COUNTS["timm"] == len(OPS) == 15
    for slot in params.op.T:
        share = slot.bincount(minlength=len(Op)) / n
        expected = torch.full((len(Op),), 0.5 / 15)
        expected[Op.IDENTITY] = 0.5
        assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()
    angle = params.value[params.op == Op.ROTATE]
    assert 0.45 < (angle > 0).double().mean() < 0.55
    drawn = angle.abs().numpy() / 3
    assert drawn.max() == 10  # cut off there
    assert (drawn == 10).mean() == pytest.approx(norm.sf(2), abs=0.01)
    assert kstest(drawn[drawn < 10], lambda x: norm.cdf(x, 9, 0.5) / norm.cdf(2)).pvalue > 0.01
    still = draw_strong(StrongRecipe(2, 1.0, "timm", 0, FILL, 5.0, 0.0), generator(), 900, (224, 224))
    assert set(still.value[still.op == Op.ROTATE].abs().tolist()) == {15.0}
    one, other = generator(), generator()
    draw_strong(TIMM, one, 50, (32, 32))
    draw_strong(StrongRecipe(), other, 50, (32, 32))
    assert torch.equal(one.get_state(), other.get_state())


# ---- erasing ----


def test_boxes_are_those_of_the_rule_one_by_one():
    """mmcls, RandomErasing.__call__, at uniform numbers."""
    height, width, n = 40, 56, 2000
    found = Erase(0.4, MEAN, STD).draw(generator(), n, (height, width))
    low, high = math.log(3 / 10), math.log(10 / 3)
    for (coin, area, shape, down, right, number), box, key in zip(
        torch.rand(n, 6, generator=generator(), dtype=torch.float64).tolist(), found.box.tolist(),
        found.number.tolist(), strict=True,
    ):  # fmt: skip
        ratio, area = math.exp(low + (high - low) * shape), height * width * (0.02 + (1 / 3 - 0.02) * area)
        h, w = min(round(math.sqrt(area * ratio)), height), min(round(math.sqrt(area / ratio)), width)
        top, left = int(down * (height - h)), int(right * (width - w))
        assert box == ([top, top + h, left, left + w] if coin < 0.4 else [0] * 4)
        assert key == math.floor((number - 0.5) * 2**32)
    top, bottom, left, right = found.box.T
    share = ((bottom - top) * (right - left)).double() / (height * width)
    erased = share > 0
    assert erased.double().mean().item() == pytest.approx(0.4, abs=0.04)
    assert AREA[0] * 0.8 < share[erased].min() < share.max() < AREA[1] * 1.05
    assert share[erased].mean().item() == pytest.approx(sum(AREA) / 2, abs=0.02)


def test_a_recipe_that_erases_nothing_draws_nothing():
    given = generator()
    before = given.get_state()
    params = NOTHING.draw(given, 5, (8, 8))
    assert torch.equal(given.get_state(), before)
    images = torch.from_numpy(real_images(5, (8, 8)))
    kept = images.clone()
    NOTHING.apply(images, params)
    NOTHING.apply_fixed(images, NOTHING.fixed(params))
    assert torch.equal(images, kept)


@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 14, 1)])
def test_noise_fills_the_boxes_alone_and_both_ways_agree(shape):
    images = torch.from_numpy(real_images(60, shape[:2], shape[2]))
    recipe = Erase(0.6, MEAN[: shape[2]], STD[: shape[2]])
    params = recipe.draw(generator(), 60, shape[:2])
    found, alike = images.clone(), images.clone()
    recipe.apply(found, params)
    recipe.apply_fixed(alike, recipe.fixed(params))
    assert torch.equal(found, alike)
    table, positions = quantiles(recipe.mean, recipe.std).numpy(), np.arange(math.prod(shape), dtype=np.uint32)
    for k, (top, bottom, left, right) in enumerate(params.box.tolist()):
        key = by_numpy(by_numpy(positions) ^ np.uint32(params.number[k].item() % 2**32)) & 0xFFFF
        noise = table[(positions % shape[2]) * 65536 + key].reshape(shape)
        expected = images[k].numpy().copy()
        expected[top:bottom, left:right] = noise[top:bottom, left:right]
        np.testing.assert_array_equal(found[k].numpy(), expected)
    few = torch.tensor([3, 44, 7])
    alone = images[few]
    recipe.apply(alone, type(params)(params.box[few], params.number[few], params.table))
    assert torch.equal(alone, found[few])


def by_numpy(value):
    """The hash, on unsigned numbers."""
    value = (value ^ (value >> np.uint32(16))) * np.uint32(0x7FEB352D)
    value = (value ^ (value >> np.uint32(15))) * np.uint32(0x846CA68B)
    return value ^ (value >> np.uint32(16))


def test_noise_is_normal_and_of_no_two_places_or_images_alike():
    n, size = 24, (64, 64)
    params = ERASE.draw(generator(), n, size)
    params.box[:] = torch.tensor([0, 64, 0, 64])
    images = torch.zeros(n, *size, 3, dtype=torch.uint8)
    ERASE.apply(images, params)
    values = images.double()
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        flat = values[..., channel].flatten()
        at = np.arange(-1, 256)
        expected = norm.cdf((at + 1) / 255, mean, std)  # fractions are cut off, of what is below 0 too
        expected[0], expected[-1] = 0, 1
        counted = np.cumsum(np.bincount(flat.long().numpy(), minlength=256)) / len(flat)
        assert np.abs(counted - expected[1:]).max() < 1.95 / len(flat) ** 0.5  # Kolmogorov's, once in a thousand
    flat = (values - values.mean((0, 1, 2))) / values.std((0, 1, 2))
    pairs = {
        "next column": (flat[:, :, 1:], flat[:, :, :-1]), "next row": (flat[:, 1:], flat[:, :-1]),
        "channels": (flat[..., :2], flat[..., 1:]), "images": (flat[1:], flat[:-1]),
    }  # fmt: skip
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean().item()) < 4 / one.numel() ** 0.5, name
    by_number = torch.arange(-8, 8, dtype=torch.int32)
    assert hashed(by_number).unique().numel() == 16


# ---- where they are seen ----


def test_a_strong_view_is_weak_then_operations_then_noise():
    images = torch.from_numpy(real_images(30, (32, 32)))
    view = Strong(Weak(4, False, True), TIMM, (32, 32), ERASE)
    params, index = view.draw(generator(), 30), torch.arange(30)
    found = view.apply(images, index, params)
    step = apply_strong(view.weak.gather(images, index, params.weak), TIMM, params.strong)
    ERASE.apply(step, params.erased)
    assert torch.equal(found, step.permute(0, 3, 1, 2))
    assert torch.equal(view.apply_fixed(images, index, view.fixed(params)), found)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_and_never_waits():
    images, index = torch.from_numpy(real_images()), torch.arange(500)
    view = Strong(Weak(4, False, True), TIMM, (32, 32), ERASE)
    params = view.draw(generator(), 500)
    expected, on_device, places = view.apply(images, index, params), images.cuda(), index.cuda()
    given = mapped(lambda tensor: tensor.cuda(), view.fixed(params))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = view.apply(on_device, places, params), view.apply_fixed(on_device, places, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(pixels.cpu(), expected) for pixels in found)


def test_the_whole_recipe_trains():
    """Crops at random scales, operations, noise and both ways of mixing, with transformers and the row's losses."""
    views = ["views=deit", "views.size=8", "loss=nkd_vitkd", "loss.nkd.mixed=larger", "loss.ce.label_smoothing=0.1"]
    config, method, loader, _ = make("distill", *views, *TEACHER, *VITS)
    assert isinstance(loader.streams["labeled"].recipes["weak"], Strong)
    batch = loader.batch(0)["labeled"]
    assert batch.target.shape == (len(batch.target), 10)
    assert batch.views["weak"].pixels.dtype == torch.float32
    losses = fit(config, method, loader, 0, 3)
    loader.close()
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3


def test_unlabeled_images_keep_their_views():
    plain = make("fixmatch")[2]
    strong = make("fixmatch", "views.labeled=strong")[2]
    one, other = plain.batch(0), strong.batch(0)
    for name in ("weak", "strong"):
        assert torch.equal(one["unlabeled"].views[name].pixels, other["unlabeled"].views[name].pixels)
    assert torch.equal(one["labeled"].views["weak"].index, other["labeled"].views["weak"].index)
    assert not torch.equal(one["labeled"].views["weak"].pixels, other["labeled"].views["weak"].pixels)
    assert strong.streams["unlabeled"].recipes["weak"] is not strong.streams["labeled"].recipes["weak"]
    plain.close(), strong.close()


# ---- losses of mixed labels ----


def mixed_labels():
    share = torch.tensor([0.7, 0.2, 1.0, 0.55])[:, None]
    return share * torch.eye(5)[[0, 1, 2, 3]] + (1 - share) * torch.eye(5)[[1, 4, 2, 0]]


def test_nkd_of_the_larger_label_is_that_of_its_class():
    student, teacher = torch.randn(2, 4, 5, generator=generator())
    target = mixed_labels()
    of_class = term("nkd")(pair(student, teacher, torch.tensor([0, 4, 2, 3])))
    assert torch.equal(term("nkd", mixed="larger")(pair(student, teacher, target)), of_class)
    both = term("nkd")(pair(student, teacher, target))
    assert torch.equal(both[2], of_class[2])
    assert not torch.isclose(both[[0, 1, 3]], of_class[[0, 1, 3]]).any()
    hard = torch.tensor([3, 1, 0, 0])
    assert torch.equal(*(term("nkd", mixed=how)(pair(student, teacher, hard)) for how in ("larger", "both")))


def test_smoothing_of_mixed_labels_is_that_of_mmcls():
    """LabelSmoothLoss, mode original: (1 - e) y + e / C, of whatever y."""
    logits, target = torch.randn(4, 5, generator=generator()).double(), mixed_labels().double()
    smoothed = 0.9 * target + 0.1 / 5
    torch.testing.assert_close(cross_entropy(logits, target, 0.1), -(smoothed * logits.log_softmax(1)).sum(1))
