"""SRRL, ReviewKD, CTKD and RLD: the authors' values, values by hand, what their terms keep and what they refuse."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.losses.ctkd import ctkd, reversal
from kdrun.losses.reviewkd import Fusion, hierarchical
from kdrun.losses.rld import masked_correlation, sample_confidence
from kdrun.losses.set import LossSet
from kdrun.losses.srrl import feature_matching, softmax_regression
from kdrun.losses.term import Pair, TermSpec
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble, Tempered
from kdrun.training.assembly import Assembly
from kdrun.training.check import check
from kdrun.training.optimizer import make_optimizer
from kdrun.training.rehearsal import rehearse
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import TWO, ctx, fit, make
from tests.each import each
from tests.unit.test_feature_losses import DIMS, LABELS, PAIRS, WIDE, normal, output, shapes

# What the authors' functions were run on, in float64.
ZS = torch.tensor([[1, 2, 0.5], [0.2, -0.3, 1.5]], dtype=torch.float64)
ZT = torch.tensor([[0.5, 3, -1], [1, 0, 2]], dtype=torch.float64)
Y = torch.tensor([1, 0])
FS = torch.tensor(
    [0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, -0.9, 1, 1.1, -1.2, 1.3, 1.4, -1.5, 1.6], dtype=torch.float64
).view(2, 2, 2, 2)
FT = torch.tensor(
    [0.2, 0.1, -0.4, 0.3, -0.5, 0.6, 0.9, -0.7, 1, -0.8, 1.2, 0.5, 1.1, -1.3, 1.4, 0.6], dtype=torch.float64
).view(2, 2, 2, 2)
UP = (torch.arange(8).double() + 1) / 10
TEMPERATURE = 1 + 20 / (1 + math.exp(-1))
FC = normal(3, 16, dtype=torch.float32)  # a teacher's classifier


def classify(prelogits: torch.Tensor) -> torch.Tensor:
    return prelogits @ FC.T


# --------------------------------------------------------------------------------------------- the authors' values

GOLDEN = {
    "srrl, features": (lambda: feature_matching(FS, FT.mean((2, 3))), 0.0934375),
    "srrl, logits": (lambda: softmax_regression(ZS[:, :, None, None], ZT, lambda x: x), 0.746666666666667),
    "reviewkd": (lambda: hierarchical(FS, FT), 1.356979166666667),
    "reviewkd, 8x8": (
        lambda: hierarchical(UP.view(1, 1, 8, 1).expand(1, 1, 8, 8), UP.expand(1, 1, 8, 8)), 0.0933333333333333,
    ),
    "ctkd": (lambda: ctkd(ZS, ZT, torch.tensor(TEMPERATURE, dtype=torch.float64)), 0.278458628100878),
    "rld, SCD": (lambda: sample_confidence(ZS, ZT, Y, 1.0), 0.373098384250401),
    "rld, MCD": (lambda: masked_correlation(ZS, ZT, Y, 4.0), 0.0611393693267708),
    "rld": (lambda: term("rld", warmup=0.0)(pair(ZS, ZT)), 0.862213338864567),
    "rld, same t": (lambda: term("rld", warmup=0.0, alpha_temperature=None)(pair(ZS, ZT)), 0.950629159044862),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_values(name):
    value, expected = GOLDEN[name]
    assert value().mean().item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- by hand


def test_srrl_by_hand():
    """Two positions, two channels: means (2, 1) beside the teacher's (1, 3); the classifier sums them: 3 beside 5."""
    student = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])
    assert feature_matching(student, torch.tensor([[1.0, 3.0]])).tolist() == [2.5]  # (1 + 4) / 2
    assert softmax_regression(student, torch.tensor([[5.0]]), lambda x: x.sum(1, keepdim=True)).tolist() == [4.0]


def test_hierarchical_by_hand():
    """2x2: mean of squares 5, of the means 1; weights 1 and 1/2. 1x1: the square alone."""
    student = torch.tensor([[[[1.0, 3.0], [1.0, -1.0]]]])
    assert hierarchical(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx((3 + 1 / 2) / 1.5)
    assert hierarchical(torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)).item() == 9


