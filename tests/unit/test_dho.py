"""DHO and its one-head rival: losses by hand, which head learns what, inference, search, gradient surgery."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdrun.core.device import autocast
from kdrun.core.errors import ConfigError
from kdrun.losses.labels import cross_entropy
from kdrun.losses.logits import kd
from kdrun.methods.dho import combine
from kdrun.methods.gradients import backward_with_surgery, conflict, pcgrad
from kdrun.training.check import check
from kdrun.training.evaluator import Evaluator, choice_metrics
from kdrun.training.optimizer import make_optimizer
from tests.contract.test_methods import ctx, make

T = torch.tensor


def parts(name, *overrides, step=0):
    """The method, its step, and logits of labeled and unlabeled images by head, one pass of both together."""
    config, method, loader, _ = make(name, *overrides)
    batch = loader.batch(0)
    out = method(batch, ctx(config, step))
    views = [batch[s].views["weak"] for s in ("labeled", "unlabeled")]
    pixels = torch.cat([v.pixels for v in views])
    student = method.students["student"](pixels, ("prelogits",))
    sizes = [len(v.index) for v in views]
    ce, kd_ = (x.split(sizes) for x in method.heads(student))
    return method, out, batch["labeled"].target, ce, kd_, method.teacher(pixels).logits.split(sizes)


def kl(p, q, temperature=2.0):
    p, q = (p / temperature).softmax(1), (q / temperature).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


# ------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", ["dho", "sho"])
def test_losses_by_hand(name):
    """0.5 CE of the first head + 0.5 (mean KL of labeled + mean KL of unlabeled images) of the second, no T^2."""
    _, out, target, ce, second, teacher = parts(name, "method.unlabeled_ratio=2")
    assert [len(x) for x in ce] == [16, 32]
    assert list(out.losses) == ["ce", "kd", "unlabeled_kd"]
    wanted = -0.5 * ce[0].log_softmax(1).gather(1, target[:, None]).mean()
    assert out.losses["ce"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert out.losses["kd"].item() == pytest.approx(0.5 * kl(teacher[0], second[0]).item(), rel=1e-3)
    assert out.losses["unlabeled_kd"].item() == pytest.approx(0.5 * kl(teacher[1], second[1]).item(), rel=1e-3)
    assert torch.equal(ce[0], second[0]) == (name == "sho")


def test_the_code_s_loss_has_the_squared_temperature_and_low_shot_no_halves():
    paper, code, low = (parts("dho", *v)[1].losses for v in ([], ["loss=dho_code"], ["loss=dho_code_low_shot"]))
    assert code["kd"].item() == pytest.approx(4 * paper["kd"].item(), rel=1e-5)
    assert code["ce"].item() == paper["ce"].item()
    assert low["unlabeled_kd"].item() == pytest.approx(8 * paper["unlabeled_kd"].item(), rel=1e-5)
    assert low["ce"].item() == pytest.approx(2 * paper["ce"].item(), rel=1e-6)


def test_labels_teach_one_head_and_the_teacher_the_other():
    for wanted, names in ((("ce",), "fc"), (("kd", "unlabeled_kd"), "kd_head")):
        method, out, *_ = parts("dho")
        torch.stack([out.losses[name] for name in wanted]).sum().backward()
        classifier = method.students["student"].net.get_classifier()
        assert (classifier.weight.grad is None) == (names == "kd_head")
        assert (method.kd_head.weight.grad is None) == (names == "fc")
        assert next(method.students["student"].parameters()).grad is not None


def test_two_passes_see_other_batch_statistics_and_losses_of_one_network():
    _, joint, *_ = parts("dho")
    _, apart, *_ = parts("dho", "method.concatenate=false")
    assert apart.losses.keys() == joint.losses.keys()
    assert apart.losses["ce"].item() != joint.losses["ce"].item()


@pytest.mark.parametrize("loss", ["wttm", "ttm", "dist", "dkd", "nkd", "fitnet", "rkd", "kd_zscore"])
def test_every_loss_goes_onto_the_heads(loss):
    for name in ("dho", "sho"):
        config, method, loader, _ = make(name, f"loss={loss}")
        losses = method(loader.batch(0), ctx(config, 10)).losses
        [label] = [key for key in losses if key not in ("ce",) and not key.startswith("unlabeled_")]
        assert set(losses) == {"ce", label, f"unlabeled_{label}"}
        assert all(torch.isfinite(value) for value in losses.values())


def test_a_term_that_reads_labels_gets_the_teacher_s_class_for_unlabeled_images():
    from kdrun.losses.decoupled import dkd

    _, out, _, _, second, teacher = parts("dho", "loss=dkd", "loss.dkd.warmup=0")
    wanted = dkd(second[1], teacher[1], teacher[1].argmax(1), 1.0, 8.0, 4.0).mean()
    assert out.losses["unlabeled_dkd"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_kd_head_is_trained_and_clipped_with_its_student():
    _, method, _, _ = make("dho", "student.lr_scale=0.5", "schedule.weight_decay_on=kernels")
    groups = {id(p): group for group in make_optimizer(method).param_groups for p in group["params"]}
    weight, bias = groups[id(method.kd_head.weight)], groups[id(method.kd_head.bias)]
    assert {weight["net"], bias["net"]} == {"student"}
    assert weight["base_lr"] == 0.025
    assert (weight["weight_decay"], bias["weight_decay"]) == (5e-4, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["linear", "mlp", "cosine"])
def test_heads(head, precision):
    config, method, loader, _ = make("dho", f"method.kd_head={head}")
    with autocast(torch.device("cpu"), precision):
        losses = method(loader.batch(0), ctx(config, 0)).losses
    assert all(torch.isfinite(v) and v.dtype == torch.float32 for v in losses.values())
    before = torch.get_rng_state()
    again = make("dho", f"method.kd_head={head}")[1]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(method.kd_head.parameters(), again.kd_head.parameters(), strict=True))
    if head == "cosine":
        features = torch.randn(3, method.kd_head.weight.shape[1])
        wanted = F.cosine_similarity(features[:, None], method.kd_head.weight[None], dim=2) / 0.01
        assert torch.allclose(method.kd_head(features), wanted, atol=1e-4)


@pytest.mark.parametrize(("which", "head"), [("ce", "mlp"), ("both", "linear"), ("both", "cosine")])
def test_heads_start_from_the_class_names(which, head):
    config, method, _, _ = make("dho", f"method.kd_head={head}")
    dim = method.students["student"].dims["prelogits"]
    asked = config.replace(method=config.method.replace(language_aware_init=which))
    with pytest.raises(ConfigError, match=r"language_aware_init: the teacher has no text encoder"):
        config.method_class(asked, method.setup)
    method.teacher.network.class_embeddings = torch.randn(10, dim + 1)
    with pytest.raises(ConfigError, match=rf"have {dim + 1} dimensions, the student's features {dim}"):
        config.method_class(asked, method.setup)
    method.teacher.network.class_embeddings = texts = torch.randn(10, dim)
    made = config.method_class(asked, method.setup)
    classifier = made.students["student"].net.get_classifier()
    assert torch.equal(classifier.weight, texts)
    assert not classifier.bias.any()
    if which == "both":
        assert torch.equal(made.kd_head.weight, texts)
        assert head == "cosine" or not made.kd_head.bias.any()
        assert made.kd_head.weight.data_ptr() != classifier.weight.data_ptr()


@pytest.mark.parametrize("kd_head", ["linear", "mlp"])
@pytest.mark.parametrize("head", ["mlp", "hidden"])
def test_each_head_has_layers_of_its_own_over_the_same_features(head, kd_head):
    """Nonlinear heads, one or both: the KD head never sees the hidden layer of the CE head."""
    config, method, loader, _ = make("dho", f"student.head={head}", f"method.kd_head={kd_head}")
    network = method.students["student"]
    classifier = network.net.get_classifier()
    dim, hidden = network.dims["pooled"], network.dims["prelogits"]
    assert (classifier[0].in_features, classifier[-1].in_features) == (dim, hidden)
    assert (method.kd_head[0] if kd_head == "mlp" else method.kd_head).in_features == dim
    if head == "hidden" and kd_head == "mlp":
        assert [repr(layer) for layer in classifier] == [repr(layer) for layer in method.kd_head]
    losses = method(loader.batch(0), ctx(config, 0)).losses
    (losses["kd"] + losses["unlabeled_kd"]).backward()
    assert all(p.grad is None for p in classifier.parameters())
    assert all(p.grad is not None for p in method.kd_head.parameters())
    method.zero_grad()
    method(loader.batch(0), ctx(config, 0)).losses["ce"].backward()
    assert all(p.grad is None for p in method.kd_head.parameters())
    assert all(p.grad is not None for p in classifier.parameters())

    method.eval()
    view = loader.batch(0)["labeled"].views["weak"]
    with torch.no_grad():
        features = network(view, ("pooled",)).features["pooled"]
        before = method.predict(view)["kd_head"]
        assert torch.equal(before, method.kd_head(features))
        for p in classifier.parameters():
            p.zero_()
        assert torch.equal(method.predict(view)["kd_head"], before)
        assert not method.predict(view)["ce_head"].any()
    with pytest.raises(ConfigError, match=f"language_aware_init: an {head} head has no weight for each class"):
        make("dho", f"student.head={head}", "method.language_aware_init=ce")


# --------------------------------------------------------------------------------------------------- inference


def test_golden_value_of_the_combination():
    p = combine(T([[2, 0.5, 0]]), T([[1, 1.2, 0.1]]), T(0.4), T(0.5)).exp()
    assert p[0].tolist() == pytest.approx([0.520258, 0.402567, 0.077175], abs=1e-6)


def test_a_share_of_one_or_none_is_one_head_and_stays_finite():
    ce, kd_ = torch.randn(4, 5) * 50, torch.randn(4, 5) * 50
    assert torch.equal(combine(ce, kd_, T(1.0), T(2.0)), ce.log_softmax(1))
    assert torch.equal(combine(ce, kd_, T(0.0), T(2.0)), (kd_ / 2).log_softmax(1))
    assert combine(ce, kd_, None, T(1.0)).isfinite().all()


def test_by_entropy_the_surer_head_counts_more():
    ce, kd_ = T([[3.0, 0, 0], [0, 0, 0]]), T([[1.0, 2, 0], [0, 4, 0]])
    p, q = ce.softmax(1), (kd_ / 0.5).softmax(1)
    sure = torch.stack([(x * x.log()).sum(1).exp() for x in (p, q)])  # e^-H
    alpha = (sure[0] / sure.sum(0))[:, None]
    assert torch.allclose(combine(ce, kd_, None, T(0.5)).exp(), alpha * p + (1 - alpha) * q, atol=1e-6)
    assert alpha[1] < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_trying_all_finds(seed):
    torch.manual_seed(seed)
    ce, kd_, target = torch.randn(60, 4) * 2, torch.randn(60, 4) * 2, torch.randint(4, (60,))
    ce[range(60), target] += 1
    kd_[range(60), target] += 1
    shares, temperatures = [k / 20 for k in range(21)], [0.5, 0.75, 1, 1.25, 1.5, 2, 4]
    best = max(
        product(shares, temperatures),
        key=lambda x: (
            ((p := x[0] * ce.softmax(1) + (1 - x[0]) * (kd_ / x[1]).softmax(1)).argmax(1) == target).sum().item(),
            p[range(60), target].log().mean().item(),
        ),
    )
    choice = make("dho")[1].choice()
    assert choice.best({"ce_head": ce, "kd_head": kd_}, target) == best


def test_an_evaluation_chooses_by_validation_alone_and_keeps_it(monkeypatch):
    method = make("dho")[1].eval()
    torch.manual_seed(0)
    target = torch.randint(10, (40,))
    heads = {(s, net): torch.randn(40, 10) for s in ("val", "test") for net in ("ce_head", "kd_head")}
    heads["val", "kd_head"][range(40), target] += 9
    heads["test", "ce_head"][range(40), target] += 9
    nothing = torch.empty(0)
    evaluator = Evaluator({split: (nothing, torch.arange(40), target) for split in ("val", "test")}, 40)
    monkeypatch.setattr(Evaluator, "logits", lambda self, predict: heads)
    settled = evaluator.settled(method)
    found = choice_metrics(method)
    assert found.keys() == {"val/combined/ce_share", "val/combined/kd_head_temperature"}
    assert found["val/combined/ce_share"] < 0.5
    assert settled.keys() == {*heads, ("val", "combined"), ("test", "combined")}
    for split in ("val", "test"):
        own = [heads[split, net] for net in ("ce_head", "kd_head")]
        share, beta = (T(found[f"val/combined/{name}"]) for name in ("ce_share", "kd_head_temperature"))
        assert torch.allclose(settled[split, "combined"], combine(*own, share, beta), atol=1e-5)
        assert settled[split, "ce_head"] is heads[split, "ce_head"]
    assert method.state_dict()["ce_share"].item() == pytest.approx(found["val/combined/ce_share"])


def test_what_is_not_searched_is_the_configuration_s_wherever_the_weights_come_from():
    config, method, _, _ = make("dho", "method.combination=fixed", "method.ce_share=0.3")
    assert method.choice() is None
    assert choice_metrics(method) == {}
    again = config.replace(method=config.method.replace(ce_share=0.7))
    opened = config.method_class(again, method.setup)
    opened.load_state_dict({**method.state_dict(), "ce_share": T(0.3)}, strict=False)  # as older runs kept it
    assert opened.ce_share.item() == pytest.approx(0.7)


def test_a_search_needs_validation_images():
    config = make("dho")[0]
    none = config.replace(dataset=config.dataset.replace(val_fraction=0.0))
    with pytest.raises(
        ConfigError, match=r"method.combination: search needs validation images, and this split has none"
    ):
        check(none)
    check(none.replace(method=config.method.replace(combination="fixed")))


@pytest.mark.parametrize(("lam", "seed"), [(0.2, 0), (0.5, 1), (0.8, 2)])
def test_with_alpha_lambda_and_beta_1_it_is_what_one_head_would_learn(lam, seed):
    """The theorem: heads within epsilon of their targets combine to within epsilon of the optimum of one head.

    One head's loss lam H(y, q) + (1 - lam) KL(p || q) is least at q = lam y + (1 - lam) p.
    """
    torch.manual_seed(seed)
    teacher, target = torch.randn(6, 5, dtype=torch.double), torch.randint(5, (6,))
    y = F.one_hot(target, 5).double()

    def learned(loss):
        logits = torch.zeros(6, 5, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            value = loss(logits).sum()
            value.backward()
            return value

        optimizer.step(closure)
        return logits.detach()

    one = learned(lambda z: lam * cross_entropy(z, target) + (1 - lam) * kd(z, teacher, 1.0)).softmax(1)
    assert torch.allclose(one, lam * y + (1 - lam) * teacher.softmax(1), atol=1e-5)
    ce, second = learned(lambda z: cross_entropy(z, target)), learned(lambda z: kd(z, teacher, 1.0))
    for noise in (0.0, 0.01, 0.3):  # heads that learned less well
        heads = ce + noise * torch.randn_like(ce), second + noise * torch.randn_like(ce)
        both = combine(*heads, T(lam, dtype=torch.double), T(1.0, dtype=torch.double)).exp()
        errors = [(heads[0].softmax(1) - y), (heads[1].softmax(1) - teacher.softmax(1))]
        epsilon = max(error.abs().sum(1).max().item() for error in errors)
        assert (both - one).abs().sum(1).max().item() <= epsilon + 1e-4


# ----------------------------------------------------------------------------------- two losses and their gradients


def test_gradient_surgery_by_hand():
    a, b = [T([1.0, 0.0]), T([[2.0]]), None, T([5.0])], [T([-1.0, 1.0]), T([[-1.0]]), T([7.0]), None]
    # shared parts: g1 = (1, 0, 2), g2 = (-1, 1, -1); g1.g2 = -3, |g1|^2 = 5, |g2|^2 = 3
    out = pcgrad(a, b)
    assert out[0].tolist() == pytest.approx([1 - 1 - 1 + 3 / 5, 1 + 1 + 0])
    assert out[1].item() == pytest.approx(2 - 1 - 1 + 2 * 3 / 5)
    assert (out[2].item(), out[3].item()) == (7, 5)
    same = pcgrad([T([1.0, 0.0])], [T([1.0, 1.0])])  # no conflict: the plain sum
    assert same[0].tolist() == [2, 1]
    assert pcgrad([T([1.0])], [T([0.0])])[0].tolist() == [1]
    assert pcgrad([None], [T([2.0])])[0].tolist() == [2]


def test_surgery_of_a_scaled_loss_is_scaled():
    grads = []
    for factor in (1.0, 1024.0):
        layer = nn.Linear(3, 2, bias=False)
        nn.init.constant_(layer.weight, 0.5)
        x = T([[1.0, -2.0, 0.5]])
        one, other = layer(x).square().sum(), -layer(2 * x).sum()
        backward_with_surgery(factor * one, factor * other, list(layer.parameters()))
        grads.append(layer.weight.grad / factor)
    assert torch.allclose(*grads)


@pytest.mark.parametrize("name", ["sho", "dho"])
def test_surgery_in_a_method(name):
    config, method, loader, _ = make(name, "method.pcgrad=true", "loss.kd.weight=20")
    losses = method(loader.batch(0), ctx(config, 0)).losses
    parameters = dict(method.named_parameters())
    one, other = (
        torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        for loss in (losses["ce"], losses["kd"] + losses["unlabeled_kd"])
    )
    method.backward(losses, lambda loss: 2 * loss)
    for (key, p), a, b, wanted in zip(parameters.items(), one, other, pcgrad(one, other), strict=True):
        assert torch.allclose(p.grad, 2 * wanted, rtol=1e-4, atol=1e-7), key
        shared = name == "sho" or not ("kd_head" in key or ".fc." in key)
        assert (a is not None and b is not None) == shared, key


def test_conflict_by_hand():
    at = T([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    one, other = (at[0] * T([1.0, 0.0])).sum(), (at * T([-1.0, 1.0])).sum()
    assert conflict(one, other, at, 1).item() == pytest.approx(-1 / math.sqrt(2))
    assert conflict(one, one, at, 1).item() == pytest.approx(1)
    assert math.isnan(conflict(one, T(1.0), at, 1).item())


@pytest.mark.parametrize("name", ["sho", "dho"])
def test_conflict_is_measured_at_logged_steps_and_changes_no_gradient(name):
    """FAST logs every 5 steps."""
    grads, values = [], []
    for step in (3, 4):
        config, method, loader, _ = make(name)
        out = method(loader.batch(0), ctx(config, step))
        values.append(out.metrics["gradient_conflict"].item())
        torch.stack(list(out.losses.values())).sum().backward()
        grads.append([p.grad for p in method.parameters()])
    assert math.isnan(values[0])
    assert -1 <= values[1] <= 1
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_conflict_of_dho_by_hand():
    config, method, loader, _ = make("dho")
    batch = loader.batch(0)
    out = method(batch, ctx(config, 4))
    views = [batch[s].views["weak"].pixels for s in ("labeled", "unlabeled")]
    n = len(views[0])
    z = method.students["student"](torch.cat(views), ("prelogits",)).features["prelogits"].detach()[:n].requires_grad_()
    classifier = method.students["student"].net.get_classifier()
    one = torch.autograd.grad(F.cross_entropy(classifier(z), batch["labeled"].target), z)[0]
    teacher = method.teacher(views[0]).logits
    other = torch.autograd.grad(kl(teacher, method.kd_head(z)), z)[0]
    wanted = F.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    assert out.metrics["gradient_conflict"].item() == pytest.approx(wanted.item(), abs=1e-4)
