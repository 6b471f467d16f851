"""Linearity: against a number worked out by hand, on networks that are linear, its gradients, and where it belongs."""

import dataclasses
import math

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.data.views.mix import Mix, Mixture
from kdrun.losses.linearity import Linearity, linearity
from kdrun.losses.term import Pair, UnmixedOutputs
from kdrun.models.output import Output
from tests.contract.test_methods import ctx, fit, make

N, CLASSES = 6, 5
MIXED = ["views.mix.kind=mixup"]


def drawn(n=N, seed=0, dtype=torch.float64):
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n, CLASSES, generator=made, dtype=dtype)
    partner, share = torch.randperm(n, generator=made), torch.rand(n, generator=made, dtype=dtype)
    share[:2] = torch.tensor([0.0, 1.0])  # not mixed at all
    return logits[0], logits[1], partner, share


def term(**fields):
    return Linearity(Linearity.Config(name="linearity", **fields), None)


def pair(fields=(), teacher=None):
    student, clean, partner, share = drawn()
    student.requires_grad_()
    clean.requires_grad_()
    outputs = UnmixedOutputs(Output(clean, {}), teacher, partner, share)
    made = Pair(Output(student, {}), None, None, torch.arange(N), 0.0, torch.rand, outputs)
    return dataclasses.replace(made, **dict(fields)), student, clean


def test_by_hand():
    logits = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log()
    got = linearity(torch.zeros(2, 2), logits, torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    mixed = 0.35 * math.log(0.7) + 0.65 * math.log(1.3)  # 0.25 (.8, .2) + 0.75 (.2, .8) against (.5, .5)
    alone = 0.2 * math.log(0.4) + 0.8 * math.log(1.6)
    assert got.tolist() == pytest.approx([mixed, alone], abs=1e-6)
    softer = linearity(torch.zeros(1, 2), 3 * logits[:1], torch.tensor([0]), torch.tensor([0.5]), temperature=3.0)
    assert softer.item() == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4), abs=1e-6)


def test_a_network_that_is_linear_in_its_probabilities_has_none():
    made = torch.Generator().manual_seed(0)
    images, matrix = torch.rand(2, 12, 3, generator=made), torch.rand(3, CLASSES, generator=made).softmax(1)

    def network(x):  # rows of x sum to 1, so these are probabilities
        return (x @ matrix).log()

    x = images[0] / images[0].sum(1, keepdim=True)
    partner, share = torch.randperm(12, generator=made), torch.rand(12, generator=made)
    mixed = share[:, None] * x + (1 - share[:, None]) * x[partner]
    torch.testing.assert_close(
        linearity(network(mixed), network(x), partner, share), torch.zeros(12), atol=1e-6, rtol=0
    )
    assert (linearity(2 * network(mixed), 2 * network(x), partner, share) > 1e-6).any()


def test_gradients_are_those_of_the_values():
    student, clean, partner, share = drawn()
    inputs = (student.requires_grad_(), clean.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: linearity(a, b, partner, share, 2.0), inputs)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_stay_finite(scale):
    student, clean, partner, share = drawn(dtype=torch.float32)
    inputs = [(scale * student).requires_grad_(), (-scale * clean).requires_grad_()]
    value = linearity(*inputs, partner, share)
    value.sum().backward()
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_passes_the_unmixed_images_only_where_it_may(detach):
    made, student, clean = pair()
    asked = term(detach=detach)
    assert (asked.needed.unmixed, asked.needed.unmixed_gradient) == (("student",), not detach)
    asked(made).mean().backward()
    assert student.grad.abs().sum() > 0
    assert (clean.grad is None) == detach


def test_the_teacher_s_outputs_are_vicinal_targets():
    teacher = drawn(seed=1)[1]
    _, _, partner, share = drawn()
    made, student, clean = pair(teacher=Output(teacher, {}))
    asked = term(of="teacher", temperature=2.0)
    value = asked(made)
    assert torch.equal(value, linearity(student, teacher, partner, share, 2.0))
    assert asked.needed.unmixed == ("teacher",)
    value.mean().backward()
    assert clean.grad is None


