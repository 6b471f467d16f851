"""MixMatch and ReMixMatch: how batches are mixed, what passes see, and the losses by hand."""

from dataclasses import replace

import pytest
import torch
from scipy.special import betaincinv
from torch import tensor
from torch.nn import functional as F

from kdrun.core.errors import ConfigError
from kdrun.core.world import World, enter
from kdrun.data.views.view import View
from kdrun.losses.labels import cross_entropy
from kdrun.methods.alignment import MovingMean, aligned
from kdrun.methods.batch_mixup import BatchMixup, LargerShare, in_passes
from kdrun.methods.labeler import sharpened
from kdrun.methods.mixmatch import MixMatch
from kdrun.methods.remixmatch import quarter_turns
from tests.conftest import TEACHER
from tests.contract.test_methods import ctx, make

W = tensor([[2, 0.5, -1], [0.1, 1.2, 0.3], [-0.5, 0, 3]], dtype=torch.float64)
S = tensor([[1, 0.2, -0.3], [0, 0.5, 0.1], [-0.2, 0.4, 1.5]], dtype=torch.float64)
L = tensor([[1.5, 0, -0.5], [0.2, 0.8, 0.4]], dtype=torch.float64)
P = W.softmax(1)


def near(found, wanted, near=1e-7):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), rtol=0, atol=near)


class Drawn:
    """A step whose numbers are given."""

    def __init__(self, uniform):
        self.uniform = uniform

    def draw(self, count, *shape):
        assert self.uniform.shape == (count, *shape)
        return self.uniform


def taken(name, *overrides, step=3):
    config, method, loader, _ = make(name, *overrides)
    batch = loader.batch(step)
    return config, method, batch


# ------------------------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 8.0])
def test_shares_are_the_larger_ones_of_a_beta_distribution(alpha):
    uniform = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]
    share = LargerShare(alpha).double()(uniform)
    wanted = 1 - betaincinv(alpha, alpha, uniform.numpy() / 2)
    assert abs(share.numpy() - wanted).max() < 2e-4
    assert 0.5 <= share.min() <= share.max() <= 1


def test_a_share_of_uniform_numbers_is_linear_where_alpha_is_1():
    near(LargerShare(1.0)(tensor([0.0, 0.3, 0.99999])), [1, 0.85, 0.500005], 1e-6)


# ------------------------------------------------------------------------------------------------------------ mixing


def images(*counts):
    drawn = torch.Generator().manual_seed(0)
    return [
        View(torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=drawn), torch.arange(n)) for n in counts
    ]


def test_labels_and_losses_of_mixmatch_are_those_of_the_facts():
    guess = sharpened((P + S.softmax(1)) / 2, 0.5)
    near(guess[0], [0.89062559, 0.09078726, 0.01858715], 1e-8)
    mixup = BatchMixup(0.75, "sample")
    mixup.share.forward = lambda uniform: torch.full_like(uniform, 0.7)
    order = tensor([4, 0, 3, 1, 2])
    uniform = torch.zeros(5, 2, dtype=torch.float64)
    uniform[order, 0] = torch.arange(5, dtype=torch.float64) / 5
    views = images(2, 3)
    mixed, (known, new) = mixup(views, [F.one_hot(tensor([0, 1]), 3).double(), guess], Drawn(uniform))
    near(known[0], [0.70253735, 0.00812512, 0.28933753], 1e-7)
    near(cross_entropy(L, known).mean(), 0.93716722)
    squared = MixMatch.of_unlabeled(None, S, new).mean()
    near(squared, 0.02641656)
    near(cross_entropy(L, known).mean() + 75 * squared, 2.91840933, 1e-6)
    pixels = torch.cat([view.pixels for view in views]).float() / 255
    torch.testing.assert_close(torch.cat([view.pixels for view in mixed]), 0.7 * pixels + 0.3 * pixels[order])
    assert [view.index.tolist() for view in mixed] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_partners_are_a_permutation_of_the_whole_list_and_shares_are_drawn_as_said(per):
    views, classes = images(4, 8, 8), torch.eye(20)
    targets = list(classes.split([4, 8, 8]))
    config = make("mixmatch")[0]
    _, mixed = BatchMixup(0.75, per)(views, targets, ctx(config, 0))
    mixed = torch.cat(mixed)
    torch.testing.assert_close(mixed.sum(1), torch.ones(20))
    others = (mixed - torch.diag(mixed.diag())).nonzero()
    assert len(set(others[:, 1].tolist())) == len(others) > 15  # each is a partner once
    assert (mixed.diag() >= 0.5).all()
    shares = {round(v, 5) for v in mixed.diag().tolist() if v < 1}
    assert (len(shares) == 1) == (per == "batch")