def test_a_level_is_fused_with_the_one_above_by_hand():
    """One channel everywhere, all convolutions pass on what they see, both shares are a half."""
    top, below = Fusion(1, 1, 1, top=True).eval(), Fusion(1, 1, 1, top=False).eval()
    for level in (top, below):
        nn.init.dirac_(level.reduce[0].weight), nn.init.dirac_(level.expand[0].weight)
    nn.init.zeros_(below.shares.weight), nn.init.zeros_(below.shares.bias)
    scale = (1 + 1e-5) ** -0.5  # of batch normalization, once on the way in, once on the way out
    seen, above = top(torch.full((1, 1, 1, 1), 4.0), None, torch.Size([2, 2]))
    torch.testing.assert_close(above, torch.full((1, 1, 2, 2), 4 * scale))
    torch.testing.assert_close(seen, above * scale)
    seen, fused = below(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]), above, torch.Size([4, 4]))
    expected = torch.tensor([[[[2.0, 3.0], [4.0, 5.0]]]]).repeat_interleave(2, 2).repeat_interleave(2, 3) * scale
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(seen, fused * scale)


def test_ctkd_by_hand():
    """Two classes at T = 2: p_t = (3/4, 1/4), p_s = (1/2, 1/2)."""
    teacher = torch.tensor([[2 * math.log(3), 0.0]]).double()
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert ctkd(torch.zeros(1, 2), teacher, torch.tensor(2.0)).item() == pytest.approx(expected)


def test_rld_by_hand():
    """p_t = (1/2, 1/4, 1/4), y = 1: SCD sees (1/2, 1/2) beside (1/3, 2/3). Class 2 is rated as high as y, none lower."""
    teacher, uniform = torch.tensor([[math.log(2), 0.0, 0.0]]).double(), torch.zeros(1, 3).double()
    expected = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    assert sample_confidence(uniform, teacher, torch.tensor([1]), 1.0).item() == pytest.approx(expected)
    assert masked_correlation(uniform, teacher, torch.tensor([1]), 1.0).item() == 0
    # y = 0: the other two, 1/2 each beside (1/4, 3/4)
    student = torch.tensor([[9.0, 0.0, math.log(3)]]).double()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert masked_correlation(student, teacher, torch.tensor([0]), 1.0).item() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", ["features", "logits", "hierarchical"])
def test_gradient_to_the_student_only_and_right(name):
    loss = {
        "features": lambda s, t: feature_matching(s, t.mean((2, 3))),
        "logits": lambda s, t: softmax_regression(s, t.mean((2, 3)), lambda x: x @ normal(3, 3)),
        "hierarchical": hierarchical,
    }[name]
    student, teacher = normal(2, 3, 3, 4).requires_grad_(), normal(2, 3, 3, 4, seed=1).requires_grad_()
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher.detach()), (student.detach().requires_grad_(),))
    for dtype in (torch.bfloat16, torch.float16):
        one, other = (x.detach().to(dtype) for x in (student, teacher))
        if name != "logits":  # whose classifier is float32
            assert loss(one, other).dtype == torch.float32
            torch.testing.assert_close(loss(one, other), loss(one.float(), other.float()), rtol=5e-3, atol=1e-5)


def test_where_the_teacher_rates_no_class_below_the_label_there_is_nothing_to_learn_from_the_others():
    for dtype in (torch.float16, torch.float32):
        student = torch.tensor([[3.0, -1.0, 2.0]], dtype=dtype, requires_grad=True)
        value = masked_correlation(student, torch.tensor([[1.0, 1.0, 5.0]], dtype=dtype), torch.tensor([0]), 4.0)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert (value.item(), gradient.tolist()) == (0, [[0, 0, 0]])


# ------------------------------------------------------------------------------------------------------------ terms


def term(name: str, student=DIMS, teacher=WIDE, classifier=classify, source: str = "train", **fields):
    config = lookup("loss", name, name).Config(name=name, **fields)
    spec = TermSpec(3, len(LABELS), student, teacher, LABELS, classifier, teacher_source=source)
    return LossSet({name: config}, 0, spec).terms[name]


