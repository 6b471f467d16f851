"""Students that learn from each other: what flows between them, and what does not."""

import pytest
import torch

from kdrun.losses.logits import kd, mean_of_probabilities
from kdrun.methods.peer_distill import PeerConfig, against_peers
from kdrun.training.optimizer import make_optimizer
from tests.contract.test_methods import TWO, ctx, fit, make

A, B, C = "{name: resnet8, args: {width: 4}}", "{name: resnet14, args: {width: 4}}", "{name: resnet8, args: {width: 6}}"


def students(*models: str) -> str:
    return f"students=[{', '.join(models)}]"


def trained(name, *overrides):
    config, method, loader, _ = make(name, *overrides)
    fit(config, method, loader, 0, 4)
    return method


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_losses_by_hand():
    """The sum of the terms of one student is alpha CE + beta mean w tau^2 KL + gamma tau^2 KL."""
    config, method, loader, _ = make("peer_distill")
    batch = loader.batch(0)
    out = method(batch, ctx(config, 0))
    view, target = batch["labeled"].views["weak"], batch["labeled"].target
    t, a, b = (net(view).logits.detach() for net in (method.teacher, *method.students.values()))
    p = t.softmax(1)
    w = 1 + (p * p.log()).sum(1) / torch.tensor(10.0).log()

    def kl(p, q):
        p, q = (p / 4).softmax(1), (q / 4).softmax(1)
        return (p * (p / q).log()).sum(1)

    for name, own, peer in (("student_1", a, b), ("student_2", b, a)):
        ce = -own.log_softmax(1).gather(1, target[:, None]).mean()
        assert out.losses[f"{name}/ce"].item() == pytest.approx(0.4 * ce.item(), rel=1e-4)
        assert out.losses[f"{name}/kd"].item() == pytest.approx(0.4 * 16 * (w * kl(t, own)).mean().item(), rel=1e-3)
        assert out.losses[f"{name}/peer"].item() == pytest.approx(0.2 * 16 * kl(peer, own).mean().item(), rel=1e-3)
    assert out.metrics["teacher_weight"].item() == pytest.approx(w.mean().item(), rel=1e-4)


def test_no_gradient_flows_to_the_peer():
    """What the first student learns is the same without the second one's term against it."""
    grads = []
    for dropped in ((), ("student_2/peer",), ("student_2/ce", "student_2/kd", "student_2/peer")):
        config, method, loader, _ = make("peer_distill")
        losses = method(loader.batch(0), ctx(config, 0)).losses
        sum(value for name, value in losses.items() if name not in dropped).backward()
        grads.append([p.grad for p in method.students["student_1"].parameters()])
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))
    config, method, loader, _ = make("peer_distill")
    losses = method(loader.batch(0), ctx(config, 0)).losses
    sum(value for name, value in losses.items() if name != "student_1/peer").backward()
    assert not all(
        torch.equal(p.grad, g) for p, g in zip(method.students["student_1"].parameters(), grads[0], strict=True)
    )


@pytest.mark.parametrize("target", ["mean", "sum"])
def test_the_order_of_students_changes_nothing(target):
    """Three of them, two of the same kind."""
    nets = []
    for models in ((A, B, C), (C, A, B)):
        method = trained("peer_distill", students(*models), f"method.peer_target={target}")
        by_size = sorted(method.students.values(), key=lambda net: net.num_params)
        nets.append(by_size)
    assert all(same(one, other) for one, other in zip(*nets, strict=True))


