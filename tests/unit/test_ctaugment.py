"""CTAugment: its operations are Pillow's, its bins follow the rates, and the rates follow the predictions."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.needs import Needs
from kdrun.core.errors import ConfigError
from kdrun.data.loader import Loader
from kdrun.data.views import ctaugment
from kdrun.data.views.ctaugment import Cta, CtaParams, Policy, draw_cta, fresh_rates, learned, shares
from kdrun.data.views.randaugment import StrongRecipe
from kdrun.methods.augment import Augment
from kdrun.methods.fixmatch import FixMatch
from tests.contract.test_methods import ctx, make
from tests.each import each
from tests.unit.test_captured import differing, loop, trained

CTA = "views=ctaugment"
FILTERS = [Image.LANCZOS, Image.BICUBIC, Image.BILINEAR, Image.BOX, Image.HAMMING, Image.NEAREST]


def images(n=40, side=24):
    """Smooth ones, and noise."""
    source = torch.Generator().manual_seed(0)
    small = torch.rand(n // 2, 3, 4, 4, generator=source) * 255
    soft = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 255).permute(0, 2, 3, 1)
    noise = torch.randint(0, 256, (n - n // 2, side, side, 3), generator=source, dtype=torch.uint8)
    return torch.cat([soft.to(torch.uint8), noise])


def cut(image, level, at):
    size = 1 + int(level * min(image.size) * 0.499)
    pixels = np.array(image)
    top, left = (max(0, c - size // 2) for c in at)
    pixels[top : at[0] + size // 2, left : at[1] + size // 2] = 127
    return Image.fromarray(pixels)


def rescaled(image, scale, kind):
    width, height = image.size
    scale *= 0.25
    crop = image.crop((scale * width, scale * height, width * (1 - scale), height * (1 - scale)))
    return crop.resize(image.size, FILTERS[int(kind * 5.99)])


def blend(change):
    return lambda image, level, _: Image.blend(image, change(image), level[0])


def enhance(kind):
    return lambda image, level, _: kind(image).enhance(0.1 + 1.9 * level[0])


def affine(matrix):
    return lambda image, level, _: image.transform(image.size, Image.AFFINE, matrix((2 * level[0] - 1) * 0.3))


PILLOW = {
    Cta.AUTOCONTRAST: blend(ImageOps.autocontrast),
    Cta.BLUR: blend(lambda image: image.filter(ImageFilter.BLUR)),
    Cta.BRIGHTNESS: enhance(ImageEnhance.Brightness),
    Cta.COLOR: enhance(ImageEnhance.Color),
    Cta.CONTRAST: enhance(ImageEnhance.Contrast),
    Cta.CUTOUT: lambda image, level, at: cut(image, level[0], at),
    Cta.EQUALIZE: blend(ImageOps.equalize),
    Cta.INVERT: blend(ImageOps.invert),
    Cta.POSTERIZE: lambda image, level, _: ImageOps.posterize(image, 1 + int(level[0] * 7.999)),
    Cta.RESCALE: lambda image, level, _: rescaled(image, *level),
    Cta.ROTATE: lambda image, level, _: image.rotate(int(np.round((2 * level[0] - 1) * 45))),
    Cta.SHARPNESS: enhance(ImageEnhance.Sharpness),
    Cta.SHEAR_X: affine(lambda shear: (1, shear, 0, 0, 1, 0)),
    Cta.SHEAR_Y: affine(lambda shear: (1, 0, 0, shear, 1, 0)),
    Cta.SMOOTH: blend(lambda image: image.filter(ImageFilter.SMOOTH)),
    Cta.SOLARIZE: lambda image, level, _: ImageOps.solarize(image, int(level[0] * 255.999)),
    Cta.IDENTITY: lambda image, level, _: image,
    Cta.TRANSLATE_X: affine(lambda shift: (1, 0, shift, 0, 1, 0)),
    Cta.TRANSLATE_Y: affine(lambda shift: (1, 0, 0, 0, 1, shift)),
}


def drawn(n=40, depth=1, seed=0, cutout=0):
    return draw_cta(StrongRecipe(depth, 0.5, "official", cutout), torch.Generator().manual_seed(seed), n, (24, 24))


@each("op", Cta)
def test_the_operations_are_pillow_s(op):
    given, params = images(), drawn()
    params = replace(params, op=torch.full_like(params.op, int(op)))
    levels = params.within.clone()
    levels[:3] = torch.tensor([0.0, 0.5, 1 - 1e-9], dtype=torch.float64)[:, None, None]
    got = Policy(params, True, False).applied(given.permute(0, 3, 1, 2), levels).permute(0, 2, 3, 1)
    for k, image in enumerate(given):
        at = tuple((params.place[k, 0] * 24).int().tolist())
        want = np.asarray(PILLOW[op](Image.fromarray(image.numpy()), levels[k, 0].tolist(), at))
        away = np.abs(want.astype(int) - got[k].numpy()).max()
        assert away <= (op == Cta.RESCALE), f"{op.name} at {levels[k, 0].tolist()}: {away}"


def test_each_operation_is_drawn_as_often_and_two_follow_one_another():
    params = drawn(3800, depth=2)
    counts = torch.bincount(params.op.view(-1), minlength=len(Cta))
    assert len(counts) == 19
    assert (counts - 400).abs().max() < 100
    given, levels, params = images(), drawn(depth=2).within, drawn(depth=2)
    both = Policy(params, True, False).applied(given.permute(0, 3, 1, 2), levels)
    one = given.permute(0, 3, 1, 2)
    for slot in range(2):
        part = {name: getattr(params, name)[:, slot : slot + 1] for name in ("op", "within", "chooser", "place")}
        one = Policy(replace(params, **part), True, False).applied(one, levels[:, slot : slot + 1])
    assert torch.equal(both, one)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_captured_makes_the_same_pixels_and_a_cutout_comes_last(channels):
    given = images()[..., :channels].permute(0, 3, 1, 2)
    before, params = given.clone(), drawn(depth=2, cutout=12)
    for probe in (False, True):
        policy = Policy(params, probe, False)
        levels = policy.levels(fresh_rates(), 0.8, 0.99)
        grouped, masked = (replace(policy, fixed=fixed).applied(given, levels) for fixed in (False, True))
        assert torch.equal(grouped, masked)
        top, bottom, left, right = params.box[0].tolist()
        assert bool((grouped[0, :, top:bottom, left:right] == 127).all()) is not probe
    assert torch.equal(given, before)


def test_bins_are_drawn_by_their_rates():
    """The golden of the authors' rule: rates 1, .9, .79, .5 at decay .99 and threshold .8 weigh 1, .9009901, 0, 0."""
    rates = fresh_rates()
    assert [int(row.sum()) for row in rates] == [17] * 8 + [8] + [17] * 7 + [0] + [17] * 2 + [6]
    rates[Cta.BLUR, :4] = torch.tensor([1.0, 0.9, 0.79, 0.5])
    rates[Cta.BLUR, 4:] = 0.01
    up_to = shares(rates, 0.8, 0.99)[Cta.BLUR]
    torch.testing.assert_close(up_to[:2], torch.tensor([1 / 1.9009901, 1.0], dtype=torch.float64), rtol=1e-6, atol=0)
    params = drawn(2000)
    params = replace(params, op=torch.full_like(params.op, int(Cta.BLUR)))
    levels = Policy(params, False, False).levels(rates, 0.8, 0.99)[:, 0, 0]
    assert levels.max() < 2 / 17
    assert (levels < 1 / 17).double().mean().item() == pytest.approx(1 / 1.9009901, abs=0.03)
    probe = Policy(params, True, False).levels(rates, 0.8, 0.99)[:, 0, 0]
    assert probe.max() > 0.99  # of a probe all magnitudes are