def pair(student, teacher, progress: float = 0.5) -> Pair:
    student, teacher = (x if isinstance(x, Output) else Output(x, {}) for x in (student, teacher))
    index = torch.arange(len(student.logits))
    return Pair(student, teacher, Y.repeat(len(index) // 2), index, progress, lambda *shape: torch.rand(shape))


def feature_pair(made, dtype=torch.float32, student=DIMS, teacher=WIDE, progress: float = 0.5) -> Pair:
    return pair(
        output(student, 6, 8, 1, dtype, made.needed.features), output(teacher, 6, 4, 2, dtype, made.needed.of_teacher),
        progress,
    )  # fmt: skip


FEATURES = {
    "srrl": ("srrl", {}), "srrl, of vectors": ("srrl", {"feature": "prelogits"}),
    "srrl, of a stage": ("srrl", {"feature": "stage1"}), "reviewkd": ("reviewkd", {}),
    "reviewkd, of two stages": ("reviewkd", {"features": ["stage1", "stage3"], "middle": 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", FEATURES)
def test_a_term_trains_all_that_is_its_own_and_the_student_and_nothing_of_the_teacher(case):
    name, fields = FEATURES[case]
    made = term(name, **fields)
    given = feature_pair(made)
    value = made(given)
    assert value.shape == (6,)
    value.mean().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in given.student.features.values())
    assert all(x.grad is None for x in given.teacher.features.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in made.parameters())
    huge = feature_pair(made)
    for out in (huge.student, huge.teacher):
        out.features.update({k: v.detach() * 1e4 for k, v in out.features.items()})
    assert torch.isfinite(made(huge)).all()


@pytest.mark.parametrize("case", FEATURES)
def test_autocast_and_half_precision_do_not_reach_a_term(case):
    name, fields = FEATURES[case]
    made = term(name, **fields)
    half, whole = feature_pair(made, torch.bfloat16), feature_pair(made, torch.bfloat16)
    for out in (whole.student, whole.teacher):
        out.features.update({k: v.detach().float() for k, v in out.features.items()})
    expected = made(whole)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_srrl_is_its_two_parts_of_the_connected_map():
    made = term("srrl", regression_weight=3.0).eval()
    given = feature_pair(made)
    assert (made.needed.features, made.needed.of_teacher) == (("stage3",), ("prelogits",))
    mine, other = made.connector(given.student.features["stage3"]), given.teacher.features["prelogits"]
    expected = feature_matching(mine, other) + 3 * softmax_regression(mine, classify(other), classify)
    torch.testing.assert_close(made(given), expected)
    # the gradient flows through the classifier
    plain = term("srrl", regression_weight=0.0).eval()
    grads = [torch.autograd.grad(m(given).sum(), m.connector[0].weight)[0] for m in (made, plain)]
    assert not torch.allclose(*grads)


def test_reviewkd_sums_its_levels_from_the_last_to_the_first():
    made = term("reviewkd", features=["stage1"], teacher_features=["stage2"], warmup=0.0).eval()
    given = feature_pair(made)
    s, t = given.student.features, given.teacher.features
    below, top = made.levels
    assert (below.shares is None, top.shares is None) == (False, True)
    seen, above = top(s["prelogits"][:, :, None, None], None, (1, 1))
    expected = hierarchical(seen, t["prelogits"][:, :, None, None])
    expected = expected + hierarchical(below(s["stage1"], above, t["stage2"].shape[2:])[0], t["stage2"])
    torch.testing.assert_close(made(given), expected)


@pytest.mark.parametrize("name", ["reviewkd", "rld"])
def test_the_weight_rises_over_its_share_of_the_run(name):
    made, whole = term(name).eval(), term(name, warmup=0.0).eval()

    def at(progress, made=made):
        given = feature_pair(made, progress=progress) if name == "reviewkd" else pair(ZS, ZT, progress)
        return made(given).mean().item()

    full = at(0.0, whole)
    assert full > 0
    found = [at(progress) for progress in (0.0, 10 / 240, 20 / 240, 0.9)]
    assert found == pytest.approx([0, full / 2, full, full], rel=1e-6)


# What ReviewKD's and mdistiller's code set by hand: channels of the student and of the teacher, without the top level.
CHANNELS = {
    ("resnet56", "resnet20"): ([16, 32, 64], [16, 32, 64]),
    ("resnet32x4", "resnet8x4"): ([64, 128, 256], [64, 128, 256]),
    ("wrn_40_2", "wrn_40_1"): ([16, 32, 64], [32, 64, 128]),
    ("vgg13_cifar", "vgg8_cifar"): ([128, 256, 512, 512], [128, 256, 512, 512]),
    ("vgg13_cifar", "mobilenetv2_half"): ([12, 16, 48, 160], [128, 256, 512, 512]),
    ("resnet50_cifar", "vgg8_cifar"): ([128, 256, 512, 512], [256, 512, 1024, 2048]),
    ("resnet32x4", "shufflenetv1"): ([240, 480, 960], [64, 128, 256]),
    ("resnet32x4", "shufflenetv2"): ([116, 232, 464], [64, 128, 256]),
    ("resnet34", "resnet18"): ([64, 128, 256, 512], [64, 128, 256, 512]),
    ("resnet50", "mobilenetv1_100"): ([128, 256, 512, 1024], [256, 512, 1024, 2048]),
}


OTHERS = [("resnet50", "mobilenetv1_100"), ("resnet20", "resnet50_cifar")]


@pytest.mark.parametrize("names", [*PAIRS, *OTHERS], ids="-".join)
def test_any_two_networks(names):
    size = 224 if "deit" in names[0] else 32
    (teacher_dims, teacher), (student_dims, student) = (shapes(name, size) for name in names)
    for name in ("srrl", "reviewkd"):
        with torch.device("meta"):
            made = term(name, student_dims, teacher_dims, classifier=lambda x: x.new_empty(len(x), 3) * x.sum())
            value = made(pair(student, teacher))
        assert value.shape == (2,)
    found = [tuple(pair) for pair in made.widths]
    if names in CHANNELS:
        assert found == list(zip(*CHANNELS[names], strict=True))
    targets = [*(t for _, t in found), teacher_dims["prelogits"]]
    assert [level.expand[0].out_channels for level in made.levels] == targets
    assert {level.reduce[0].out_channels for level in made.levels} == {min(512, student_dims["prelogits"])}


IMAGENET = ["ttm/imagenet_resnet34_resnet18", "ttm/imagenet_resnet50_mobilenetv1"]


@pytest.mark.parametrize("experiment", IMAGENET)
@pytest.mark.parametrize("loss", ["srrl", "reviewkd", "ctkd"])
def test_the_imagenet_pairs_take_a_step(experiment, loss):
    """Their own networks, on the meta device; digits are there and are seen at 64 pixels."""
    with Composer() as composer:
        config = composer.typed([
            f"experiment={experiment}", "dataset=digits", "views=standard", "student.size=64", "teacher.model.size=64",
            "teacher.classes=[0,1,2,3,4,5,6,7,8,9]", "schedule.batch_size=4", "schedule.graph=true", f"loss={loss}",
        ])  # fmt: skip
    run = Assembly.outline(config)
    done = []
    run.method.losses().terms[loss].register_forward_hook(lambda *_: done.append(loss))
    rehearse(run)
    assert done == [loss]


def test_a_batch_of_one_image_is_refused_before_the_run():
    """The top level is one value of each channel."""
    line = "schedule.batch_size: 1: batch normalisation sees one"
    with Composer() as composer, pytest.raises(ConfigError, match=line):
        check(composer.job(["method=distill", *FAST, *TEACHER, "schedule.batch_size=1", "loss=reviewkd"]))


# ------------------------------------------------------------------------------------------------------------- CTKD


def test_the_gradient_of_the_temperature_is_turned_over_its_share_of_the_run():
    """-0.0245 after one epoch of 240, a half after five, the whole from the tenth on, as in the authors' log."""
    expected = {0.0: 0, 1 / 240: -0.024471741852423, 5 / 240: -0.5, 10 / 240: -1, 0.9: -1}
    for progress, factor in expected.items():
        for given in (progress, torch.tensor(progress).double()):
            assert float(reversal(given, 10 / 240)) == pytest.approx(factor, abs=1e-7)
        made = term("ctkd")
        made(pair(ZS, ZT, progress)).mean().backward()
        share = 1 / (1 + math.exp(-1))
        plain = -1.5837e-4 * 20 * share * (1 - share)  # d loss / dT, the authors', times dT / d theta
        assert made.theta.grad.item() == pytest.approx(factor * plain, rel=1e-4, abs=1e-12)
    assert reversal(0.0, 0.0) == -1


def test_the_temperature_starts_where_the_authors_have_it_is_trained_saved_and_logged():
    config, method, loader, _ = make("distill", "loss=ctkd", "loss.ctkd.warmup=0", "schedule.weight_decay=0")
    theta = method.losses().terms["ctkd"].theta
    out = method(loader.batch(0), ctx(config, 0))
    assert out.metrics["ctkd/temperature"].item() == pytest.approx(15.6211715726001)
    assert not out.metrics["ctkd/temperature"].requires_grad
    [group] = make_optimizer(method).param_groups
    assert any(p is theta for p in group["params"])
    assert "loss_sets.student.terms.ctkd.theta" in method.state_dict()
    # it climbs: a step against the turned gradient makes the loss of the same outputs larger
    given = pair(ZS.float(), ZT.float())
    made = term("ctkd", warmup=0.0)
    before = made(given).mean()
    before.backward()
    with torch.no_grad():
        made.theta -= 1e3 * made.theta.grad
        assert made(given).mean() > before


# ---------------------------------------------------------------------------------------------- a teacher's classifier


def test_srrl_in_training_uses_the_teachers_classifier_and_neither_trains_nor_saves_it():
    config, method, loader, _ = make("distill", "loss=srrl")
    network = method.teacher.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    losses = fit(config, method, loader, 0, 3)
    assert all(math.isfinite(value) for value in losses)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    mine = {p.data_ptr() for p in (*method.parameters(), *method.state_dict().values())}
    assert not mine & {p.data_ptr() for p in network.parameters()}
    assert {n for n, _ in method.losses().terms["srrl"].named_parameters()} == {
        "connector.0.weight", "connector.1.weight", "connector.1.bias",
    }  # fmt: skip


@pytest.mark.parametrize("head", ["linear", "mlp", "hidden"])
def test_the_classifier_makes_a_teachers_logits_of_its_features(head):
    _, method, loader, _ = make("distill", "loss=kd")
    model = method.config.students[0].replace(head=head)
    network = method.setup.network(model, 0)
    view = loader.batch(0)["labeled"].views["weak"]
    for one in (Teacher(network), Teacher(Tempered(network, 3.0))):
        if "prelogits" not in one.dims:
            assert one.classifier is None
            continue
        out = one(view, ("prelogits",))
        torch.testing.assert_close(one.classifier(out.features["prelogits"]), out.logits)
    assert Teacher(Ensemble([network])).classifier is None
    assert Teacher(Tempered(Ensemble([network]), 2.0)).classifier is None


MEMBERS = "teacher.members=[{source: train, model: {name: resnet8}}, {source: train, model: {name: resnet14}}]"
NONE = "srrl needs a teacher with one linear layer on its features, and teacher.source={} has none"
REFUSED = {
    "an ensemble": (["teacher=ensemble", MEMBERS, "loss=srrl"], NONE.format("ensemble")),
    "a CLIP": (["teacher=digits_clip", "loss=srrl"], NONE.format("clip")),
    "Tip-Adapter": (["teacher=digits_tip_adapter", "loss=srrl"], NONE.format("tip_adapter")),
    "two heads": (["teacher=train", "teacher.steps=10", "teacher.model.name=deit_tiny_distilled_patch16_224", "teacher.model.size=224", "loss=srrl"], NONE.format("train")),
    "kept logits": ([*TEACHER, "teacher.cache.mode=views", "loss=srrl"], "teacher.cache.mode: only logits are kept, and the teacher's prelogits is asked for"),
    "no teacher": (["teacher=none", "loss=srrl"], "loss.srrl: srrl needs a teacher, but teacher.source=none"),
    "an absent stage": ([*TEACHER, "loss=srrl", "loss.srrl.feature=stage7"], "loss.srrl: the student gives no stage7"),
    "no feature": ([*TEACHER, "loss=srrl", "loss.srrl.feature=logits"], "loss.srrl.feature"),
    "neither part": ([*TEACHER, "loss=rld", "loss.rld.alpha=0", "loss.rld.beta=0"], "loss.rld: alpha and beta are both 0"),
    "no range": ([*TEACHER, "loss=ctkd", "loss.ctkd.span=0"], "loss.ctkd.span: must be greater than 0"),
}  # fmt: skip


@each("refused", REFUSED.items())
def test_what_cannot_work_is_refused_in_one_line(refused):
    _, (overrides, message) = refused
    with Composer() as composer, pytest.raises(ConfigError) as caught:
        check(composer.job(["method=distill", *FAST, *overrides]))
    (line,) = caught.value.lines
    assert message in line


def test_the_line_of_a_term_names_it():
    with pytest.raises(ConfigError, match=f"^loss.srrl: {NONE.format('zero_shot')}"):
        term("srrl", classifier=None, source="zero_shot")


# -------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("loss", ["srrl", "reviewkd", "ctkd", "rld"])
def test_mixed_images_two_students_and_heads_take_it(loss):
    for name, more in (("mixup_distill", []), ("peer_distill", [TWO]), ("dho", [])):
        config, method, loader, _ = make(name, *more, f"loss={loss}")
        losses = method(loader.batch(0), ctx(config, 10)).losses
        assert any(loss in key for key in losses)
        assert all(torch.isfinite(value) for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()


@pytest.mark.parametrize("loss", ["reviewkd", "ctkd"])
def test_a_run_goes_on_from_a_checkpoint_with_what_a_term_has_learned(loss):
    whole = fit(*make("distill", f"loss={loss}")[:3], 0, 6)
    first, second = make("distill", f"loss={loss}"), make("distill", f"loss={loss}")
    optimizer, other = make_optimizer(first[1]), make_optimizer(second[1])
    head = fit(*first[:3], 0, 3, optimizer)
    second[1].load_state_dict(first[1].state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert head + fit(*second[:3], 3, 6, other) == whole


def test_a_finished_run_has_no_use_for_the_term():
    config, method, _, _ = make("distill", "loss=srrl")
    restored = config.method_class(config, replace(method.setup, restoring=True))
    assert not [name for name in restored.state_dict() if "connector" in name]