def test_two_of_a_kind_start_apart_whatever_their_order():
    slow = "{name: resnet8, args: {width: 4}, lr_scale: 0.5}"
    one, other = (make("peer_distill", students(*models))[1].students for models in ((A, slow), (slow, A)))
    assert not same(one["student_1"], one["student_2"])
    assert same(one["student_1"], other["student_2"])
    assert same(one["student_2"], other["student_1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("loss=kd",), ("loss=wttm_crd", "loss.crd.num_negatives=8"), ("loss=wttm", "method.normalize_weights=true")],
    ids=" ".join,
)
def test_without_weight_peers_are_runs_of_their_own(overrides):
    together = trained("peer_distill", TWO, "method.peer_weight=0", *overrides)
    for name, model in (("student_1", A), ("student_2", B)):
        alone = trained("uncertainty_distill", students(model), *overrides)
        assert same(together.students[name], alone.students["student"])


def test_each_network_runs_once_in_a_step_and_once_in_an_evaluation():
    config, method, loader, _ = make("peer_distill", students(A, B, C))
    runs = []
    for name, net in (*method.students.items(), ("teacher", method.teacher.network)):
        net.register_forward_hook(lambda *_, name=name: runs.append(name))
    batch = loader.batch(0)
    method(batch, ctx(config, 0))
    assert sorted(runs) == ["student_1", "student_2", "student_3", "teacher"]
    runs.clear()
    view = batch["labeled"].views["weak"]
    with torch.no_grad():
        logits = method.eval().predict(view)
    assert runs == ["student_1", "student_2", "student_3"]
    mean = torch.stack([logits[name].softmax(1) for name in method.students]).mean(0)
    torch.testing.assert_close(logits["ensemble"].softmax(1), mean)


def test_targets_of_more_than_one_peer():
    z = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    p = torch.stack([(z[i] / 4).softmax(1) for i in (1, 2)]).mean(0)
    q = (z[0] / 4).softmax(1)
    by_hand = 16 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(against_peers(z, 0, PeerConfig(name="peer_distill")), by_hand)
    added = against_peers(z, 0, PeerConfig(name="peer_distill", peer_target="sum"))
    torch.testing.assert_close(added, kd(z[0], z[1], 4) + kd(z[0], z[2], 4))
    for target in ("mean", "sum"):  # of two students there is one other
        config = PeerConfig(name="peer_distill", peer_target=target, peer_temperature=2.0)
        torch.testing.assert_close(against_peers(z[:2], 1, config), kd(z[1], z[0], 2))


def test_mean_of_probabilities_is_finite_for_extreme_logits():
    z = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    mean = mean_of_probabilities(z)
    assert mean.softmax(1)[0].tolist() == pytest.approx([0.5, 0.5, 0])
    assert torch.isfinite(mean).all()


def test_without_a_teacher_it_is_mutual_learning():
    config, method, loader, _ = make("peer_distill", "loss=ce")
    assert method.teacher is None
    out = method(loader.batch(0), ctx(config, 0))
    assert list(out.losses) == ["student_1/ce", "student_1/peer", "student_2/ce", "student_2/peer"]
    assert out.metrics == {}


def test_weights_sum_to_the_batch_where_normalized():
    weights = []
    for normalize in ("false", "true"):
        config, method, loader, _ = make("uncertainty_distill", f"method.normalize_weights={normalize}")
        _, weight, _ = method.pairs(loader.batch(0), ctx(config, 0))
        weights.append(weight)
    assert weights[0].mean() < 1
    torch.testing.assert_close(weights[1], weights[0] / weights[0].mean())


def test_without_uncertainty_it_is_distillation():
    config, method, loader, _ = make("uncertainty_distill", "method/uncertainty=none", "loss=kd")
    other = make("distill", "loss=kd")
    batch = loader.batch(0)
    assert method(batch, ctx(config, 0)).losses == other[1](batch, ctx(other[0], 0)).losses


def test_each_student_has_its_rate_and_its_clipping():
    slow = "{name: resnet14, args: {width: 4}, lr_scale: 0.1}"
    _, method, _, _ = make("peer_distill", students(A, slow))
    groups = make_optimizer(method).param_groups
    assert {(group["net"], round(group["base_lr"] / method.config.schedule.lr, 6)) for group in groups} == {
        ("student_1", 1.0),
        ("student_2", 0.1),
    }


def test_ramps_reach_the_terms_and_the_peers():
    config, method, loader, _ = make("peer_distill")
    batch = loader.batch(0)
    plain = method(batch, ctx(config, 0)).losses
    here = ctx(config, 0)
    here.factors = {"loss.kd.weight": 0.5, "method.peer_weight": 0.0}
    moved = method(batch, here).losses
    for name, value in plain.items():
        factor = 0.5 if name.endswith("kd") else 0.0 if name.endswith("peer") else 1.0
        assert moved[name].item() == pytest.approx(factor * value.item(), rel=1e-5)