def test_a_method_that_gives_no_unmixed_outputs_is_named():
    with pytest.raises(KdrunError, match="needs what the student gives for unmixed images"):
        term()(pair({"unmixed": None})[0])
    with pytest.raises(KdrunError, match="needs what the teacher gives"):
        term(of="teacher")(pair()[0])


# ---------------------------------------------------------------------------------------------- streams and methods


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_view_says_what_it_was_made_of(kind):
    _, _, loader, _ = make("mixup_distill", f"views.mix.kind={kind}", "views.mix.share=0.7")
    stream = loader.streams["labeled"]
    for samples in stream.batches(range(3)):
        view = samples.views["weak"]
        made = view.unmixed
        assert sorted(made.partner.tolist()) == list(range(16))
        if kind == "mixup":
            how = Mix(MixConfig(kind="mixup"), (8, 8), 10)
            again = Mixture(how, made.partner, made.share, torch.zeros(16, 4, dtype=torch.int64)).images(made.pixels)
            assert torch.equal(again, view.pixels)
        else:
            kept = (view.pixels == made.pixels).all(1).float().mean((1, 2))
            assert (kept >= made.share - 1e-6).all()  # more where both images are black
    assert make("distill", "loss=kd")[2].batch(0)["labeled"].views["weak"].unmixed is None


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_the_term_changes_neither_the_other_terms_nor_the_running_statistics(of):
    alone, joint = (
        make("mixup_distill", "loss=kd_noce"),
        make("mixup_distill", "loss=kd_linearity", f"loss.linearity.of={of}"),
    )
    first, second = (method(loader.batch(0), ctx(config, 0)).losses for config, method, loader, _ in (alone, joint))
    assert second.keys() == {"kd", "linearity"}
    assert torch.equal(first["kd"], second["kd"])
    assert second["linearity"] > 0
    statistics = [dict(method.students.named_buffers()) for _, method, _, _ in (alone, joint)]
    assert all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())
    assert all(m.track_running_stats for m in joint[1].modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_student_may_learn_from_both_sides():
    once = make("mixup_distill", "loss=kd_linearity")
    both = make("mixup_distill", "loss=kd_linearity", "loss.linearity.detach=false")
    first, second = fit(*once[:3], 0, 3), fit(*both[:3], 0, 3)
    assert first[0] == second[0]
    assert first[1:] != second[1:]
    assert all(math.isfinite(loss) for loss in second)
    assert fit(*make("supervised", "loss=linearity", *MIXED)[:3], 0, 2)[1] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=linearity"], "loss.linearity: linearity is about mixed images, and views.mix mixes none; choose mixup"),
        (["loss=linearity", "method=fixmatch"], "loss.linearity: .* choose method=mixup_distill"),
        (["loss=linearity", "views=mixup", "views.mix.share=0"], "views.mix mixes none"),
        (
            ["loss=linearity", "views=mixup", "loss.linearity.of=teacher", "loss.linearity.detach=false"],
            "loss.linearity: detach=false is for of=student",
        ),
        (["loss=linearity", "views=mixup", "loss.linearity.of=teacher", "teacher=none"], "linearity needs a teacher"),
        (["loss=linearity", "views=mixup", "loss.linearity.temperature=0"], "must be greater than 0, got 0"),
        (["loss=linearity", "views=mixup", "loss.linearity.of=both"], "'both' is not allowed"),
        (
            ["method=supervised", "loss=linearity", "views=mixup", "loss.linearity.of=teacher"],
            "works against the teacher, which method=supervised does not offer",
        ),
    ],
)
def test_mistakes(overrides, message):
    with Composer() as composer, pytest.raises(ConfigError, match=message) as found:
        composer.typed(overrides)
    assert len(found.value.lines) == 1


def test_which_side_it_is_on():
    with Composer() as composer:
        assert not composer.typed(["loss=linearity", "views=mixup"]).needs_teacher
        assert composer.typed(["loss=linearity", "views=mixup", "loss.linearity.of=teacher"]).needs_teacher
