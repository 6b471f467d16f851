"""SP, CC, NST, ICKD, KD-SVD and MLKD: the authors' values, values by hand, what they do not see, what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.losses.cc import congruence, consecutive
from kdrun.losses.ickd import ickd
from kdrun.losses.kdsvd import RightVectors, directions, kdsvd
from kdrun.losses.mlkd import batch_relation, class_relation, lower_half
from kdrun.losses.nst import nst
from kdrun.losses.set import LossSet
from kdrun.losses.sp import sp
from kdrun.losses.term import TermSpec
from kdrun.training.check import check
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import ctx, make
from tests.each import each
from tests.unit.test_feature_losses import DIMS, LABELS, PAIRS, WIDE, normal, shapes
from tests.unit.test_later_losses import FS, FT, ZS, ZT, feature_pair, pair, term

ZS2 = torch.tensor([[0.3, 1, 0], [-0.5, 0.4, 0.9]], dtype=torch.float64)
ZT2 = torch.tensor([[0, 2, 0.5], [0.6, -1, 1.2]], dtype=torch.float64)
R = math.sqrt(0.5)


def tensor(*rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def image(*channels):
    """One image, each channel a list of positions. (1, C, 1, N)."""
    return tensor(*channels)[None, :, None]


# --------------------------------------------------------------------------------------------- the authors' values

GOLDEN = {
    "sp": (lambda: sp(FS, FT), 0.00383926627454180),
    "cc, paper": (lambda: congruence(ZS, ZT, 0.4, 2), 0.00561877211036392),
    "cc, code": (lambda: consecutive(ZS, ZT), 1.45),
    "nst": (lambda: nst(FS, FT), 1.62040377756673),
    "ickd": (lambda: ickd(FS, FT), 1.670582115070954),
    "kdsvd": (lambda: kdsvd([FS, FT], [FT, FS]), 0.0290281699919343),
    "mlkd, classes": (lambda: class_relation(ZS, ZT, 4.0), 0.00521046614109922),
    "mlkd, batch": (lambda: batch_relation(ZS, ZT, 4.0), 0.00160529330410711),
    "mlkd": (lambda: sum(mlkd_views()), (1.87270624083161 + 0.0276452553043447 + 0.0117548386579639) / 0.9),
}  # fmt: skip


def mlkd_views(**fields):
    """The term on the weak and on the strong view."""
    made = term("mlkd", **fields)
    return [made(pair(ZS, ZT)), made(replace(pair(ZS2, ZT2), view="strong"))]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_values(name):
    value, expected = GOLDEN[name]
    assert value().mean().item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- by hand


def test_sp_by_hand():
    """Images unlike each other beside images alike: rows (1, 0) and (r, r)."""
    assert sp(tensor([1, 0], [0, 3]), tensor([2, 0], [2, 0])).item() == pytest.approx(((1 - R) ** 2 + R**2) / 2)


def test_cc_by_hand():
    """Cosine 0 beside 1 at gamma 1/2, P = 1: kernels e^-1 and 2 e^-1 off the diagonal."""
    assert congruence(tensor([1, 0], [0, 3]), tensor([2, 0], [2, 0]), 0.5, 1).item() == pytest.approx(math.exp(-2) / 2)
    apart = tensor([1, -2], [3, 0], [0, 1])
    assert consecutive(apart, torch.zeros_like(apart)).item() == (3 + 0) / 2


def test_nst_by_hand():
    """k(s, s) = 1; other positions: k(t, t) = 1, k(s, t) = 0. One channel of two alike: 1/2 and 1/2."""
    one = image([5, 0])
    assert nst(one, image([0, 2])).tolist() == [2]
    assert nst(one, image([1, 0], [0, 7])).tolist() == [0.5 + 1 - 2 * 0.5]
    assert nst(image([5, 0], [5, 0]), image([1, 0])).tolist() == [0]


def test_ickd_by_hand():
    """Rows (1, 0) and (0, 1) beside (r, r) twice; maps of different sizes."""
    student, teacher = image([1, 0], [0, 3]), image([2, 0, 0], [2, 0, 0])
    assert ickd(student, teacher).tolist() == pytest.approx([(1 - R) ** 2 + R**2])


def test_kdsvd_by_hand():
    """Maps of one position are their own singular vector: first (0.6, 0.8) beside (1, 0), then (1, 0) of both."""
    east, between = image([1], [0]), image([-3], [-4])
    mine, other = [0.4, 0.2, 0.6, 0.8], [0, 1, 1, 0]  # how far each of the second is from each of the first
    expected = sum((math.exp(-(a**2) / 8) - math.exp(-(b**2) / 8)) ** 2 for a, b in zip(mine, other, strict=True))
    assert kdsvd([between, east], [east, east]).item() == pytest.approx(expected)


def test_a_singular_vector_unlike_the_teachers_is_none():
    """At a right angle its sign would be chance."""
    mine, _ = directions(image([0], [2]), image([1], [0]), 1)
    assert mine.flatten().tolist() == [0, 0]


def test_mlkd_by_hand():
    """One image: P_s = (1/2, 1/2), P_t = (1, 0)."""
    student, teacher = tensor([0, 0]), tensor([1e4, 0])
    assert batch_relation(student, teacher, 1.0).item() == 0.25
    assert class_relation(student, teacher, 1.0).item() == (0.75**2 + 3 * 0.25**2) / 2
    shares = {(1, 2, 4, 3): 1 / 2, (3, 1, 2): 2 / 3, (5, 5, 5, 5): 1, (1, 2, 2, 2): 1, (1, 1, 2): 2 / 3}
    assert {numbers: lower_half(tensor(*numbers)).item() for numbers in shares} == pytest.approx(shares)


# ------------------------------------------------------------------------------------------------------ properties

FUNCTIONS = {
    "sp": sp, "nst": nst, "ickd": ickd, "congruence": lambda s, t: congruence(s.mean((2, 3)), t.mean((2, 3)), 0.4, 2),
    "kdsvd": lambda s, t: kdsvd([s, s.roll(1, 3).square()], [t, t.roll(1, 3).square()]),
    "batch": lambda s, t: batch_relation(s.mean((2, 3)), t.mean((2, 3)), 2.0),
    "class": lambda s, t: class_relation(s.mean((2, 3)), t.mean((2, 3)), 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_to_the_student_only_and_right(name):
    loss = FUNCTIONS[name]
    student, teacher = normal(3, 4, 2, 3).requires_grad_(), normal(3, 4, 2, 3, seed=1).requires_grad_()
    loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher.detach()), (student.detach().requires_grad_(),), rtol=1e-2
    )
    assert loss(teacher.detach(), teacher).abs().max() < 1e-12
    for dtype in (torch.bfloat16, torch.float16):
        one, other = (x.detach().to(dtype) for x in (student, teacher))
        assert loss(one, other).dtype == torch.float32 or name in ("congruence", "batch", "class")


@pytest.mark.parametrize("name", ["sp", "nst", "ickd"])
def test_the_size_of_a_map_and_the_number_of_its_positions_are_not_seen(name):
    loss, student, teacher = FUNCTIONS[name], normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    finer = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(loss(7 * student, teacher), loss(student, teacher))
    torch.testing.assert_close(loss(student, finer), loss(student, teacher))


def test_the_order_of_channels_is_not_seen_by_nst_nor_that_of_numbers_by_sp():
    student, teacher = normal(3, 4, 2, 2), normal(3, 5, 2, 2, seed=1)
    for loss in (sp, nst):
        torch.testing.assert_close(loss(student[:, [2, 0, 3, 1]], teacher), loss(student, teacher))


def test_of_one_image_no_relation_is_apart():
    one, other = normal(1, 4), normal(1, 4, seed=1)
    assert consecutive(one, other).item() == 0
    assert max(sp(one, other).item(), congruence(one, other, 0.4, 2).item()) < 1e-30


# --------------------------------------------------------------------------------------------------------- KD-SVD


def test_the_signs_in_which_a_decomposition_happens_to_come_do_not_count(monkeypatch):
    """Two values were possible, 0.02903 and 0.03349; the largest number of a teacher's vector is positive in the first."""
    decompose, seed = torch.linalg.svd, [0]

    def turned(matrix, full_matrices):
        left, values, right = decompose(matrix, full_matrices=full_matrices)
        seed[0] += 1
        signs = normal(*values.shape, seed=seed[0]).sign()
        return left * signs[:, None], values, right * signs[:, :, None]

    def found():
        student = FS.clone().requires_grad_()
        value = kdsvd([student, FT], [FT, FS])
        return value.detach(), torch.autograd.grad(value.sum(), student)[0]

    value, gradient = found()
    monkeypatch.setattr(torch.linalg, "svd", turned)
    for _ in range(8):
        again = found()
        torch.testing.assert_close(again[0], value)
        torch.testing.assert_close(again[1], gradient)
    _, other = directions(FS, FT, 1)
    assert (other.gather(1, other.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_right_vector_has_torchs_gradient_and_a_finite_one_where_singular_values_are_equal():
    for shape in ((2, 6, 4), (2, 4, 6)):  # more positions than channels, and fewer
        matrix, weights = normal(*shape).requires_grad_(), normal(shape[2], shape[2], seed=1)

        def of(vectors, weights=weights):
            return (vectors @ vectors.mT * weights).sum()  # no matter of signs

        (found,) = torch.autograd.grad(of(RightVectors.apply(matrix, 2)), matrix)
        right = torch.linalg.svd(matrix, full_matrices=True).Vh.mT if shape[1] > shape[2] else None
        if right is None:
            right = torch.linalg.svd(matrix, full_matrices=False).Vh.mT
        (expected,) = torch.autograd.grad(of(right[..., :2]), matrix)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for matrix in (torch.eye(4)[None], torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        matrix.requires_grad_()
        (RightVectors.apply(matrix, 2) * normal(4, 2, dtype=torch.float32)).sum().backward()
        assert torch.isfinite(matrix.grad).all()


# ----------------------------------------------------------------------------------------------------------- terms

SAME = {name: DIMS[name] for name in ("stage1", "stage2", "stage3", "prelogits")}
TERMS = {
    "sp": ((), {}, WIDE), "sp, of a stage": ((), {"feature": "stage1", "teacher_feature": "stage2"}, WIDE), "cc": ((), {}, WIDE),
    "cc, code": ((), {"form": "code"}, WIDE), "nst": ((6,), {}, WIDE), "ickd": ((6,), {}, WIDE),
    "kdsvd": ((6,), {}, SAME), "kdsvd, of two": ((6,), {"features": ["stage1", "stage2"], "vectors": 2}, SAME),
}  # fmt: skip


@pytest.mark.parametrize("case", TERMS)
def test_a_term_trains_all_that_is_its_own_and_the_student_and_nothing_of_the_teacher(case):
    shape, fields, teacher = TERMS[case]
    made = term(case.partition(",")[0], teacher=teacher, **fields)
    given = feature_pair(made, teacher=teacher)
    value = made(given)
    assert value.shape == shape
    value.mean().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in given.student.features.values())
    assert all(x.grad is None for x in given.teacher.features.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in made.parameters())
    half, whole = (feature_pair(made, torch.bfloat16, teacher=teacher) for _ in range(2))
    for out in (whole.student, whole.teacher):
        out.features.update({k: v.detach().float() for k, v in out.features.items()})
    with torch.autocast("cpu", torch.bfloat16):
        found = made(half)
    torch.testing.assert_close(found, made(whole), rtol=0, atol=0)


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_any_two_networks_but_for_kdsvd_those_of_the_same_channels(names):
    size = 224 if "deit" in names[0] else 32
    (teacher_dims, teacher), (student_dims, student) = (shapes(name, size) for name in names)
    maps = zip((teacher_dims, student_dims), PAIRS[names][2:], strict=True)
    of_teacher, of_student = ([dims[f"stage{k}"] for k in places] for dims, places in maps)
    for name, shape in (("sp", ()), ("cc", ()), ("nst", (2,)), ("ickd", (2,)), ("kdsvd", (2,))):
        with torch.device("meta"):
            if name == "kdsvd" and of_teacher != of_student:
                with pytest.raises(ConfigError, match="needs as many channels of both networks"):
                    term(name, student_dims, teacher_dims)
                continue
            assert term(name, student_dims, teacher_dims)(pair(student, teacher)).shape == shape


# ----------------------------------------------------------------------------------------------------- MLKD, views

TWO_VIEWS = "method.views=[weak,strong]"


def test_what_the_strong_view_of_mlkd_says_is_at_the_temperatures_that_are_not_misplaced():
    weak, strong = mlkd_views()
    plain_weak, plain_strong = mlkd_views(misplaced=[])
    assert plain_strong > strong
    assert plain_weak < weak
    of_all = [mlkd_views(temperatures=[t], misplaced=[])[1].item() for t in (2.0, 3.0, 4.0, 5.0, 6.0)]
    assert plain_strong.item() == pytest.approx(sum(of_all))
    assert strong.item() == pytest.approx(sum(of_all[1:4]))


def test_standardized_logits_are_for_the_divergence_of_mlkd_alone():
    plain, scaled = (term("mlkd", standardize=mode) for mode in ("none", "zscore"))
    alike = pair(2 * ZT + 1, ZT)  # z-scores of the same logits
    assert plain(alike) > scaled(alike) > 0
    assert scaled(replace(alike, view="strong")).item() == pytest.approx(0, abs=1e-9)


def test_every_term_is_added_on_each_view_of_an_image():
    config, method, loader, _ = make("distill", TWO_VIEWS, "loss=mlkd")
    batch = loader.batch(0)
    views = batch["labeled"].views
    assert not torch.equal(views["weak"].pixels, views["strong"].pixels)
    out = method(batch, ctx(config, 0)).losses
    assert set(out) == {"ce", "mlkd", "strong_ce", "strong_mlkd"}
    pairs = [method.pair(batch, ctx(config, 0), view=view) for view in ("weak", "strong")]
    assert [given.view for given in pairs] == ["weak", "strong"]
    terms = method.losses().terms
    for name, given in zip(("", "strong_"), pairs, strict=True):
        torch.testing.assert_close(out[f"{name}ce"], 0.1 * terms["ce"](given).mean())
        torch.testing.assert_close(out[f"{name}mlkd"], 0.9 * terms["mlkd"](given))


def test_the_weak_view_alone_is_what_distill_always_was():
    with Composer() as composer:
        known, same, other = (
            run_key(composer.typed(["method=distill", "loss=kd", *more]))
            for more in ([], ["method.views=[weak]"], [TWO_VIEWS])
        )
    assert known == same != other


def test_a_strong_view_alone_is_shown_where_it_is_asked_for():
    config, method, loader, _ = make("distill", "method.views=[strong]", "loss=kd")
    assert set(method(loader.batch(0), ctx(config, 0)).losses) == {"strong_ce", "strong_kd"}


def test_both_views_of_an_image_are_mixed_alike():
    config, method, loader, _ = make("distill", TWO_VIEWS, "views.mix.kind=mixup", "loss=kd")
    batch = loader.batch(0)
    one, other = (view.unmixed for view in batch["labeled"].views.values())
    assert torch.equal(one.partner, other.partner)
    assert torch.equal(one.share, other.share)
    assert all(torch.isfinite(value) for value in method(batch, ctx(config, 0)).losses.values())


# -------------------------------------------------------------------------------------------------------- refusals

TWICE = "student.args.width=8"  # as the teacher's
REFUSED = {
    "other channels": ([*TEACHER, "loss=kdsvd"], "loss.kdsvd: kdsvd needs as many channels of both networks, and stage1 has 4 of the student beside 8"),
    "one stage": ([*TEACHER, TWICE, "loss=kdsvd", "loss.kdsvd.features=[stage1]"], "loss.kdsvd: kdsvd goes from stage to stage and has one here"),
    "too many vectors": ([*TEACHER, TWICE, "loss=kdsvd", "loss.kdsvd.vectors=9"], "loss.kdsvd: vectors: 9, and stage1 has 8"),
    "more vectors than positions": ([*TEACHER, TWICE, "loss=kdsvd", "loss.kdsvd.vectors=8"], "vectors: 8, and stage3 has 4"),
    "a captured decomposition": ([*TEACHER, TWICE, "loss=kdsvd", "schedule.graph=true"], "schedule.graph: method=distill waits for a decomposition (aten._linalg_svd, kdsvd.py"),
    "an absent stage": ([*TEACHER, "loss=sp", "loss.sp.feature=stage7"], "loss.sp: the student gives no stage7"),
    "no stage of the teacher": ([*TEACHER, "loss=ickd", "loss.ickd.teacher_feature=stage7"], "loss.ickd: the teacher gives no stage7"),
    "prelogits": ([*TEACHER, "loss=ickd", "loss.ickd.feature=prelogits"], "loss.ickd.feature"),
    "no form": ([*TEACHER, "loss=cc", "loss.cc.form=kernel"], "loss.cc.form: 'kernel' is not allowed (allowed: code, paper)"),
    "no teacher": (["teacher=none", "loss=sp"], "loss.sp: sp needs a teacher, but teacher.source=none"),
    "the weak view alone": ([*TEACHER, "loss=mlkd"], "loss.mlkd: mlkd is about the views weak, strong of labeled images, and method=distill shows it weak"),
    "another method": ([*TEACHER, "method=sho", "loss=mlkd"], "method=sho shows it weak; choose method=distill and set method.views=[weak,strong]"),
    "all misplaced": ([*TEACHER, TWO_VIEWS, "loss=mlkd", "loss.mlkd.temperatures=[2.0,6.0]"], "loss.mlkd.misplaced: must be some of temperatures and not all"),
    "a temperature twice": ([*TEACHER, TWO_VIEWS, "loss=mlkd", "loss.mlkd.temperatures=[2.0,2.0,6.0,4.0]"], "loss.mlkd.temperatures: each counts once"),
    "a view twice": ([*TEACHER, "loss=kd", "method.views=[weak,weak]"], "method.views: each is shown once"),
    "no view": ([*TEACHER, "loss=kd", "method.views=[]"], "method.views"),
    "an unknown view": ([*TEACHER, "loss=kd", "method.views=[wild]"], "method.views"),
    "views that learn": ([*TEACHER, "loss=kd", TWO_VIEWS, "views=ctaugment"], "views.strong.policy: ctaugment learns from a view `probe`"),
}  # fmt: skip


@each("refused", REFUSED.items())
def test_what_cannot_work_is_refused_in_one_line(refused):
    _, (overrides, message) = refused
    with Composer() as composer, pytest.raises(ConfigError) as caught:
        check(composer.job(["method=distill", *FAST, *overrides]))
    (line,) = caught.value.lines
    assert message in line


@pytest.mark.parametrize("name", ["sp", "nst", "ickd", "kdsvd"])
def test_a_student_without_stages_is_refused(name):
    config = lookup("loss", name, name).Config(name=name)
    flat = {"prelogits": 8, "tokens": 8}
    with pytest.raises(ConfigError, match=f"^loss.{name}: the student gives no stages; it gives prelogits, tokens"):
        LossSet({name: config}, 0, TermSpec(3, len(LABELS), flat, WIDE, LABELS))