def test_passes_have_each_image_once_and_of_each_batch_the_same_number():
    passes = in_passes([6, 12, 12], True, torch.device("cpu"))
    assert passes.shape == (5, 6)
    assert sorted(passes.flatten().tolist()) == list(range(30))
    for one in passes[:, :5].tolist():  # of 5 images of the first batch and what goes with them
        assert [sum(lo <= row < hi for row in one) for lo, hi in ((0, 6), (6, 18), (18, 30))] == [1, 2, 2]
    apart = in_passes([6, 12, 12], False, torch.device("cpu"))
    assert apart[0].tolist() == list(range(6))
    assert all(6 <= row < 18 for one in apart[1:3].tolist() for row in one)


@pytest.mark.parametrize("interleave", [True, False])
def test_passes_of_ranks_are_together_those_of_one_process(interleave):
    """As sets of images: what batch normalisation sees."""
    labeled, other = torch.arange(6), 100 + torch.arange(12)
    one = in_passes([6, 12], interleave, torch.device("cpu"))
    wanted = [set(torch.cat([labeled, other])[rows].tolist()) for rows in one]
    found = [set() for _ in one]
    for rank in range(3):
        enter(World(rank, 3))
        try:
            passes = in_passes([2, 4], interleave, torch.device("cpu"))
        finally:
            enter(World())
        own = torch.cat([labeled[rank * 2 :][:2], other[rank * 4 :][:4]])
        for k, rows in enumerate(passes):
            found[k] |= set(own[rows].tolist())
    assert found == wanted


