"""Pseudo-Label, Pi-model, Mean Teacher, VAT and AdaMatch: their losses by hand and by published values, and their laws."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import kdrun
from kdrun.core.errors import ConfigError
from kdrun.core.seeding import normal
from kdrun.data.load import load_dataset
from kdrun.data.views.view import View, together
from kdrun.losses.logits import kl, renyi_entropy
from kdrun.losses.term import risen
from kdrun.methods.adamatch import AdaMatchConfig, Relative
from kdrun.methods.alignment import aligned
from kdrun.methods.averaged import Averaged
from kdrun.methods.consistency import squared
from kdrun.methods.labeler import Seen
from kdrun.methods.step import Context, Setup
from kdrun.methods.vat import steepest, unit
from kdrun.results.table import figure
from kdrun.runs.finished import FinishedRun
from kdrun.training.decay import Arc
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import ctx, make


def T(*rows):
    return torch.tensor(rows, dtype=torch.float64)


W = T([2, 0.5, -1], [0.1, 1.2, 0.3], [-0.5, 0, 3])
S = T([1, 0.2, -0.3], [0, 0.5, 0.1], [-0.2, 0.4, 1.5])
P = W.softmax(1)
NAMES = ["pseudo_label", "pi_model", "mean_teacher", "vat", "adamatch"]
MANY = [*TEACHER, "loss=kd", "loss.kd.weight=1"]


def about(value, wanted):
    assert float(value) == pytest.approx(wanted, rel=1e-7)


# ------------------------------------------------------------------------------------------------- published values


def test_squared_differences_are_means_over_classes_with_a_gradient_to_one_side():
    about(squared(S, P).mean(), 0.02230214)
    assert squared(W, P).abs().max() < 1e-15
    logits, target = S.clone().requires_grad_(), P.clone().requires_grad_()
    squared(logits, target).sum().backward()
    assert logits.grad.norm() > 0
    assert target.grad is None


def test_divergence_and_entropy_of_vat_are_those_of_the_facts():
    about(kl(W, S).mean(), 0.1171189)
    about(renyi_entropy(W, 1.0).mean(), 0.63637442)


def test_the_steepest_change_of_a_linear_model_is_the_published_one():
    weight, x = T([1, -1, 0.5], [0, 2, -0.5]), T([0.3, -0.2])
    clean = x @ weight
    found = steepest(lambda change: (x + change) @ weight, clean, T([0.6, 0.8]), 1e-6)
    torch.testing.assert_close(found, T([-0.32100502, 0.94707749]), rtol=0, atol=2e-5)
    lds = kl(clean, (x + 2 * found) @ weight).sum()
    assert float(lds) == pytest.approx(2.70869977, rel=1e-5)


def test_one_step_of_the_power_method_is_the_hessian_times_the_direction():
    """KL(p || p(x + r)) = r' H r / 2 for small r, H = A (diag p - p p') A' of a linear model z = x A."""
    weight, x, d = T([1, -1, 0.5], [0, 2, -0.5]), T([0.3, -0.2]), T([0.6, 0.8])
    p = (x @ weight).softmax(1)[0]
    hessian = weight @ (p.diag() - p[:, None] * p) @ weight.T
    found = steepest(lambda change: (x + change) @ weight, x @ weight, d, 1e-5)
    torch.testing.assert_close(found, unit(d @ hessian), rtol=0, atol=1e-4)
    twice = steepest(lambda change: (x + change) @ weight, x @ weight, d, 1e-5, iterations=2)
    torch.testing.assert_close(twice, unit(d @ hessian @ hessian), rtol=0, atol=1e-4)


def test_weights_rise_as_published():
    assert risen(0.2, 0.4) == 0.5
    assert risen(0.2, 0.4, "cosine") == pytest.approx(0.5)
    about(risen(0.16, 0.4, "exponential"), 0.16529889)
    assert [risen(0.9, 0.4, shape) for shape in ("linear", "exponential", "cosine")] == [1, 1, 1]
    assert risen(0.0, 0.0, "cosine") == 1
    for shape in ("linear", "exponential", "cosine"):  # of a captured step
        captured = risen(torch.tensor(0.13, dtype=torch.float64), 0.4, shape)
        assert captured == torch.tensor(risen(0.13, 0.4, shape), dtype=torch.float32)


def labeler(**keys):
    spec = AdaMatchConfig(name="adamatch", **keys)
    return Relative(spec, Setup(3, 1, (0.5,), (0.5,), train_target=torch.zeros(1, dtype=torch.int64))).double()


def seen(p, known=((3, 0, -1), (0.2, 2, 0.4))):
    return Seen(p, torch.arange(len(p)), T(*known), torch.tensor([0, 1]), 0.25)