@each("op", [Cta.POSTERIZE, Cta.RESCALE, Cta.IDENTITY])
def test_the_number_of_bins_is_the_operation_s_own(op):
    params = drawn(500)
    params = replace(params, op=torch.full_like(params.op, int(op)))
    levels = Policy(params, False, False).levels(fresh_rates(), 0.8, 0.99)
    assert 0 <= levels.min() <= levels.max() < 1
    if op == Cta.RESCALE:
        assert set((levels[:, 0, 1] * 6).int().tolist()) == set(range(6))
    if op == Cta.POSTERIZE:
        assert set((levels[:, 0, 0] * 8).int().tolist()) == set(range(8))


def test_rates_move_as_if_one_probe_followed_the_other():
    params, match = drawn(64, depth=2), torch.rand(64, generator=torch.Generator().manual_seed(1))
    got = learned(fresh_rates(), params.op, params.within, match, 0.99)
    want = fresh_rates()
    for k in range(64):
        for op, level in zip(params.op[k].tolist(), params.within[k].tolist(), strict=True):
            rows = {Cta.IDENTITY: [], Cta.RESCALE: [op, ctaugment.METHOD]}.get(op, [op])
            for row, value in zip(rows, level, strict=False):
                place = int(value * ctaugment.BINS[row] * 0.999)
                want[row, place] = want[row, place] * 0.99 + match[k] * (1 - 0.99)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert (got != fresh_rates()).sum() > 50
    half = learned(fresh_rates(), torch.tensor([[int(Cta.BLUR)]]), torch.zeros(1, 1, 2), torch.tensor([0.5]), 0.99)
    assert half[Cta.BLUR, 0].item() == pytest.approx(0.995)


