"""What DHO's tables hold beside DHO: SSKD, DHKD, heads on labels alone, linear evaluation."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdrun.cli.explain import main as explain
from kdrun.cli.useless import without_effect
from kdrun.config.compose import Composer
from kdrun.config.job import Job
from kdrun.config.nodes import dump, from_record
from kdrun.core.errors import ConfigError
from kdrun.losses.binary_kl import binary_kl
from kdrun.methods.gradients import aligned
from kdrun.models.heads import NarrowHead
from kdrun.models.network import load_network
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import ctx, fit, make
from tests.unit.test_dho import kl, parts

T = torch.tensor
# RIVALS_KD.md: values of the authors' functions on these logits
STUDENT = T([[1, 2, 0.5], [0.2, -0.3, 1.5]], dtype=torch.float64)
TEACHERS = T([[0.5, 3, -1], [1, 0, 2]], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------- binary KL


@pytest.mark.parametrize(("norm", "value"), [(True, 0.275832093765013), (False, 0.250846519340410)])
def test_binary_kl_golden_and_its_gradient(norm, value):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHERS.clone().requires_grad_()
    loss = binary_kl(student, teacher, 2.0, norm).mean()
    assert loss.item() == pytest.approx(value, abs=1e-13)
    loss.backward()
    difference = ((student - teacher) / 2).sigmoid() - 0.5
    wanted = difference if norm else (student / 2).sigmoid() - (teacher / 2).sigmoid()
    torch.testing.assert_close(student.grad, 2 * wanted.detach() / len(student))  # T (b - a)
    assert teacher.grad is None


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_binary_kl_is_finite_for_large_logits_and_0_where_nothing_differs(norm, dtype):
    student, teacher = T([[1e4, -1e4, 0.0]], dtype=dtype), T([[-1e4, 1e4, 50.0]], dtype=dtype)
    loss = binary_kl(student, teacher, 2.0, norm)
    assert loss.dtype == torch.float32
    # the authors' bound: 1e-8 of a probability is the least
    bound = 4 * 2 * (9.210340 - 0.693147 if norm else 18.420681)
    assert bound < loss.item() < 1.6 * bound
    assert binary_kl(teacher, teacher, 2.0, norm).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        binary_kl(student, teacher, 0.0, norm)


# -------------------------------------------------------------------------------------------- gradient alignment


def test_gradient_alignment_by_hand():
    labels, teacher = [T([3.0, 0.0]), T([4.0]), None], [T([-1.0, 2.0]), None, T([7.0])]
    # product -3, |g|^2 25 over all that labels reach: 1 + 3 / 25 of their gradient, the teacher's as it is
    out = aligned(labels, teacher)
    torch.testing.assert_close(out, [T([3 * 1.12 - 1, 2.0]), T([4 * 1.12]), T([7.0])])
    assert sum((a * b).sum() for a, b in zip(labels[:2], out, strict=False)).item() == pytest.approx(25)
    torch.testing.assert_close(aligned([T([1.0, 0.0])], [T([1.0, 1.0])]), [T([2.0, 1.0])])  # no conflict: the sum
    assert aligned([None, None], [T([2.0]), None]) == [T([2.0]), None]
    assert aligned([T([0.0])], [T([-1.0])])[0].tolist() == [-1]


@pytest.mark.parametrize("switch", [True, False])
def test_dhkd_aligns_the_gradients_of_its_step(switch):
    config, method, loader, _ = make("dhkd", f"method.gradient_alignment={str(switch).lower()}")
    out = method(loader.batch(0), ctx(config, 0))
    assert list(out.losses) == ["ce", "binary_kl", "unlabeled_binary_kl"]
    ce, kd = out.losses["ce"], out.losses["binary_kl"] + out.losses["unlabeled_binary_kl"]
    weights = [p for p in method.parameters() if p.requires_grad]
    one, other = (torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in (ce, kd))
    product = sum((a * b).sum() for a, b in zip(one, other, strict=True) if a is not None and b is not None)
    assert product < 0  # else this tests nothing
    own = 1 - product / sum(a.square().sum() for a in one if a is not None) if switch else 1
    method.backward(out.losses, lambda loss: loss)
    for parameter, a, b in zip(weights, one, other, strict=True):
        wanted = sum(own * g if g is a else g for g in (a, b) if g is not None)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- heads


def test_the_narrow_head_drops_a_tenth_by_the_step_s_own_numbers():
    head, x = NarrowHead(4, 3).eval(), torch.randn(2, 4)
    noise = torch.full((2, 200), 0.5)
    noise[:, :3] = 0.05
    hidden = head.first(x) / 0.9
    hidden[:, :3] = 0
    torch.testing.assert_close(head(x, noise), head.last(head.norm(hidden).relu()))
    torch.testing.assert_close(head(x), head.last(head.norm(head.first(x)).relu()))


def test_dhkd_by_hand():
    """CE of the classifier, the binary loss of the second head on labeled and on unlabeled images; it predicts alone."""
    method, out, target, ce, second, teacher = parts("dhkd", "method.kd_head=linear", "loss.binary_kl.weight=0.1")
    assert out.losses["ce"].item() == pytest.approx(F.cross_entropy(ce[0], target).item(), rel=1e-4)
    for k, name in enumerate(("binary_kl", "unlabeled_binary_kl")):
        wanted = 0.1 * binary_kl(second[k], teacher[k], 2.0).mean()
        assert out.losses[name].item() == pytest.approx(wanted.item(), rel=1e-3)
    method.eval()
    with torch.no_grad():
        view = make("dhkd")[2].batch(0)["labeled"].views["weak"]
        assert list(method.predict(view)) == ["student"]
        assert torch.equal(method.predict(view)["student"], method.students["student"](view).logits)


def test_sskd_by_hand():
    """Labels and teacher on the classifier for labeled images, the teacher on the second head for unlabeled ones."""
    method, out, target, ce, second, teacher = parts("sskd")
    wanted = 0.5 * F.cross_entropy(ce[0], target), 0.5 * kl(teacher[0], ce[0]), 0.5 * kl(teacher[1], second[1])
    assert list(out.losses) == ["ce", "kd", "unlabeled_kd"]
    for value, by_hand in zip(out.losses.values(), wanted, strict=True):
        assert value.item() == pytest.approx(by_hand.item(), rel=1e-3)
    assert method.headline == "student"
    classifier = method.students["student"].net.get_classifier()
    out.losses["unlabeled_kd"].backward(retain_graph=True)
    assert (classifier.weight.grad, method.kd_head.weight.grad is None) == (None, False)
    method.zero_grad()
    (out.losses["ce"] + out.losses["kd"]).backward()
    assert (classifier.weight.grad is None, method.kd_head.weight.grad) == (False, None)


# --------------------------------------------------------------------------------------------- labels alone


@pytest.mark.parametrize("name", ["sho", "dho", "dhkd"])
def test_without_unlabeled_images_there_is_no_stream_and_no_term_of_them(name):
    config, method, loader, _ = make(name, "method.unlabeled_ratio=0")
    batch = loader.batch(0)
    assert list(batch) == ["labeled"]
    out = method(batch, ctx(config, 0))
    assert list(out.losses) == ["ce", "binary_kl" if name == "dhkd" else "kd"]
    assert not any("unlabeled" in key for key in out.metrics)


def test_one_head_without_unlabeled_images_is_distillation():
    alone = fit(*make("sho", "method.unlabeled_ratio=0")[:3], 0, 5)
    assert alone == fit(*make("distill", "loss=dho")[:3], 0, 5)
    assert alone != fit(*make("sho")[:3], 0, 5)


REFUSED = {
    "no such share": (["method=dho", "method.unlabeled_ratio=-1"], "method.unlabeled_ratio: .*0.*, got -1"),
    "a head that nothing teaches": (["method=sskd", "method.unlabeled_ratio=0"], "method.unlabeled_ratio: 0, but .*choose method=sho"),
    "two surgeries": (["method=dhkd", "method.pcgrad=true"], "pcgrad: gradient_alignment does another surgery"),
    "surgery of a compiled network": (["method=dhkd", "schedule.compile=default"], "method.gradient_alignment: needs two backward passes"),
    "no labels": (["method=sskd", "~loss.ce"], "loss: method=sskd needs a term against the labels"),
    "two heads of one": (["method=sho", "method.language_aware_init=both"], "language_aware_init: both is for the two heads of method=dho"),
    "no texts": (["method=supervised", "method.language_aware_init=ce"], "method.language_aware_init: method=supervised asks no teacher for the texts"),
    "the texts of a teacher that is not asked": (
        ["method=supervised", "method.language_aware_init=ce", "method.text_encoder=teacher", "teacher=resnet8"],
        "method.language_aware_init: method=supervised asks no teacher for the texts",
    ),
    "features of nothing": (["method=linear_eval", "method@method.of=zero_shot", "teacher=resnet8"], "method.of: zero_shot trains no student"),
    "an evaluation of one": (["method=linear_eval", "method@method.of=linear_eval"], "method.of: linear_eval is an evaluation itself"),
    "features of several": (
        ["method=linear_eval", "method@method.of=peer_distill", "students=[resnet8,resnet14]", "loss=kd"],
        "students: method=linear_eval trains 1, got 2",
    ),
    "two lengths": (["method=linear_eval", "method.steps=3", "method.epochs=1"], "give method.steps or method.epochs"),
    "a mistake in the run": (["method=linear_eval", "method.of.pcgradd=true"], "pcgradd"),
    "a run that cannot run": (["method=linear_eval", "method@method.of=sho", "~loss.kd"], "loss: method=sho needs a term against the teacher"),
    "a run given by hand": (["method=linear_eval", "+method.source_key=abc"], "source and source_key are made by kdrun"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    words, error = REFUSED[case]
    with Composer() as composer, pytest.raises(ConfigError, match=error):
        composer.typed([*FAST, *words])


# Rows of the paper's tables by their words, and what they come to.
ROWS = {
    "SSKD": (["experiment=dho/imagenet_r18", "method=sskd"], {"labeled", "unlabeled"}, {"ce", "kd"}, "open_clip"),
    "DHKD": (
        ["experiment=dho/imagenet_r50", "method=dhkd", "method.kd_head=linear", "loss.binary_kl.weight=0.1"],
        {"labeled", "unlabeled"}, {"ce", "binary_kl"}, "open_clip",
    ),
    "DHO, frozen": (["experiment=dho/imagenet_b16_frozen", "method.unlabeled_ratio=0"], {"labeled"}, {"ce", "kd"}, "open_clip"),
    "LinEval": (["experiment=dho/imagenet_b16_frozen", "method=supervised"], {"labeled"}, {"ce"}, "none"),
    "CLIP B/16": (
        ["experiment=dho/imagenet_b16_l14", "method=supervised", "method.language_aware_init=ce", "dataset.num_labels=10%"],
        {"labeled"}, {"ce"}, "none",
    ),
    "CLIP L/14": (
        ["experiment=dho/imagenet_l14_h14", "method=supervised", "method.language_aware_init=ce"], {"labeled"}, {"ce"}, "none",
    ),
    "linear evaluation": (
        ["experiment=dho/imagenet_r50", "method=linear_eval", "method@method.of=sho", "loss=fitnet"], {"labeled"},
        {"ce"}, "none",
    ),
}  # fmt: skip


def test_the_rows_of_the_paper_by_their_words():
    with Composer() as composer:
        for row, (words, streams, losses, teacher) in ROWS.items():
            if "r50" in words[0]:  # the file of its weights is to be fetched
                words = [*words, "student.pretrained=false", "student.file=null", "student.new_head=false"]
            config = composer.typed(words)
            found = (set(config.needs.streams), set(config.losses), config.teacher.source)
            assert found == (streams, losses, teacher), row


# ------------------------------------------------------------------------------------------- linear evaluation

EVAL = [*FAST, *TEACHER, "method=linear_eval", "method@method.of=sho", "method.steps=6", "method.lr=0.1"]


def test_linear_evaluation_is_of_the_run_that_the_same_words_describe():
    with Composer() as composer:
        words = [*EVAL, "loss=fitnet", "loss.fitnet.weight=7", "student.lr_scale=0.5"]
        job = composer.job([*words, "seed=3"])
        apart = [word for word in words if not word.startswith("method")]
        run = composer.job([*apart, "method=sho", "seed=3"])
        assert {role: other.key for role, other in job.requires.items()} == {"features": run.key}
        others = [*words, "seed=3", "schedule.lr=0.02"], [*words, "seed=4"], [*words, "seed=3", "method.of.pcgrad=true"]
        assert len({job.key, *(composer.job(other).key for other in others)}) == 4
        assert without_effect([job]) == []
        typo = composer.job([*words, "teacher.temperature=2"]), composer.job([*words, "views.strong.num_ops=5"])
    assert without_effect(typo[:1]) == []  # of the run
    assert without_effect(typo[1:]) == ["views.strong.num_ops=5: has no effect in what this runs"]
    config = job.config
    assert (config.dataset.num_labels, config.schedule.steps, config.schedule.lr) == (None, 6, 0.1)
    assert ([*config.losses], config.teacher.source, config.needs_teacher) == (["ce"], "none", False)
    assert (config.students[0].trainable, config.students[0].lr_scale) == ("head", 1.0)
    assert run.config.schedule.steps == 20
    again = from_record(json.loads(json.dumps(dump(config))))
    assert again == config
    assert {role: other.key for role, other in Job(again).requires.items()} == {"features": run.key}
    told = explain([word for word in EVAL if "wandb" not in word])
    assert "of the run that it needs: kd" in told
    assert "not built" not in told


def test_linear_evaluation_trains_a_new_head_on_the_features_of_a_run(train, outputs, caplog):
    assert train(*EVAL) == 0
    done = {record["method"]: (directory, record) for directory, record in find_records(outputs)}
    assert set(done) == {"linear_eval", "sho", "supervised"}
    (directory, record), (source, theirs) = done["linear_eval"], done["sho"]
    assert record["requires"] == {"features": source.name.partition("-")[2]}
    assert (record["split"]["labeled"], theirs["split"]["labeled"], record["steps"]) == (1257, 50, 6)
    ours, its = (load_network(folder / "student.safetensors").net.state_dict() for folder in (directory, source))
    assert ours.keys() == its.keys()
    assert {name for name, value in ours.items() if not torch.equal(value, its[name])} == {"fc.weight", "fc.bias"}
    assert 0 <= record["metrics"]["test/student/top1"] <= record["metrics"]["test/student/top5"] <= 1
    assert not any("teacher" in name for name in record["metrics"])
    before = (source / "record.json").read_bytes()
    assert train(*EVAL, "method.lr=0.2") == 0  # the run is there
    assert (source / "record.json").read_bytes() == before


def test_a_head_with_published_weights_starts_anew():
    config, method, *_ = make("linear_eval")
    net = method.network.net.get_classifier()
    again = config.method_class(config, method.setup).network.net.get_classifier()
    other = config.method_class(config.replace(seed=config.seed + 1), method.setup).network.net.get_classifier()
    plain = method.setup.network(config.students[0], config.seed).net.get_classifier()
    assert torch.equal(net.weight, again.weight)
    assert not torch.equal(net.weight, other.weight)
    assert not torch.equal(net.weight, plain.weight)  # not what the network came with
    assert config.method_class(config, replace(method.setup, restoring=True)).requires(config)
