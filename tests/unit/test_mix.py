"""Mixup and CutMix against single images mixed by hand, and what a stream makes of them."""

import dataclasses

import numpy as np
import pytest
import torch

from kdrun.config.views import MixConfig
from kdrun.data.stream import Stream
from kdrun.data.views.mix import Mix, Mixture
from kdrun.data.views.recipes import Weak
from kdrun.data.views.view import clean

SIZE, CLASSES = (6, 5), 4
KINDS = ["mixup", "cutmix", "mixup_or_cutmix"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mix(kind="mixup", **fields):
    return Mix(MixConfig(kind=kind, **fields), SIZE, CLASSES)


def images(n=12):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, *SIZE, 3), dtype=np.uint8))


def stream(how=None, batch_size=8, seed=0):
    return Stream(
        "labeled",
        images(),
        torch.arange(12) % CLASSES,
        torch.arange(12),
        batch_size,
        {"weak": Weak(1, False, True)},
        seed,
        mix=how,
    )


def by_hand(pixels, mixture):
    """One image after the other, in numpy's double precision."""
    kind, x, out = mixture.mix.config.kind, pixels.numpy().astype(float) / 255, []
    for i, (j, share, (top, bottom, left, right)) in enumerate(
        zip(mixture.partner.tolist(), mixture.share.tolist(), mixture.box.tolist(), strict=True)
    ):
        cut = kind == "cutmix" or (kind == "mixup_or_cutmix" and bottom > top and right > left)
        image = x[i].copy() if cut else share * x[i] + (1 - share) * x[j]
        if cut:
            image[:, top:bottom, left:right] = x[j][:, top:bottom, left:right]
            height, width = SIZE
            assert share == pytest.approx(1 - (bottom - top) * (right - left) / (height * width))
        out.append(image)
    return np.stack(out)


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_mixed_one_by_one(kind, per):
    pixels, target = clean(images(), torch.arange(12)), torch.arange(12) % CLASSES
    for seed in range(20):
        mixture = mix(kind, per=per, alpha=0.7, share=0.8).draw(generator(seed), 12)
        got = mixture.images(pixels)
        assert got.dtype == (torch.uint8 if kind == "cutmix" else torch.float32)
        assert got.is_contiguous(memory_format=torch.channels_last)
        scale = 255 if kind == "cutmix" else 1
        np.testing.assert_allclose(got.numpy() / scale, by_hand(pixels, mixture), atol=1e-6)
        one_hot, share = np.eye(CLASSES)[target], mixture.share.numpy()[:, None]
        expected = share * one_hot + (1 - share) * one_hot[mixture.partner]
        labels = mixture.labels(target)
        assert labels.dtype == torch.float32
        np.testing.assert_allclose(labels.numpy(), expected, atol=1e-6)
        assert sorted(mixture.partner.tolist()) == list(range(12))


def test_cutmix_boxes_by_hand():
    square = dataclasses.replace(mix("cutmix"), size=(8, 8))
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last)
    pixels[1] = 200
    box = torch.tensor([[2, 6, 0, 3], [0, 0, 4, 8]])
    mixture = Mixture(square, torch.tensor([1, 0]), torch.tensor([1 - 12 / 64, 1.0]), box)
    got = mixture.images(pixels)
    assert (got[0, :, 2:6, 0:3] == 200).all()
    assert int(got[0].sum()) == 3 * 12 * 200
    assert (got[1] == 200).all()
    assert mixture.labels(torch.tensor([3, 1]))[0].tolist() == [0, 12 / 64, 0, 1 - 12 / 64]


def test_cutmix_takes_the_area_that_lambda_leaves_where_no_border_cuts_it():
    wide = dataclasses.replace(mix("cutmix", per="batch"), size=(64, 64))
    full = 0
    for seed in range(50):
        mixture = wide.draw(generator(seed), 2)
        drawn = torch.rand(3, 1, generator=after_permutation(seed, 2), dtype=torch.float64)
        side = int(64 * (1 - drawn[0].item()) ** 0.5) // 2 * 2
        top, bottom, left, right = mixture.box[0].tolist()
        assert 0 <= top <= bottom <= 64
        assert 0 <= left <= right <= 64
        assert bottom - top <= side
        assert right - left <= side
        if top > 0 and bottom < 64 and left > 0 and right < 64:
            full += 1
            assert (bottom - top, right - left) == (side, side)
    assert full > 5