class Sure(torch.nn.Module):
    """Gives each image the same probabilities."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, view):
        return type("Output", (), {"logits": self.logits.expand(len(view.index), -1)})


def test_the_match_is_the_label_s_probability():
    method = make("fixmatch", CTA)[1]
    labeled = make("fixmatch", CTA)[2].batch(0)["labeled"]
    p = [0.2, 0.7, *[0.0125] * 8]
    labeled = replace(labeled, target=torch.ones_like(labeled.target))
    method.augment.learn(labeled, [Sure(p)])
    once = fresh_rates() * 0.99 + 0.01 * 0.7
    moved = method.augment.rates != fresh_rates()
    twice = once * 0.99 + 0.01 * 0.7
    rates = method.augment.rates[moved]
    assert ((rates - once[moved]).abs().lt(1e-6) | (rates - twice[moved]).abs().lt(1e-6)).float().mean() > 0.8


@each("name", ["fixmatch", "kd_fixmatch", "peer_fixmatch"])
def test_strong_views_are_made_with_the_rates_in_force_and_weak_ones_are_as_ever(name):
    config, method, loader, _ = make(name, CTA)
    assert isinstance(method, FixMatch)
    batch = loader.batch(0)
    assert set(batch["labeled"].views) == {"weak", "probe"}
    assert batch["unlabeled"].views["strong"].policy is not None
    fresh = method.augment.augmented(batch)["unlabeled"].views
    assert torch.equal(fresh["weak"].pixels, batch["unlabeled"].views["weak"].pixels)
    method.augment.rates[:, :-1] *= 0.1  # the last bin alone is left
    moved = method.augment.augmented(batch)["unlabeled"].views["strong"]
    assert moved.policy is None
    assert not torch.equal(fresh["strong"].pixels, moved.pixels)
    before = method.augment.rates.clone()
    method(batch, ctx(config, 0))
    assert torch.equal(method.augment.rates, before)  # a step alone teaches nothing
    with torch.no_grad():
        method.eval().probe(batch)
    assert not torch.equal(method.augment.rates, before)
    assert "augment.rates" in method.state_dict()


def test_randaugment_s_methods_have_no_state_and_do_not_probe():
    method = make("fixmatch")[1]
    assert method.augment is None
    assert not method.probes
    assert not any("rates" in name for name in method.state_dict())


def key(*words):
    with Composer() as composer:
        return run_key(composer.typed(list(words)))


def test_what_the_run_key_knows():
    assert key("method=supervised", CTA) == key("method=supervised", "views=official")  # no strong view
    plain = key("method=fixmatch", CTA)
    assert plain != key("method=fixmatch", "views=official")
    assert plain == key("method=fixmatch", CTA, "views.strong.p_op=1", "views.strong.levels=usb")
    assert plain != key("method=fixmatch", CTA, "views.strong.rate_decay=0.9")
    assert key("method=fixmatch") == key("method=fixmatch", "views.strong.rate_decay=0.9")


def test_a_method_that_asks_for_no_probe_is_refused(monkeypatch):
    streams = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}
    monkeypatch.setattr(FixMatch, "needs", classmethod(lambda cls, config: Needs(streams=streams)))
    with pytest.raises(ConfigError, match=r"views\.strong\.policy: ctaugment learns from a view `probe`"):
        make("fixmatch", CTA)


def test_augment_leaves_a_batch_without_policies_alone():
    batch = make("fixmatch")[2].batch(0)
    same = Augment(0.8, 0.99).augmented(batch)
    assert all(same[s].views[v] is view for s, samples in batch.items() for v, view in samples.views.items())


@each("graph", ["false", "true"])
def test_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path, monkeypatch, graph):
    case = ("fixmatch", CTA, "schedule.ema_decay=0.9", "execution.checkpoint_every_steps=2", f"schedule.graph={graph}")
    folders = [tmp_path / graph / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir(parents=True)
    whole = trained(folders[0], *case)
    ask = "drawn" if graph == "true" else "batch"
    given = getattr(Loader, ask)

    def stopped(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return given(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, ask, stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(folders[1], *case)
    parts = trained(folders[1], *case)
    assert parts[0] == whole[0]
    assert differing(parts, whole) == []
    assert not torch.equal(whole[1]["augment.rates"], fresh_rates())


def test_it_is_the_averaged_network_that_predicts_and_training_sees_nothing_of_it(tmp_path, monkeypatch):
    seen = []

    def probe(self, batch):
        net = self.students["student"]
        seen.append((net.training, next(net.parameters()).detach().clone(), torch.is_grad_enabled()))

    monkeypatch.setattr(FixMatch, "probe", probe)
    made = loop(tmp_path, "fixmatch", CTA, "schedule.ema_decay=0.5")
    made.run()
    made.loader.close()
    assert [entry[0] for entry in seen] == [False] * 5
    assert not any(entry[2] for entry in seen)
    assert torch.equal(seen[-1][1], made.ema.shadow[0])
    assert not torch.equal(seen[-1][1], made.ema.live[0])
    assert made.method.training


def test_views_made_several_steps_ahead_wait_for_the_same():
    loader = make("fixmatch", CTA)[2]
    for stream in loader.streams.values():
        for step, samples in enumerate(stream.batches(range(3))):
            alone = stream.batch(step)
            for name, view in samples.views.items():
                assert torch.equal(view.pixels, alone.views[name].pixels)
                policies = view.policy, alone.views[name].policy
                if policies[0] is None or policies[1] is None:
                    assert policies == (None, None)
                    continue
                for field in fields(CtaParams):
                    assert torch.equal(*(getattr(policy.params, field.name) for policy in policies))
