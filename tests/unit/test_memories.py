"""CoMatch and SimMatch: losses by hand, what their memories hold, and when they are asked."""

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.losses.labels import cross_entropy
from kdrun.methods.comatch import graph_loss, smoothed
from kdrun.methods.queue import Queue
from kdrun.methods.simmatch import calibrated, renewed
from tests.conftest import TEACHER
from tests.contract.test_methods import VIT, ctx, fit, make
from tests.unit.test_batch_mixup import P, S, near, taken

FIRST = tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
SECOND = tensor([[0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
BANK = F.normalize(tensor([[1, 0], [0, 1], [-1, 1], [0.6, 0.8]], dtype=torch.float64))
LABEL = tensor([0, 1, 2, 1])

# ------------------------------------------------------------------------------------------------------------- queue


def test_a_queue_keeps_the_last_rows():
    queue = Queue(5, value=(1,), other=())
    rows = torch.arange(12.0)
    queue.push(value=rows[:3, None], other=rows[:3])
    assert not queue.full
    assert queue.value.flatten().tolist() == [0, 1, 2, 0, 0]
    queue.push(value=rows[3:6, None], other=rows[3:6])
    assert queue.full
    assert queue.value.flatten().tolist() == queue.other.tolist() == [5, 1, 2, 3, 4]
    queue.push(value=rows[6:11, None], other=rows[6:11].long())
    assert queue.value.flatten().tolist() == queue.other.tolist() == [10, 6, 7, 8, 9]


def test_a_queue_takes_in_no_more_than_it_holds():
    with pytest.raises(KdrunError, match="a queue of 2 rows cannot take in 3 at once"):
        Queue(2, value=()).push(value=torch.zeros(3))


# ----------------------------------------------------------------------------------------------------------- CoMatch


def test_labels_and_graph_of_comatch_are_those_of_the_facts():
    bank, labels = torch.eye(2).double(), tensor([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8]]).double()
    near(smoothed(P, FIRST, bank, labels, 0.9, 0.2)[0], [0.7965019, 0.16279482, 0.04070328])
    near(graph_loss(FIRST, SECOND, P, 0.15, 0.2), 1.17918381, 1e-8)
    near(graph_loss(FIRST, SECOND, P, 0.3, 0.2), 0.87350546, 1e-8)
    # no neighbors: each strong view is to be nearest to its own other one
    own = (FIRST @ SECOND.T / 0.2).softmax(1).diag()
    near(graph_loss(FIRST, SECOND, P, 1.0, 0.2), -(own + 1e-7).log().mean())


def test_an_image_is_its_own_neighbor_however_unsure_its_label_is():
    unsure = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    near(graph_loss(FIRST, SECOND, unsure, 0.8, 0.2), 0.87350546, 1e-8)


def test_the_graph_trains_both_strong_views_and_the_label_none():
    config, method, batch = taken("comatch", "method.threshold=1", "method.embedding_dim=8")
    shown = [batch["labeled"].views["weak"], *batch["unlabeled"].views.values()]
    outs = method.joint(shown)
    for out in outs:
        out.logits.retain_grad()
        out.features["prelogits"].retain_grad()
    method.joint = lambda views: outs
    method(batch, ctx(config, 3)).losses["graph"].backward()
    gradients = [out.features["prelogits"].grad for out in outs]
    touched = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    assert touched == [False, False, True, True]
    assert all(out.logits.grad is None for out in outs)


def test_the_bank_smooths_once_it_is_full_and_holds_what_was_not_smoothed():
    size = 16 + 16 * 2
    given = ("method.unlabeled_ratio=2", f"method.bank={2 * size}", "method.smoothing=0.5", "method.temperature=0.05")
    config, method, loader, _ = make("comatch", *given)
    told = []
    plain = method.learned
    method.learned = lambda batch, known, strong, target, ctx: (
        told.append(target) or plain(batch, known, strong, target, ctx)
    )
    for step in range(3):
        batch = loader.batch(step)
        method(batch, ctx(config, step))
        at = step % 2 * size
        classes = F.one_hot(batch["labeled"].target, 10)
        assert torch.equal(method.bank.label[at : at + size][-16:], classes.float())
        held = method.bank.label[at : at + 32]
        assert torch.equal(held, told[step]) == (step < 2)
        assert method.bank.embedding[at : at + size].norm(dim=1).allclose(torch.ones(size))
    near(told[2].sum(1), torch.ones(32), 1e-5)


def test_a_bank_smaller_than_a_step_is_refused_in_a_line():
    with pytest.raises(ConfigError, match=r"method\.bank: 127 embeddings, and a step has 128 images; give that many"):
        make("comatch", "method.bank=127")
    make("comatch", "method.bank=128")


# ---------------------------------------------------------------------------------------------------------- SimMatch


def test_labels_and_relations_of_simmatch_are_those_of_the_facts():
    q = (FIRST @ BANK.T / 0.1).softmax(1)
    target, unfolded = calibrated(P, q, LABEL, 0.9)
    near(unfolded[0], [0.99591981, 0.00001009, 0, 0.0040701], 1e-8)
    near(calibrated(P, q, LABEL, 0.0)[0][0], [0.98196997, 0.01802999, 4e-8], 1e-8)
    near(target[0], [0.80523433, 0.15956435, 0.03520132], 1e-8)
    near(-(unfolded * (SECOND @ BANK.T / 0.1).log_softmax(1)).sum(1).mean(), 1.73791637, 1e-8)
    near((cross_entropy(S, target) * (target.amax(1) >= 0.7)).mean(), 0.44202518, 1e-8)


def test_a_class_that_the_teacher_rules_out_leaves_finite_relations():
    p = tensor([[0.0, 0.0, 1.0]])
    near(calibrated(p, tensor([[0.5, 0.5]]), tensor([0, 1]), 0.9)[1], [[0.0, 0.0]])


def test_slots_are_renewed_and_of_length_1():
    new = tensor([[0.6, 0.8], [1, 0]], dtype=torch.float64)
    share = torch.full((2, 1), 0.7, dtype=torch.float64)
    wanted = [[0.96476382, 0.26311741], [0.3939193, 0.91914503]]
    near(renewed(BANK[:2], new, tensor([0, 1]), share), wanted, 1e-8)


def test_an_image_that_is_in_a_batch_twice_writes_the_same_whichever_is_last():
    new = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    slot, old = tensor([3, 1, 3, 2, 3]), torch.zeros(5, 16)
    found = renewed(old, new, slot, torch.zeros(5, 1))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[4])
    near(found[0], F.normalize(new[[0, 2, 4]].mean(0), dim=0), 1e-6)
    near(found[[1, 3]], new[[1, 3]], 1e-6)


def test_the_bank_has_a_slot_for_each_labeled_image_and_takes_the_first_embedding_as_it_is():
    config, method, batch = taken("simmatch")
    labels, index = method.setup.train_target, batch["labeled"].views["weak"].index
    assert len(method.bank) == 50
    assert torch.equal(method.label[method.slot[index]], labels[index])
    outs = method.joint([batch["labeled"].views["weak"], *batch["unlabeled"].views.values()])
    before = method.bank.clone()
    method(batch, ctx(config, 3))
    assert set(method.met.nonzero().flatten().tolist()) == set(method.slot[index].tolist())
    torch.testing.assert_close(method.bank[method.slot[index]], method.embedded(outs[0]).detach())
    assert torch.equal(method.bank[~method.met], before[~method.met])


def test_each_labeled_image_is_in_the_bank_when_it_is_asked_first():
    config, method, loader, _ = make("simmatch")
    assert method.start == 4
    for step in range(method.start):
        out = method(loader.batch(step), ctx(config, step))
        assert out.losses["relation"] == 0
    assert method.met.all()
    assert method(loader.batch(4), ctx(config, 4)).losses["relation"] > 0
    early = make("simmatch", "method.start_step=0")
    assert early[1](early[2].batch(0), ctx(config, 0)).losses["relation"] > 0


def test_labels_are_not_calibrated_before_the_bank_is_asked():
    config, method, batch = taken("simmatch", "method.start_step=4")
    told = []
    method.learned = lambda batch, known, strong, target, ctx: told.append(target) or 1 / 0
    for step in (3, 4):
        weights = method.state_dict()
        with pytest.raises(ZeroDivisionError):
            method(batch, ctx(config, step))
        method.load_state_dict(weights)
    p = method.joint([batch["labeled"].views["weak"], *batch["unlabeled"].views.values()])[1].logits.softmax(1)
    mean = p.mean(0)
    torch.testing.assert_close(told[0], F.normalize(p / mean, p=1, dim=1), rtol=1e-3, atol=1e-4)
    assert (told[1] - told[0]).abs().max() > 1e-3


def test_averaged_weights_see_the_weak_views_and_fill_the_bank():
    config, method, loader, _ = make("simmatch", "method.teacher_decay=0.5")
    seen = []
    method.averaged.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0].index)))
    student = method.students["student"]
    student.register_forward_pre_hook(lambda _, given: seen.append(-len(given[0].index)))
    fit(config, method, loader, 0, 3)
    assert seen == [-16 - 112, 16 + 112] * 3
    assert not torch.equal(method.averaged_head.network[0].weight, method.head[0].weight)
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in [*method.averaged.parameters(), *method.averaged_head.parameters()]}