def after_permutation(seed, n):
    """The generator of `draw`, where it draws lambda; alpha 1 makes the uniform number itself lambda."""
    made = generator(seed)
    torch.randperm(n, generator=made)
    torch.rand(n, generator=made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_is_drawn_per_sample_or_per_batch(kind):
    single, shared = mix(kind).draw(generator(), 32), mix(kind, per="batch").draw(generator(), 32)
    assert len(single.share.unique()) > 4
    assert len(shared.share.unique()) == 1
    assert len({tuple(box) for box in shared.box.tolist()}) == 1
    partly = mix(kind, per="batch", share=0.5).draw(generator(), 32)
    assert set(partly.share.tolist()) == {1.0, shared.share[0].item()}


def cut_of(mixture):
    top, bottom, left, right = mixture.box.T
    return (bottom > top) & (right > left)


def test_by_turns_chance_says_which_of_the_two_for_an_image_or_a_batch():
    turns = dataclasses.replace(mix("mixup_or_cutmix", alpha=0.8, cutmix_share=0.3), size=(64, 64))
    cut = cut_of(turns.draw(generator(), 4000)).double().mean().item()
    assert cut == pytest.approx(0.3, abs=0.04)  # some boxes are empty
    whole = dataclasses.replace(turns, config=turns.config.replace(per="batch", cutmix_share=0.5))
    shared = [cut_of(whole.draw(generator(seed), 8)) for seed in range(200)]
    assert all(kinds.all() or not kinds.any() for kinds in shared)
    assert sum(kinds.all().item() for kinds in shared) == pytest.approx(98, abs=30)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_by_turns_each_of_the_two_is_itself(share):
    alone = mix("cutmix", alpha=0.4) if share else mix("mixup", alpha=0.4)
    given = {"cutmix_alpha": 0.4, "alpha": 3.0} if share else {"cutmix_alpha": 3.0, "alpha": 0.4}
    turns = mix("mixup_or_cutmix", cutmix_share=share, per="batch", **given)
    pixels = clean(images(), torch.arange(12))
    alone = dataclasses.replace(alone, config=alone.config.replace(per="batch"))
    for seed in range(20):  # for a batch the numbers that both draw are the first of all
        one, other = alone.draw(generator(seed), 12), turns.draw(generator(seed), 12)
        assert torch.equal(one.share, other.share)
        if share:
            assert torch.equal(one.images(pixels).float() / 255, other.images(pixels))
        else:
            assert torch.equal(one.images(pixels), other.images(pixels))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_lambda_is_beta(alpha):
    from scipy.stats import beta, kstest

    drawn = mix(alpha=alpha).draw(generator(), 4000).share.double().numpy()
    assert kstest(drawn, beta(alpha, alpha).cdf).pvalue > 0.01


def test_share_is_the_share_of_mixed_images():
    assert (mix(share=0.3).draw(generator(), 5000).share < 1).double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (mix().draw(generator(), 5000).share < 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_unmixed_images_are_bitwise_what_networks_make_of_pixels(kind):
    pixels, target = clean(images(), torch.arange(12)), torch.arange(12) % CLASSES
    mixture = mix(kind, share=0.0).draw(generator(), 12)
    got = mixture.images(pixels)
    assert torch.equal(got.float() / 255 if kind == "cutmix" else got, pixels.float() / 255)
    assert torch.equal(mixture.labels(target), torch.eye(CLASSES)[target])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_is_a_function_of_seed_and_step(kind):
    forward = [stream(mix(kind)).batch(step) for step in range(6)]
    jumping = stream(mix(kind))
    joint = stream(mix(kind)).batches(range(6))
    for step in (5, 0, 3):
        torch.manual_seed(step)
        for other in (jumping.batch(step), joint[step]):
            assert torch.equal(other.views["weak"].pixels, forward[step].views["weak"].pixels)
            assert torch.equal(other.target, forward[step].target)
    assert not torch.equal(forward[0].target, stream(mix(kind), seed=1).batch(0).target)


def test_a_stream_mixes_its_views_as_drawn_and_keeps_the_first_index():
    plain, mixed = stream().batch(3), stream(mix()).batch(3)
    assert torch.equal(plain.views["weak"].index, mixed.views["weak"].index)
    assert mixed.target.shape == (8, CLASSES)
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(8))
    pixels = mixed.views["weak"].pixels
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert not torch.equal(pixels, plain.views["weak"].pixels.float() / 255)


def test_an_unlabeled_stream_is_mixed_without_labels():
    made = Stream("unlabeled", images(), None, torch.arange(12), 8, {"weak": Weak(1, False, True)}, 0, mix=mix())
    batch = made.batch(0)
    assert batch.target is None
    assert batch.views["weak"].pixels.dtype == torch.float32


def test_one_image_is_mixed_with_itself():
    pixels = clean(images(1), torch.tensor([0]))
    mixture = mix().draw(generator(), 1)
    torch.testing.assert_close(mixture.images(pixels), pixels.float() / 255)
    assert mixture.labels(torch.tensor([2])).tolist()[0] == pytest.approx([0, 0, 1, 0])