def test_adamatch_labels_what_is_sure_beside_labeled_images():
    made = labeler(alignment="ema")
    label, weight = made(seen(P))
    torch.testing.assert_close(made.wanted.value, T([0.33352857, 0.33338902, 0.33308241])[0], rtol=0, atol=1e-7)
    row = aligned(P, made.found.value, made.wanted.value)[0]
    torch.testing.assert_close(row, T([0.75576944, 0.21273016, 0.0315004])[0], rtol=0, atol=1e-7)
    assert weight.tolist() == [1, 0, 1]
    assert label.tolist() == [0, 1, 2]
    about((weight * F.cross_entropy(S, label, reduction="none")).mean(), 0.319729)


@pytest.mark.parametrize(("confidence", "used"), [(0.7503, 0), (0.7506, 1)])
def test_a_label_needs_that_share_of_the_confidence_on_labeled_images(confidence, used):
    """0.9 of the published mean of 0.75044875 / 0.9; predictions of all classes alike are aligned with themselves."""
    rest = (1 - confidence) / 2
    p = torch.full((3, 3), rest, dtype=torch.float64).fill_diagonal_(confidence)
    made = labeler()
    made.wanted.decay = 1.0  # what it is aligned with stays uniform
    assert made(seen(p))[1].tolist() == [used] * 3


def test_predictions_are_aligned_with_what_labeled_images_look_like():
    made = labeler(threshold=0.0)
    made.wanted.mean.copy_(T([0.2, 0.2, 0.6])[0])
    made.wanted.decay = 1.0
    p = T([0.4, 0.3, 0.3], [0.3, 0.4, 0.3])
    assert made(seen(p))[0].tolist() == [2, 2]


def test_the_first_average_of_weights_is_the_student_and_the_next_the_mean_of_two():
    student = make("pi_model")[1].networks()["student"]
    averaged = Averaged(student, 0.999)
    found = []
    for value in (1.0, 3.0, 8.0):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(value)
        averaged.follow(student)
        found.append(float(next(averaged.network.parameters()).flatten()[0]))
    assert found == pytest.approx([1, 2, 4])
    assert Averaged(student, 0.9).decay == 0.9


def test_the_learning_rate_of_adamatch_ends_at_a_quarter():
    class Clock:
        total_steps = 100

    arc = Arc(Arc.Config(name="arc"), Clock(), 0)
    assert arc.factor(0) == 1
    assert arc.factor(100) == pytest.approx(0.25)
    assert arc.factor(50) == pytest.approx(math.cos(math.acos(0.25) / 2))


# ------------------------------------------------------------------------------------------------- a step by hand


def late(config):
    """Where weights have risen."""
    return ctx(config, 15)


def step_of(name, *overrides):
    config, method, loader, _ = make(name, *overrides)
    batch = loader.batch(0)
    return config, method, batch


def statistics(method):
    return {k: v.clone() for k, v in method.students.state_dict().items() if "running" in k}


@pytest.mark.parametrize("name", NAMES[:4])
def test_running_statistics_are_those_of_labeled_images(name):
    config, method, batch = step_of(name)
    other = make(name)[1]
    method(batch, late(config))
    other.students["student"](batch["labeled"].views["weak"])
    assert all(torch.equal(value, statistics(other)[key]) for key, value in statistics(method).items())


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_a_pseudo_label_counts_for_the_view_that_gave_it(threshold):
    config, method, batch = step_of("pseudo_label", f"method.threshold={threshold}", "method.unlabeled_weight=3")
    out = method(batch, ctx(config, 4))  # half of the way up
    z = method.aside(batch["unlabeled"].views["weak"]).logits
    confidence, label = z.softmax(1).max(1)
    wanted = 1.5 * ((confidence >= threshold) * F.cross_entropy(z, label, reduction="none")).mean()
    assert out.losses["unlabeled_ce"].item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)
    assert torch.equal(out.guesses.used, confidence >= threshold)


def test_the_published_pseudo_label_loss_is_met():
    confidence, label = P.max(1)
    about(((confidence >= 0.6) * F.cross_entropy(W, label, reduction="none")).mean(), 0.10608598)


def test_one_pass_for_pseudo_labels_sees_labeled_and_unlabeled_images_together():
    config, method, batch = step_of("pseudo_label", "method.joint_forward=true", "method.threshold=0")
    known, new, same = method.outputs(batch)
    joint = method.joint([batch[s].views["weak"] for s in ("labeled", "unlabeled")])
    assert same is new
    assert torch.equal(known.logits, joint[0].logits)
    assert torch.equal(new.logits, joint[1].logits)
    assert "unlabeled_ce" in method(batch, ctx(config, 0)).losses


