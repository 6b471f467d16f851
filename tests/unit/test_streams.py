"""Streams: batches as a pure function of (seed, step), whole epochs, hidden targets."""

import numpy as np
import pytest
import torch

from kdrun.config.views import MixConfig, StrongConfig
from kdrun.core.world import Part
from kdrun.data.arrays import Arrays
from kdrun.data.loader import Loader, make_loader
from kdrun.data.splits import Split
from kdrun.data.stream import WHOLE, Stream
from kdrun.data.views.ctaugment import fresh_rates
from kdrun.data.views.mix import Mix
from kdrun.data.views.recipes import Crop, CtaView, Strong, Weak
from kdrun.data.views.stored import StoredViews

NUM = 40
RECIPE = Weak(1, False, True)


def pixels(n=NUM):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 4, 5, 3), dtype=np.uint8))


def make(index, batch_size, seed=0, name="labeled", recipes=None):
    targets = torch.arange(NUM)
    return Stream(name, pixels(), targets, torch.as_tensor(index), batch_size, recipes or {"weak": RECIPE}, seed)


def same(first, second):
    return (
        torch.equal(first.views["weak"].pixels, second.views["weak"].pixels)
        and torch.equal(first.views["weak"].index, second.views["weak"].index)
        and torch.equal(first.target, second.target)
    )


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 5), (7, 7), (8, 7), (5, 16)])
def test_each_epoch_visits_each_image_once(size, batch_size):
    index = list(range(NUM - size, NUM))
    stream, epochs = make(index, batch_size), 6
    steps = -(-size * epochs // batch_size)
    visited = torch.cat([stream.positions(step) for step in range(steps)])[: size * epochs].view(epochs, size)
    assert visited.sort(1).values.tolist() == [index] * epochs
    if size > 4:
        assert len({tuple(epoch) for epoch in visited.tolist()}) == epochs


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 8), (16, 16)])
def test_batch_is_a_function_of_seed_and_step(size, batch_size):
    forward = make(range(size), batch_size)
    expected = [forward.batch(step) for step in range(12)]
    jumping = make(range(size), batch_size)
    for step in [11, 0, 7, 7, 3, 10, 1, 2, 9, 8, 6, 5, 4]:
        assert same(jumping.batch(step), expected[step])
    assert same(make(range(size), batch_size).batch(9), expected[9])


def test_images_that_the_device_has_not_go_along_with_what_the_host_draws():
    images, index = pixels(), torch.arange(7)
    there = Stream("unlabeled", images, None, index, 4, {"weak": RECIPE}, 0, device=torch.device("meta"))
    drawn = there.drawn(range(2, 4), fixed=True)
    assert torch.equal(drawn.images[WHOLE], images[drawn.positions])
    here = Stream("unlabeled", images, None, index, 4, {"weak": RECIPE}, 0)
    assert here.drawn(range(2, 4)).images == {}
    for got, want in zip(here.made(drawn), here.batches(range(2, 4)), strict=True):
        assert torch.equal(got.views["weak"].pixels, want.views["weak"].pixels)
        assert torch.equal(got.views["weak"].index, want.views["weak"].index)