# -------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("name", ["comatch", "simmatch"])
def test_soft_labels_count_where_they_are_sure_and_a_teacher_stands_beside(name):
    config, method, batch = taken(name, "loss=kd", *TEACHER, "method.threshold=0.15", "method.unlabeled_weight=2")
    told = []
    plain = method.learned
    method.learned = lambda batch, known, strong, target, ctx: (
        told.append((strong, target)) or plain(batch, known, strong, target, ctx)
    )
    out = method(batch, ctx(config, 3))
    own = "graph" if name == "comatch" else "relation"
    assert set(out.losses) == {"labeled", "unlabeled_ce", own, "kd", "unlabeled_kd"}
    ((strong, target),) = told
    used = target.amax(1) >= 0.15
    assert 0 < used.sum() < len(used)
    assert torch.equal(out.guesses.used, used)
    wanted = 2 * config.losses["ce"].weight * (cross_entropy(strong.logits, target) * used).mean()
    torch.testing.assert_close(out.losses["unlabeled_ce"], wanted)


@pytest.mark.parametrize("name", ["remixmatch", "comatch", "simmatch"])
def test_a_student_without_a_linear_classifier_is_refused_in_a_line(name):
    two_heads = f"students=[{{name: deit_tiny_distilled_patch16_224, args: {str(VIT).translate({39: None})}}}]"
    with pytest.raises(ConfigError, match="the student gives no prelogits; it gives stage1") as refused:
        make(name, two_heads)
    assert len(refused.value.lines) == 1


@pytest.mark.parametrize("name", ["comatch", "simmatch"])
def test_heads_are_trained_with_the_student_and_do_not_depend_on_what_was_built_before(name):
    torch.manual_seed(1)
    one = make(name)[1]
    torch.manual_seed(2)
    other = make(name)[1]
    assert one.head in one.parts("student")
    for buffers in (one.head, other.head), (one, other):
        assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in buffers), strict=True))
    assert not torch.equal(make(name, "seed=5")[1].head[0].weight, one.head[0].weight)