@pytest.mark.parametrize(("name", "weight"), [("pi_model", 10.0), ("mean_teacher", 50.0)])
def test_the_second_weak_view_follows_the_first(name, weight):
    config, method, batch = step_of(name)
    shown = batch["unlabeled"].views
    assert not torch.equal(shown["weak"].pixels, shown["weak_2"].pixels)
    out = method(batch, ctx(config, 4))
    teacher = method.aside if name == "pi_model" else method.averaged
    apart = method.aside(shown["weak_2"]).logits.softmax(1) - teacher(shown["weak"]).logits.softmax(1)
    assert out.losses["consistency"].item() == pytest.approx(weight / 2 * apart.square().mean().item(), rel=1e-4)
    assert out.losses["ce"].requires_grad


def test_mean_teacher_and_pi_model_agree_before_anything_is_averaged():
    one, other = (step_of(name, "method.unlabeled_weight=1") for name in ("pi_model", "mean_teacher"))
    losses = [method(batch, late(config)).losses for config, method, batch in (one, other)]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert value.item() == pytest.approx(losses[1][name].item(), rel=1e-5)


def test_parts_of_one_step_do_not_average_twice():
    config, method, batch = step_of("mean_teacher", "schedule.accumulate=2")
    whole = ctx(config, 0)
    for k in range(2):
        method(batch, whole.within(k, 2))
    assert method.averaged.steps == 1


def test_a_ramp_as_the_authors_have_it_is_a_key():
    config, method, batch = step_of("mean_teacher", "method.warmup_shape=exponential")
    linear = step_of("mean_teacher")[1]
    found = [m(batch, ctx(config, 4)).losses["consistency"].item() for m in (method, linear)]
    assert found[0] / found[1] == pytest.approx(math.exp(-5 * 0.25) / 0.5, rel=1e-4)


def test_a_finished_mean_teacher_predicts_as_it_was_evaluated(train, outputs):
    short = ["method=mean_teacher", "schedule.steps=3", "schedule.eval_every_steps=null", "schedule.ema_decay=0.9"]
    assert train(*FAST, *short) == 0
    (record,) = outputs.rglob("record.json")
    run = FinishedRun.open(record.parent)
    assert run.record["headline"] == "averaged"
    method = run.method()
    images = torch.from_numpy(load_dataset(run.config.dataset, outputs).test_images[:50]).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = method.predict(View(images, torch.arange(50)))
    for name in ("averaged", "student"):
        torch.testing.assert_close(found[name], run.predictions("test", name)[0][:50], rtol=1e-4, atol=1e-5)
    assert not torch.equal(found["averaged"], found["student"])
    averaged = kdrun.load(record.parent)  # the headline, of a file of its own
    with torch.no_grad():
        torch.testing.assert_close(averaged(images).logits, found["averaged"], rtol=1e-4, atol=1e-5)
    assert set(run.record["nets"]) == {"student", "averaged"}
    assert figure(run.record, "params") == averaged.num_params


def test_vat_moves_normalised_images_by_epsilon_where_the_divergence_grows():
    config, method, batch = step_of("vat", "method.epsilon=2")
    view, network = batch["unlabeled"].views["weak"], method.networks()["student"]
    clean = method.aside(view, gradient=False).logits
    moved = method.moved(view, clean, late(config))
    change = network.adapt(moved.pixels) - network.adapt(view.pixels)
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((len(change),), 2.0), rtol=1e-4, atol=0)
    rates = []
    for step in (change, 2 * unit(normal(late(config).draw(*change.shape)))):
        pixels = (network.adapt(view.pixels) + step) * network.std + network.mean
        rates.append(kl(clean, method.aside(replace(view, pixels=pixels), gradient=False).logits).mean().item())
    assert rates[0] > 2 * rates[1]  # beside a random change


