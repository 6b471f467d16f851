"""FixMatch and KD-FixMatch: the masked loss by hand, what counts as a label, which target wins."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.data.views.view import Samples
from kdrun.losses.robust import symmetric_cross_entropy
from kdrun.methods.clustering import ClusteringConfig
from kdrun.methods.labeler import Seen
from kdrun.methods.pool import Pool
from kdrun.methods.trusted import Selection, select
from kdrun.models.network import build_network
from tests.contract.test_methods import ctx, make


def parts(name, *overrides):
    config, method, loader, _ = make(name, *overrides)
    batch = loader.batch(0)
    return config, method, batch


def joint_logits(method, batch):
    """(labeled, weak, strong) logits of one forward pass of all views, gradients kept."""
    views = [batch["labeled"].views["weak"], batch["unlabeled"].views["weak"], batch["unlabeled"].views["strong"]]
    logits = method.students["student"](torch.cat([v.pixels for v in views])).logits
    return logits.split([len(v.index) for v in views])


def test_batches_and_streams():
    config, _, batch = parts("fixmatch", "method.unlabeled_ratio=3")
    size = config.schedule.batch_size
    assert len(batch["labeled"].views["weak"].index) == size
    weak, strong = (batch["unlabeled"].views[name] for name in ("weak", "strong"))
    assert torch.equal(weak.index, strong.index)
    assert len(weak.index) == 3 * size
    assert not torch.equal(weak.pixels, strong.pixels)
    assert batch["unlabeled"].target is None


def test_the_pool_holds_the_labeled_images_too():
    loader = make("fixmatch")[2]
    labeled, unlabeled = (loader.streams[name].index for name in ("labeled", "unlabeled"))
    assert set(labeled.tolist()) <= set(unlabeled.tolist())


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_masked_loss_divides_by_the_whole_batch(threshold, weight):
    config, method, batch = parts("fixmatch", f"method.threshold={threshold}", f"method.unlabeled_weight={weight}")
    known, weak, strong = joint_logits(method, batch)
    confidence, label = weak.softmax(1).max(1)
    mask = confidence >= threshold
    total = weight * sum(
        float(F.cross_entropy(strong[i : i + 1], label[i : i + 1])) for i in range(len(label)) if mask[i]
    )
    out = method(batch, ctx(config, 0))
    assert out.losses["unlabeled_ce"].item() == pytest.approx(total / len(label), rel=1e-4, abs=1e-7)
    assert out.losses["labeled"].item() == pytest.approx(
        F.cross_entropy(known, batch["labeled"].target).item(), rel=1e-5
    )
    assert torch.equal(out.guesses.used, mask)
    assert torch.equal(out.guesses.label, label)
    assert sum(float(v) for k, v in out.metrics.items() if k.startswith("confidence/")) == pytest.approx(1)


def test_no_gradient_flows_through_the_weak_view():
    config, method, batch = parts("fixmatch", "method.threshold=0", "method.unlabeled_weight=1")
    grads = []
    for detached in (False, True):
        method.zero_grad()
        if detached:
            _, weak, strong = joint_logits(method, batch)
            loss = F.cross_entropy(strong, weak.detach().argmax(1))
        else:
            loss = method(batch, ctx(config, 0)).losses["unlabeled_ce"]
        loss.backward()
        grads.append([p.grad.clone() for p in method.students.parameters()])
    for first, second in zip(*grads, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_the_loss_group_is_the_unlabeled_term():
    config, method, batch = parts("fixmatch", "loss=sce", "loss.sce.beta=0.01", "method.threshold=0")
    known, weak, strong = joint_logits(method, batch)
    out = method(batch, ctx(config, 0))
    expected = symmetric_cross_entropy(strong, weak.argmax(1), 1.0, 0.01).mean()
    assert set(out.losses) == {"labeled", "unlabeled_sce"}
    assert out.losses["unlabeled_sce"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.losses["labeled"].item() == pytest.approx(
        F.cross_entropy(known, batch["labeled"].target).item(), rel=1e-5
    )


# confidence .99 and .5 on the weak view, label 3; trusted label 7 or none
CASES = [(0.99, 7), (0.99, -1), (0.5, 7), (0.5, -1)]


@pytest.mark.parametrize(
    ("merge", "step", "targets"),
    [
        ("heuristic1", 0, [3, 3, 7, None]),
        ("outer_only", 0, [7, None, 7, None]),
        ("inner_only", 0, [3, 3, None, None]),
        ("switch_at:5", 4, [7, None, 7, None]),
        ("switch_at:5", 5, [3, 3, None, None]),
    ],
)
def test_one_target_for_each_image(merge, step, targets):
    config, method, _, _ = make("kd_fixmatch", f"method.merge={merge}")
    confidence = torch.tensor([c for c, _ in CASES])
    samples = Samples({}, None, {"trusted_label": torch.tensor([t for _, t in CASES])})
    p = ((1 - confidence) / 9)[:, None].repeat(1, 10)
    p[:, 3] = confidence
    nothing = torch.empty(0)
    target, weight = method.targets(samples, Seen(p, nothing, nothing, nothing, 0.0), ctx(config, step))
    assert [int(t) if u else None for t, u in zip(target, weight, strict=True)] == targets
    assert ((target >= 0) & (target < 10)).all()  # also where it is not used: the loss looks it up


def test_the_inner_network_starts_elsewhere_than_the_outer():
    first, second = (make(name)[1].students["student"] for name in ("fixmatch", "kd_fixmatch"))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.ndim > 1]
    assert not any(same)


def test_the_outer_run_is_the_plain_fixmatch_run():
    from kdrun.config.key import run_key

    inner, _, _, _ = make("kd_fixmatch", "loss=sce", "method.threshold=0.9")
    outer = inner.method_class.requires(inner)["outer"]
    assert run_key(outer) == run_key(make("fixmatch", "method.threshold=0.9")[0])


def pool_of(images):
    said = []
    index = torch.arange(len(images))
    return Pool(images, index, 3, 100, "fp32", Path("unused"), lambda i, y: {}, said.append, torch.device("cpu")), said


@pytest.mark.parametrize("selector", ["dec", "kmeans"])
def test_an_outer_network_that_sees_no_difference_is_trusted_with_nothing(selector):
    config = ModelConfig(name="resnet8", args={"width": 8})
    network = build_network(config, num_classes=3, in_chans=1, mean=[0.5], std=[0.5], seed=0)
    pool, _ = pool_of(torch.full((40, 8, 8, 1), 7, dtype=torch.uint8))
    warnings = []
    found = select(network, Selection(0.0, selector, ClusteringConfig(), 0), pool, warnings.append)
    assert not found["selected"].any()
    (line,) = warnings
    assert "features of all 40 images are the same" in line
    assert "training goes on as FixMatch" in line


@pytest.mark.parametrize("clustering", ["dec", "kmeans"])
def test_confidence_and_chance_choose_as_many_as_a_clustering_leaves(clustering):
    config = ModelConfig(name="resnet8", args={"width": 4})
    network = build_network(config, num_classes=3, in_chans=1, mean=[0.5], std=[0.5], seed=0)
    pool, _ = pool_of(
        torch.randint(0, 256, (90, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    confidence = select(network, Selection(0.0, "confidence", ClusteringConfig(), 0), pool, print)["confidence"]
    threshold = confidence.median().item()  # half of the images are confident enough

    def chosen_by(selector, as_many_as=None, seed=0):
        found = select(network, Selection(threshold, selector, ClusteringConfig(), seed, as_many_as), pool, print)
        return found["selected"].bool()

    agreed, surest = chosen_by(clustering), chosen_by("confidence", clustering)
    drawn = [chosen_by("random", clustering, seed) for seed in (0, 0, 1)]
    assert 0 < agreed.sum() < (confidence >= threshold).sum()
    assert surest.sum() == drawn[0].sum() == agreed.sum()
    assert confidence[surest].min() >= confidence[~surest].max()
    assert confidence[drawn[0]].min() >= threshold
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in (drawn[2], surest, agreed))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.selector=random"], "selector: random needs a count; give select_as_many_as, dec or kmeans"),
        (["method.select_as_many_as=dec"], "select_as_many_as: goes with selector confidence or random"),
        (["method.selector=kmeans", "method.select_as_many_as=dec"], "and selector is kmeans"),
    ],
)
def test_a_count_goes_with_what_needs_one(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make("kd_fixmatch", *overrides)


@pytest.mark.parametrize("name", ["fixmatch", "kd_fixmatch", "peer_fixmatch"])
def test_three_passes_leave_the_weak_views_without_gradient(name):
    more = ["students=[{name: resnet8, args: {width: 4}}, {name: resnet14, args: {width: 4}}]"] * (name[0] == "p")
    _, method, batch = parts(name, "method.joint_forward=false", *more)
    passes, student = [], next(iter(method.students.values()))
    student.net.register_forward_hook(lambda _, given, out: passes.append((given[0], out)))
    known, weak, strong = method.outputs(batch)
    views = [batch["labeled"].views["weak"], batch["unlabeled"].views["weak"], batch["unlabeled"].views["strong"]]
    assert [len(given) for given, _ in passes] == [len(view.index) for view in views]
    for (given, _), view in zip(passes, views, strict=True):
        assert torch.equal(given, student.adapt(view.pixels))
    assert [out.logits.requires_grad for out in (known, weak, strong)] == [True, False, True]
    assert all(torch.equal(out.logits, kept) for out, (_, kept) in zip((known, weak, strong), passes, strict=True))


def test_one_pass_and_three_agree_where_no_statistics_of_a_batch_count():
    _, joint, batch = parts("fixmatch")
    _, apart, _ = parts("fixmatch", "method.joint_forward=false")
    for one, other in zip(joint.eval().outputs(batch), apart.eval().outputs(batch), strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_the_outer_network_is_trained_as_the_inner_one():
    config, _, _ = parts("kd_fixmatch", "method.joint_forward=false")
    outer = config.method_class.requires(config)["outer"]
    assert (outer.method.name, outer.method.joint_forward) == ("fixmatch", False)