def test_batches_do_not_depend_on_the_global_generator():
    torch.manual_seed(0)
    first = make(range(10), 4).batch(3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert same(make(range(10), 4).batch(3), first)
    assert torch.equal(torch.rand(3), expected)


def test_every_batch_is_full():
    stream = make(range(10), 4)
    for step in range(10):
        samples = stream.batch(step)
        assert samples.views["weak"].pixels.shape == (4, 3, 4, 5)
        assert samples.target.shape == samples.views["weak"].index.shape == (4,)


def test_seeds_differ_in_order_and_in_views():
    first, second = (make(range(NUM), NUM, seed=seed).batch(0).views["weak"] for seed in (0, 1))
    assert not torch.equal(first.index, second.index)
    pair = [make([7], 64, seed=seed).batch(0).views["weak"].pixels for seed in (0, 1)]
    assert not torch.equal(*pair)


def test_streams_differ_in_order():
    orders = [make(range(NUM), NUM, name=name).positions(0).tolist() for name in ("labeled", "unlabeled")]
    assert orders[0] != orders[1]


def test_views_of_a_stream_and_steps_are_drawn_apart():
    stream = make([7], 64, recipes={"weak": RECIPE, "weak_2": RECIPE})
    samples, later = stream.batch(0), stream.batch(1)
    assert not torch.equal(samples.views["weak"].pixels, samples.views["weak_2"].pixels)
    assert not torch.equal(samples.views["weak"].pixels, later.views["weak"].pixels)
    assert torch.equal(samples.views["weak"].index, samples.views["weak_2"].index)


def test_index_names_the_images_and_targets():
    stream = make([3, 9, 20, 33], 4, recipes={"weak": Weak(0, False, False)})
    samples = stream.batch(2)
    view = samples.views["weak"]
    assert torch.equal(view.pixels, pixels().permute(0, 3, 1, 2)[view.index])
    assert torch.equal(samples.target, view.index)
    assert view.replay is None


@pytest.fixture
def loader():
    images = pixels().numpy()
    labels = np.arange(NUM) % 4
    arrays = Arrays(images, labels, images[:2], labels[:2], tuple("abcd"), (0.5,) * 3, (0.2,) * 3)
    split = Split(np.array([1, 4, 6, 11]), np.array([1, 2, 4, 6, 8, 11, 12, 30]), np.array([0, 3]), num_test=2)
    wanted = {"labeled": ("weak",), "unlabeled": ("weak",)}
    return make_loader(wanted, arrays, split, pixels(), {"labeled": 4, "unlabeled": 8}, {"weak": RECIPE}, seed=0)


def test_loader_shows_the_labels_of_labeled_images_only(loader):
    visible = loader.streams["labeled"].targets
    expected = torch.full((NUM,), -1)
    for position in (1, 4, 6, 11):
        expected[position] = position % 4
    assert torch.equal(visible, expected)
    assert loader.streams["unlabeled"].targets is None


def test_loader_gives_each_stream_its_images(loader):
    for step in range(3):
        batch = loader.batch(step)
        assert sorted(batch["labeled"].views["weak"].index.tolist()) == [1, 4, 6, 11]
        assert sorted(batch["unlabeled"].views["weak"].index.tolist()) == [1, 2, 4, 6, 8, 11, 12, 30]
        assert torch.equal(batch["labeled"].target, batch["labeled"].views["weak"].index % 4)
        assert batch["unlabeled"].target is None


def test_loader_builds_only_the_streams_that_are_wanted():
    images, labels = pixels().numpy(), np.zeros(NUM, dtype=np.int64)
    arrays = Arrays(images, labels, images[:2], labels[:2], ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    split = Split(np.arange(4), np.arange(8), np.arange(8, 10), num_test=2)
    loader = make_loader({"labeled": ("weak",)}, arrays, split, pixels(), {"labeled": 4}, {"weak": RECIPE}, seed=0)
    assert list(loader.batch(0)) == ["labeled"]


def test_steps_made_together_are_those_made_one_by_one():
    strong = Strong.of(StrongConfig(cutout=2), RECIPE, (4, 5))
    stream = make(range(30), 7, recipes={"weak": RECIPE, "strong": strong})
    for step, samples in enumerate(stream.batches(range(6))):
        alone = stream.batch(step)
        assert same(samples, alone)
        assert torch.equal(samples.views["strong"].pixels, alone.views["strong"].pixels)


def test_artifacts_are_looked_up_by_image():
    stream = Stream(
        "unlabeled", pixels(), None, torch.arange(NUM), 8, {"weak": RECIPE}, 0, {"guess": torch.arange(NUM) * 3}
    )
    samples = stream.batch(4)
    assert samples.target is None
    assert torch.equal(samples.extra["guess"], samples.views["weak"].index * 3)


class Watched(Stream):
    def batches(self, steps, decoded=None):
        self.asked = [*getattr(self, "asked", []), *steps]
        return super().batches(steps, decoded)


def watched():
    return Watched("labeled", pixels(), torch.arange(NUM), torch.arange(30), 7, {"weak": RECIPE}, 0)


def test_the_thread_makes_the_same_batches_and_none_beyond_the_end():
    stream = watched()
    loader = Loader({"labeled": stream}, total_steps=6)
    for step in range(6):
        assert same(loader.batch(step)["labeled"], watched().batch(step))
    loader.close()
    assert stream.asked == list(range(6))


def test_a_loader_may_start_anywhere_and_jump():
    stream = watched()
    loader = Loader({"labeled": stream}, total_steps=20)
    for step in (9, 10, 3, 4, 19):
        assert same(loader.batch(step)["labeled"], watched().batch(step))
    loader.close()


def test_blocks_for_accelerators_are_the_same_batches():
    stream = watched()
    loader = Loader({"labeled": stream})
    loader.block = 4
    loader.total_steps = 10
    for step in range(10):
        assert same(loader.batch(step)["labeled"], watched().batch(step))
    assert stream.asked == list(range(10))


def test_an_error_in_the_thread_reaches_the_loop():
    stream = watched()
    loader = Loader({"labeled": stream}, total_steps=5)
    loader.batch(0)
    stream.index = torch.arange(0)
    loader.batch(1)
    with pytest.raises(ZeroDivisionError):
        loader.batch(2)
    loader.close()


CROP = Crop((4, 5), 4, (0.3, 1.0), (0.75, 1.33), "bilinear", True)
STRONG = StrongConfig()
KINDS = {
    "weak and strong": ({"weak": RECIPE, "strong": Strong.of(STRONG, RECIPE, (4, 5))}, {}),
    "learned": ({name: CtaView.of(STRONG, RECIPE, (4, 5), name == "probe") for name in ("strong", "probe")}, {}),
    "crops": ({"weak": CROP, "strong": Strong.of(STRONG, CROP, (4, 4))}, {}),
    "mixup": ({"weak": RECIPE}, {"mix": Mix(MixConfig(kind="mixup"), (4, 5), NUM)}),
    "cutmix": ({"weak": CROP, "strong": CROP}, {"mix": Mix(MixConfig(kind="cutmix"), (4, 4), NUM)}),
    "deit": (
        {"weak": Strong.of(StrongConfig(levels="timm", erase=0.5, cutout=0), CROP, (4, 4))},
        {"mix": Mix(MixConfig(kind="mixup_or_cutmix"), (4, 4), NUM)},
    ),
    "stored": ({"weak": RECIPE}, {"stored": StoredViews(RECIPE, NUM, 2)}),
    "small last": ({"weak": RECIPE}, {"small_last": True}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_a_batch_are_together_the_batch(kind, count):
    recipes, given = KINDS[kind]
    index, extra = torch.arange(3, 33), {"told": torch.arange(NUM) ** 2}

    def of(part):
        return Stream("labeled", pixels(), torch.arange(NUM), index, 12, recipes, 0, extra, part=part, **given)

    whole, parts = of(Part()), [of(Part(k, count)) for k in range(count)]
    for steps in (range(3), range(1, 2)):
        for step, samples in zip(steps, whole.batches(steps), strict=True):
            own = [part.batches(steps)[step - steps[0]] for part in parts]
            assert torch.equal(torch.cat([one.target for one in own]), samples.target)
            assert torch.equal(torch.cat([one.extra["told"] for one in own]), samples.extra["told"])
            for name, view in samples.views.items():
                seen = [one.views[name] for one in own]
                assert torch.equal(torch.cat([one.pixels for one in seen]), view.pixels)
                assert all(one.pixels.stride()[1:] == view.pixels.stride()[1:] for one in seen)
                assert torch.equal(torch.cat([one.index for one in seen]), view.index)
                if view.replay is not None:
                    assert torch.equal(torch.cat([one.replay for one in seen]), view.replay)
                if view.unmixed is not None:
                    for field in ("pixels", "partner", "share"):
                        assert torch.equal(
                            torch.cat([getattr(one.unmixed, field) for one in seen]), getattr(view.unmixed, field)
                        )
                if view.policy is not None:
                    levels = [one.policy.levels(fresh_rates(), 0.8, 0.99) for one in [view, *seen]]
                    assert torch.equal(torch.cat(levels[1:]), levels[0])
                    done = [
                        one.policy.applied(one.pixels, level) for one, level in zip([view, *seen], levels, strict=True)
                    ]
                    assert torch.equal(torch.cat(done[1:]), done[0])