def test_vat_leaves_gradients_to_the_backward_pass_and_takes_them_in_float32():
    config, method, batch = step_of("vat", "schedule.precision=bf16")
    view, network = batch["unlabeled"].views["weak"], method.networks()["student"]
    kinds = []
    network.net.register_forward_hook(lambda _, given, out: kinds.append((given[0].requires_grad, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method(batch, late(config))
    assert all(p.grad is None for p in method.parameters())
    assert kinds == [(False, torch.bfloat16)] * 2 + [
        (False, torch.float32),
        (True, torch.float32),
        (False, torch.bfloat16),
    ]
    assert {"ce", "smoothness", "entropy"} == out.losses.keys()
    assert len(view.index) == config.schedule.batch_size


def test_the_direction_of_vat_is_the_exact_one_up_to_the_curvature_at_xi():
    """At the paper's 1e-6 float32 has nothing but rounding; at the default it finds what float64 finds there."""
    found = {}
    for xi in (1e-6, 0.1):
        for double in (False, True):
            config, method, batch = step_of("vat", f"method.xi={xi}")
            view, network = batch["unlabeled"].views["weak"], method.networks()["student"]
            images = network.adapt(view.pixels).to(torch.float64 if double else torch.float32)
            net = network.net.to(images.dtype)
            noise = normal(ctx(config, 0).draw(*images.shape)).to(images.dtype)

            def logits_at(change, net=net, images=images):
                return net(images + change)

            found[xi, double] = steepest(logits_at, net(images).detach(), noise, xi).double()
    cosine = {xi: (found[xi, False] * found[xi, True]).flatten(1).sum(1).mean().item() for xi in (1e-6, 0.1)}
    assert cosine[0.1] > 0.9999
    assert abs(cosine[1e-6]) < 0.9


def test_lengths_are_1_however_short_a_gradient_is_and_0_stays():
    rows = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [3e30, 4e30]])
    torch.testing.assert_close(unit(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))


def test_normal_numbers_are_finite_at_both_ends_and_symmetric():
    ends = torch.tensor([0.0, 1 - 2**-24, 0.5, 0.25])
    out = normal(ends)
    assert out.isfinite().all()
    assert out[0] == -out[1]
    assert abs(out[2]) < 1e-6
    assert out[3].item() == pytest.approx(-0.6744898, rel=1e-5)


def test_logits_of_labeled_images_lie_between_two_passes():
    config, method, batch = step_of("adamatch")
    *known, _, _ = method.outputs(batch)
    between = method.interpolated(batch, known, late(config))
    views = [batch["labeled"].views[name] for name in ("weak", "strong")]
    size = len(views[0].index)
    alone = method.aside(together(views)).split([size, size])
    for found, one, other in zip(between, known, alone, strict=True):
        low, high = torch.minimum(one.logits, other.logits), torch.maximum(one.logits, other.logits)
        assert ((found.logits >= low - 1e-5) & (found.logits <= high + 1e-5)).all()
        assert not torch.allclose(found.logits, one.logits)
    assert not torch.allclose(between[0].logits - known[0].logits, between[1].logits - known[1].logits)


@pytest.mark.parametrize("strong", [True, False])
def test_the_labeled_term_of_adamatch_is_the_mean_over_its_views(strong):
    config, method, batch = step_of("adamatch", "method.interpolate=false", f"method.labeled_strong={strong}")
    assert ("strong" in batch["labeled"].views) == strong
    *known, _, _ = method.outputs(batch)
    wanted = torch.stack([F.cross_entropy(one.logits, batch["labeled"].target) for one in known]).mean()
    assert method(batch, late(config)).losses["labeled"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_labels_of_adamatch_are_not_part_of_a_finished_run():
    config, method, _ = step_of("adamatch")
    restored = config.method_class(config, replace(method.setup, restoring=True))
    assert restored.labeler is None


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_stands_beside_each_of_them(name):
    config, method, batch = step_of(name, *MANY)
    losses = method(batch, late(config)).losses
    assert {"kd", "unlabeled_kd"} <= losses.keys()
    student = "student"
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in method.students[student].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_unlabeled_images_weigh_nothing_at_first(name):
    config, method, batch = step_of(name)
    losses = method(batch, ctx(config, 0)).losses
    rising = [key for key in losses if key.startswith(("unlabeled", "consistency", "smoothness"))]
    assert len(rising) == 1
    assert losses[rising[0]] == 0


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("pseudo_label", "method.warmup=1.5", "method.warmup: "),
        ("mean_teacher", "method.decay=1", "method.decay: "),
        ("mean_teacher", "method.warmup_shape=square", "method.warmup_shape: "),
        ("vat", "method.xi=0", "method.xi: "),
        ("vat", "method.iterations=0", "method.iterations: "),
        ("adamatch", "method.alignment=mean", "method.alignment: "),
        ("pi_model", "method.threshold=0.9", "method"),
    ],
)
def test_what_no_key_can_be_is_refused_in_a_line(name, override, message):
    with pytest.raises(ConfigError, match=message) as refused:
        make(name, override if override.split("=")[0] != "method.threshold" else f"+{override}")
    assert len(refused.value.lines) == 1


def test_draws_of_parts_of_a_batch_are_those_of_the_whole():
    whole = Context(0, 3, 20, torch.device("cpu"))
    parts = [whole.within(k, 2).draw(4, 1, 8, 8) for k in range(2)]
    assert torch.equal(torch.cat(parts), whole.again().draw(8, 1, 8, 8))
