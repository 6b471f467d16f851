"""Peers that label each other's unlabeled images: the term by hand, who labels, and what stays as in peer_distill."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.data.views.view import View
from kdrun.methods.uncertainty import DeepEnsemble, agreement, entropy_weight
from kdrun.runs.record import find_records
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import TWO, ctx, make

SMALL = ["schedule.batch_size=4", "method.unlabeled_ratio=2", "method.threshold=0", "method.unlabeled_weight=2.5"]
THREE = "students=[{name: resnet8, args: {width: 4}}, {name: resnet14, args: {width: 4}}, {name: resnet8, args: {width: 6}}]"


def parts(*overrides):
    config, method, loader, _ = make("peer_fixmatch", *SMALL, *overrides)
    with torch.no_grad():  # an untrained teacher has no opinion
        method.teacher.network.net.get_classifier().weight.mul_(50)
    return config, method, loader.batch(0)


def joint_logits(net, batch):
    """(labeled, weak, strong) logits of one forward pass of all views, gradients kept."""
    views = [batch["labeled"].views["weak"], batch["unlabeled"].views["weak"], batch["unlabeled"].views["strong"]]
    return net(torch.cat([v.pixels for v in views])).logits.split([len(v.index) for v in views])


def by_hand(method, batch, labeler):
    """Of each student: the probabilities that label, and the cross entropy of each strong view with each label."""
    logits = [joint_logits(net, batch) for net in method.students.values()]
    weak = [z[1].detach().softmax(1) for z in logits]
    teacher = method.teacher(batch["unlabeled"].views["weak"]).logits
    w = entropy_weight(teacher)
    found = []
    for k, (_, _, strong) in enumerate(logits):
        others = [p for i, p in enumerate(weak) if i != k]
        peers = sum(others) / len(others)
        q = {
            "peers": peers,
            "teacher": teacher.softmax(1),
            "both": torch.stack([w[i] * teacher[i].softmax(0) + (1 - w[i]) * peers[i] for i in range(len(w))]),
        }[labeler]
        found.append((q, strong))
    return found


@pytest.mark.parametrize("students", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("labeler", ["peers", "teacher", "both"])
def test_the_unlabeled_term_by_hand(labeler, students):
    config, method, batch = parts(f"method.labeler={labeler}", students)
    found = by_hand(method, batch, labeler)
    threshold = torch.cat([q.amax(1) for q, _ in found]).median().item() - 1e-6
    method.config = config.replace(method=config.method.replace(threshold=threshold))
    method.labeler.spec = method.spec
    out = method(batch, ctx(config, 0))
    used, labels = [], []
    for name, (q, strong) in zip(method.students, found, strict=True):
        confidence, label = q.max(1)
        mask = confidence >= threshold
        each = F.cross_entropy(strong.detach(), label, reduction="none")
        total = sum(each[i].item() for i in range(8) if mask[i])
        # lambda_u 2.5 and the weight of ce, 0.4; divided by all 8 images
        assert out.losses[f"{name}/unlabeled_ce"].item() == pytest.approx(2.5 * 0.4 * total / 8, rel=1e-4)
        used.append(mask)
        labels.append(label)
    assert 0 < torch.cat(used).float().mean() < 1
    assert torch.equal(out.guesses.used, torch.cat(used))
    assert torch.equal(out.guesses.label, torch.cat(labels))
    assert torch.equal(out.guesses.index, torch.cat([batch["unlabeled"].views["weak"].index] * len(used)))
    assert sum(float(v) for k, v in out.metrics.items() if k.startswith("confidence/")) == pytest.approx(1)


@pytest.mark.parametrize("labeler", ["peers", "both"])
def test_no_gradient_flows_to_those_who_label(labeler):
    """Not to the peers, and not through the student's own weak view."""
    config, method, batch = parts(f"method.labeler={labeler}")
    method(batch, ctx(config, 0)).losses["student_2/unlabeled_ce"].backward()
    assert all(p.grad is None for p in method.students["student_1"].parameters())
    found = [p.grad.clone() for p in method.students["student_2"].parameters()]
    method.zero_grad()
    q, strong = by_hand(method, batch, labeler)[1]
    (2.5 * 0.4 * F.cross_entropy(strong, q.argmax(1))).backward()
    expected = [p.grad for p in method.students["student_2"].parameters()]
    assert any(g.abs().max() > 1e-4 for g in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_labeled_images_are_those_of_peer_distill():
    """Same batch, same losses and gradients, where batch normalisation does not see the other images."""
    config, method, batch = parts("method.unlabeled_weight=0", "method.normalize_weights=true")
    small = ["schedule.batch_size=4", "method.normalize_weights=true"]
    other_config, other, loader, _ = make("peer_distill", *small)
    other.setup = method.setup  # the same teacher
    theirs = loader.batch(0)
    assert torch.equal(batch["labeled"].views["weak"].pixels, theirs["labeled"].views["weak"].pixels)
    losses, expected = (
        one.eval()(given, ctx(c, 0)).losses
        for one, given, c in ((method, batch, config), (other, theirs, other_config))
    )
    assert losses.keys() - expected.keys() == {"student_1/unlabeled_ce", "student_2/unlabeled_ce"}
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item() if name in expected else 0, rel=1e-5)
    for values in (losses, expected):
        torch.stack(list(values.values())).sum().backward()
    for p, q in zip(method.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("labeler", "shown"), [("peers", [4]), ("teacher", [4, 8]), ("both", [4, 8])])