# ----------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(("name", "passes"), [("mixmatch", 2 + 1 + 2), ("remixmatch", 1 + 1 + 3 + 2)])
def test_only_the_first_pass_of_mixed_images_moves_the_running_statistics(name, passes):
    overrides = ["method.strong_views=2"] if name == "remixmatch" else []
    config, method, batch = taken(name, *overrides)
    norm = next(m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    method.students["student"].register_forward_pre_hook(
        lambda _, given: seen.append((norm.track_running_stats, torch.is_grad_enabled(), given[0].pixels.dtype))
    )
    method(batch, ctx(config, 3))
    assert len(seen) == passes
    guesses = 2 if name == "mixmatch" else 1
    assert seen[:guesses] == [(False, False, torch.uint8)] * guesses
    assert [tracks for tracks, *_ in seen[guesses:]] == [True] + [False] * (passes - guesses - 1)
    assert seen[guesses][2] == torch.float32
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["mixmatch", "remixmatch", "comatch", "simmatch"])
def test_half_precision_gives_all_weights_a_gradient_behind_passes_without_one(name):
    config, method, batch = taken(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method(batch, ctx(config, 10))
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in out.losses.values())
    torch.stack(list(out.losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in method.parameters() if p.ndim > 1 and p.requires_grad)


def test_the_weight_of_unlabeled_images_rises_with_the_run():
    config, method, batch = taken("mixmatch", "method.warmup=0.5", "method.unlabeled_weight=3")
    losses = []
    for step in (0, 5, 10, 19):
        context = ctx(config, 3)
        context.progress = step / 20
        losses.append(method(batch, context).losses["unlabeled"].item())
    assert losses[0] == 0
    assert losses[1:] == pytest.approx([losses[2] / 2, losses[2], losses[2]], rel=1e-5)


def test_logits_of_mixed_images_come_back_in_their_order():
    _, method, batch = taken("mixmatch")
    views = [batch["labeled"].views["weak"], *batch["unlabeled"].views.values()]
    found = [out.logits for out in method.eval().through(views)]  # no statistics of a batch
    for out, view in zip(found, views, strict=True):
        torch.testing.assert_close(out, method.students["student"](view).logits, rtol=1e-4, atol=1e-5)


def test_a_teacher_beside_is_asked_about_the_mixed_images():
    config, method, batch = taken("mixmatch", "loss=kd", *TEACHER)
    asked, shown = [], []
    method.setup.teacher.network.register_forward_pre_hook(lambda _, given: asked.append(given[0].pixels))
    method.students["student"].register_forward_pre_hook(lambda _, given: shown.append(given[0].pixels))
    out = method(batch, ctx(config, 3))
    assert set(out.losses) == {"ce", "unlabeled", "kd", "unlabeled_kd"}
    (pixels,) = asked
    mixed = torch.cat(shown[2:])
    assert all((mixed == one).all((1, 2, 3)).any() for one in pixels)
    assert len(pixels) == 2 * config.schedule.batch_size


# -------------------------------------------------------------------------------------------------------- ReMixMatch


def test_aligned_labels_of_remixmatch_are_those_of_the_facts():
    target = tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    moving = MovingMean(3, "ema", start="first").double()
    mean = moving(P)
    near(mean, [0.3349749, 0.26542921, 0.39959589], 1e-8)
    found = aligned(P, mean, target)
    near(found[0], [0.84341906, 0.14250062, 0.01408033], 1e-8)
    sharp = sharpened(found, 0.5)
    near(sharp[0], [0.9719828, 0.02774631, 0.00027089], 1e-8)
    near(cross_entropy(S, sharp).mean(), 0.64035736, 1e-8)
    near(moving(S.softmax(1)), [0.33496249, 0.26547037, 0.39956713], 1e-8)
    window = MovingMean(3, "window").double()
    near(aligned(P, window.value, target)[0], [0.86670647, 0.11603317, 0.01726036], 1e-8)
    near(aligned(P, mean, torch.full((3,), 1 / 3, dtype=torch.float64))[0], [0.75567027, 0.21279128, 0.03153845], 1e-8)


def test_sharpening_to_almost_nothing_keeps_a_label():
    found = sharpened(tensor([[1e-9, 1e-9, 1e-9], [0.5, 0.5, 0.0]]), 0.01)
    near(found, [[1 / 3] * 3, [0.5, 0.5, 0.0]], 1e-6)


@pytest.mark.parametrize(
    ("start", "wanted"), [("uniform", [0.25, 0.75]), ("zero", [0.0, 0.5]), ("first", [0.0, 1.0])]
)  # fmt: skip
def test_a_window_holds_the_last_means(start, wanted):
    window = MovingMean(2, "window", window=2, start=start)
    one, two, three = (tensor([[p, 1 - p]]) for p in (0.0, 1.0, 0.5))
    near(window(one), wanted)
    near(window(two), [0.5, 0.5])
    near(window(three), [0.75, 0.25])
    near(window.value, [0.75, 0.25])


def test_a_quarter_of_the_images_is_turned_by_each_angle():
    pixels = torch.arange(5 * 4, dtype=torch.uint8).view(5, 1, 2, 2)
    turned, turn = quarter_turns(pixels)
    assert turn.tolist() == [0, 1, 2, 3, 0]
    assert turned[:, 0].tolist() == [[[0, 1], [2, 3]], [[5, 7], [4, 6]], [[11, 10], [9, 8]], [[14, 12], [15, 13]],
                                     [[16, 17], [18, 19]]]  # fmt: skip


def test_images_that_are_not_square_are_not_turned():
    with pytest.raises(ConfigError, match="turns images, which are 2x3 and not square; set rotation_weight to 0"):
        quarter_turns(torch.zeros(1, 1, 2, 3))


def test_labels_of_remixmatch_are_aligned_by_the_means_before_this_batch_or_with_it():
    wanted = {}
    for kind in ("window", "ema"):
        _, method, batch = taken("remixmatch", f"method.alignment={kind}", "method.strong_views=1")
        p = method.students["student"](batch["unlabeled"].views["weak"]).logits.softmax(1)
        mean = torch.full((10,), 0.1) if kind == "window" else p.mean(0)
        wanted[kind] = sharpened(aligned(p, mean, method.wanted), 0.5).detach()
        torch.testing.assert_close(method.guessed(batch["unlabeled"]), wanted[kind])
        assert method.mean.count == 1
        labels = method.setup.train_target
        near(method.wanted, labels[labels >= 0].bincount(minlength=10) / 50, 1e-6)


@pytest.mark.parametrize("strong", [1, 3])
def test_remixmatch_sees_as_many_strong_views_as_asked(strong):
    config, method, batch = taken("remixmatch", f"method.strong_views={strong}", "views=ctaugment")
    names = ["weak", "strong", "strong_2", "strong_3"][: 1 + strong]
    assert list(batch["unlabeled"].views) == names
    assert list(batch["labeled"].views) == ["weak", "probe"]
    out = method(batch, ctx(config, 3))
    assert set(out.losses) == {"ce", "unlabeled", "premix", "rotation"}
    pixels = [view.pixels for view in method.augment.augmented(batch)["unlabeled"].views.values()]
    assert all(not torch.equal(a, b) for k, a in enumerate(pixels) for b in pixels[k + 1 :])


def test_a_weight_of_zero_leaves_out_its_pass_and_its_head():
    config, method, batch = taken("remixmatch", "method.rotation_weight=0", "method.premix_weight=0")
    assert set(method(batch, ctx(config, 3)).losses) == {"ce", "unlabeled"}
    assert method.parts("student") == [method.losses()]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["mixmatch", "remixmatch"])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss=kd_noce", *TEACHER], "loss: method={} needs a term against the labels of mixed images"),
        (["loss=wttm_crd", *TEACHER], "loss.crd: crd remembers single images, and method={} mixes them"),
        (["schedule.last_batch=small", "schedule.epoch=ceil"], "schedule.last_batch: method={} mixes as many"),
        (["views.mix.kind=mixup"], "views.mix.kind: method={} does not take mixed images"),
    ],
)
def test_what_does_not_go_with_mixing_is_refused_in_a_line(name, overrides, says):
    with pytest.raises(ConfigError) as refused:
        make(name, *overrides)
    assert [line for line in refused.value.lines if line.startswith(says.format(name))]


@pytest.mark.parametrize("name", ["mixmatch", "remixmatch", "comatch", "simmatch"])
def test_one_class_is_refused(name):
    config, method, _, _ = make(name)
    with pytest.raises(ConfigError, match=f"method={name} learns which class an image is of, and there is only one"):
        config.method_class(config, replace(method.setup, num_classes=1))