def test_each_image_is_shown_once(labeler, shown):
    config, method, batch = parts(f"method.labeler={labeler}", THREE)
    runs = {name: [] for name in (*method.students, "teacher")}
    for name, net in (*method.students.items(), ("teacher", method.teacher.network)):
        net.register_forward_hook(lambda _, args, out, name=name: runs[name].append(len(out.logits)))
    method(batch, ctx(config, 0))
    assert runs == {**{name: [20] for name in method.students}, "teacher": shown}


def test_an_ensemble_labels_as_far_as_its_members_agree():
    config, method, batch = parts("method.labeler=both")
    members = [method.setup.network(ModelConfig(name="resnet8"), seed) for seed in (3, 4)]
    teacher = Teacher(Ensemble(members))
    asked = config.method.replace(uncertainty=DeepEnsemble.Config(name="deep_ensemble"))
    method = config.method_class(config.replace(method=asked), replace(method.setup, teacher=teacher))
    guessed = method(batch, ctx(config, 0)).guesses.label.split(8)
    view = batch["unlabeled"].views["weak"]
    each = torch.stack([net(view).logits for net in members])
    w = agreement(each)[:, None]
    weak = [joint_logits(net, batch)[1].softmax(1) for net in method.students.values()]
    for k in range(2):
        q = w * each.softmax(2).mean(0) + (1 - w) * weak[1 - k]
        assert torch.equal(guessed[k], q.argmax(1))


def test_an_evaluation_leaves_no_images_behind():
    method, batch = parts()[1:]
    view = View(batch["labeled"].views["weak"].pixels, batch["labeled"].views["weak"].index)
    left = weakref.ref(view)
    with torch.no_grad():
        method.eval().predict(view)
    del view
    assert left() is None


def test_two_steps_on_digits(train, outputs):
    few = ["schedule.steps=2", "schedule.eval_every_steps=null", "execution.log_every_steps=1", *TEACHER[:2]]
    arguments = [*FAST, *few, "teacher.steps=2", "method=peer_fixmatch", TWO, "method.threshold=0.15"]
    assert train(*arguments, "method.labeler=both", "method.unlabeled_ratio=2") == 0
    [(directory, record)] = [(d, r) for d, r in find_records(outputs) if r["method"] == "peer_fixmatch"]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/lr" in line]
    assert len(steps) == 2
    for line in steps:
        assert 0 <= line["train/mask_rate"] <= 1
        assert {"train/loss/student_1/peer", "train/loss/student_2/unlabeled_ce"} <= line.keys()
    assert any(0 <= line.get("train/pseudo_label_accuracy", -1) <= 1 for line in steps)
    assert record["split"]["unlabeled"] == 1257
    assert {"test/student_1/top1", "test/student_2/top1", "test/ensemble/top1"} <= record["metrics"].keys()


REFUSED = {
    "one student": (["students=[resnet8]"], "students: method=peer_fixmatch trains 2 or more, got 1"),
    "no teacher to label": (["loss=ce", "method.labeler=teacher"], "method.labeler: teacher asks the teacher, and no term of loss needs one; choose peers"),
    "nor to share": (["loss=ce", "method.labeler=both"], "method.labeler: both asks the teacher"),
    "no uncertainty to share by": (["method.labeler=both", "method/uncertainty=none"], "method.labeler: both shares by how sure the teacher is"),
    "no term against labels": (["loss=kd_noce"], "loss: no term works against labels, so unlabeled images would teach nothing"),
    "unknown labeler": (["method.labeler=peer"], "method.labeler: 'peer' is not allowed; nearest: peers"),
    "mixed images": (["views.mix.kind=mixup"], "views.mix.kind: method=peer_fixmatch does not take mixed images, got mixup"),
    "mixed images of peers": (["method=peer_distill", "views.mix.kind=cutmix"], "views.mix.kind: method=peer_distill does not take mixed images, got cutmix"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(train, outputs, capsys, name):
    overrides, message = REFUSED[name]
    assert train("tracker=none", "method=peer_fixmatch", "students=[resnet8,resnet14]", *overrides) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: {message}"), lines[0]
    assert not outputs.exists()


def test_another_pool_counts_where_it_is_used(tmp_path):
    """peer_distill takes no unlabeled images, and leaves the pool out of its key as distill does."""
    (tmp_path / "pool.npz").write_bytes(b"pool")
    pool, students = f"dataset.unlabeled={tmp_path / 'pool.npz'}", "students=[resnet8,resnet14]"
    with Composer() as composer:
        for method, counts in (("distill", False), ("peer_distill", False), ("peer_fixmatch", True)):
            given = [f"method={method}", *([students] if method != "distill" else [])]
            plain, other = composer.typed(given), composer.typed([*given, pool])
            assert (other.dataset.unlabeled is not None) == counts
            assert (run_key(plain) != run_key(other)) == counts
