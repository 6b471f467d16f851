"""SimKD, DiffKD, BYOT and several teachers: golden values, values by hand, what is kept, what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdrun.cli.export import main as export
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup
from kdrun.core.seeding import normal
from kdrun.losses.byot import hint, hint_of_batch, soft_cross_entropy
from kdrun.losses.camkd import confidence_shares
from kdrun.losses.diffusion import denoised, kept_shares, noisy, times
from kdrun.losses.ebkd import entropy_shares
from kdrun.losses.fitnet import fitnet
from kdrun.losses.logits import kd, mean_of_probabilities
from kdrun.losses.members import to_members
from kdrun.losses.term import Pair, TermSpec
from kdrun.methods.simkd import SimKD
from kdrun.models.network import MAP
from kdrun.models.output import Output
from kdrun.runs.finished import FinishedRun
from kdrun.runs.trained import open_trained
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble, Tempered
from kdrun.training.check import check
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import OF_SEVERAL, SEVERAL, VITS, ctx, fit, make
from tests.unit.test_later_losses import FS, FT, ZS, ZT, Y

ZT2 = torch.tensor([[0, 2, 0.5], [0.6, -1, 1.2]], dtype=torch.float64)
BOTH = torch.stack([ZT, ZT2], 1)
PIXELS = torch.arange(2 * 64).view(2, 1, 8, 8).to(torch.uint8)
KEPT, ONE = kept_shares(), torch.ones(1, 1, 1, 1)


def weighed(shares):
    return (shares * to_members(ZS, BOTH, 4.0)).sum(1)


GOLDEN = {
    "simkd": (lambda: fitnet(FS, FT), 1.98875),
    "byot, soft cross entropy": (lambda: soft_cross_entropy(ZS, ZT, 3.0), 1.03517429811643),
    "byot, norm of a batch": (lambda: hint_of_batch(ZS, ZT), 2.11660104885167),
    "mean of losses": (lambda: weighed(torch.full((2, 2), 0.5).double()), 0.184524632163580),
    "mean of logits": (lambda: kd(ZS, BOTH.mean(1), 4.0), 0.121071629253204),
    "mean of probabilities": (lambda: kd(ZS, mean_of_probabilities(BOTH.transpose(0, 1), 4.0), 4.0), 0.117031096375697),
    "camkd, the code's": (lambda: weighed(confidence_shares(BOTH, Y)) / 2, 0.0992212317119311),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    value, expected = GOLDEN[name]
    assert value().mean().item() == pytest.approx(expected, rel=1e-12)


def test_golden_values_of_the_diffusion():
    assert times(5) == [400, 300, 200, 100, 0]
    assert KEPT[times(5)].tolist() == pytest.approx(
        [0.19357197, 0.39401102, 0.65634704, 0.89514136, 0.99989998], rel=1e-6
    )
    for noise, expected in ((0.0, 2.27289176), (0.5, 1.25234807)):
        found = denoised(ONE, lambda x, time, noise=noise: torch.full_like(x, noise), KEPT, times(5))
        assert found.item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- diffusion


def test_a_denoiser_that_knows_the_noise_finds_the_feature():
    """Whatever noise was added at the first time is taken out in all the steps."""
    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    start = noisy(clean, noise, KEPT[400].expand(2))
    torch.testing.assert_close(denoised(start, lambda x, time: noise, KEPT, times(5)), clean, atol=1e-4, rtol=1e-4)


def test_normal_numbers_of_uniform_ones():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    found = normal(uniform)
    assert found.mean().abs() < 0.01
    assert found.std().item() == pytest.approx(1, abs=0.01)
    ends = normal(torch.tensor([0.0, 1 - 2**-24]))
    assert torch.isfinite(ends).all()
    assert ends[0] == -ends[1]


def test_what_diffkd_learns_from_the_teacher_does_not_move_the_student_and_nothing_moves_the_teacher():
    spec = TermSpec(3, 9, {MAP: 2}, {MAP: 4}, torch.zeros(9, dtype=torch.int64))
    term = lookup("loss", "diffkd", "")(lookup("loss", "diffkd", "").Config(name="diffkd"), spec)
    student = Output(torch.randn(5, 3, requires_grad=True), {MAP: torch.randn(5, 2, 4, 4, requires_grad=True)})
    teacher = Output(torch.randn(5, 3, requires_grad=True), {MAP: torch.randn(5, 4, 2, 2, requires_grad=True)})
    pair = Pair(student, teacher, None, torch.arange(5), 0.0, torch.rand)
    _, _, wrong, rebuilt = term.sites["map"](torch.randn(5, 2, 2, 2), teacher.features[MAP].detach(), pair)
    given = [student.logits, student.features[MAP], teacher.logits, teacher.features[MAP]]
    assert wrong.shape == rebuilt.shape == (5,)
    value = term(pair)
    assert value.shape == (5,)
    gradients = torch.autograd.grad(value.sum(), given, allow_unused=True)
    assert [g is not None for g in gradients] == [True, True, False, False]
    # the autoencoder is taught by what it rebuilds alone
    found, target, *_ = term.sites["map"](torch.randn(5, 2, 2, 2), teacher.features[MAP].detach(), pair)
    assert not target.requires_grad
    assert found.shape == target.shape == (5, 2, 2, 2)


def test_diffkd_draws_from_the_run_alone():
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config, method, loader, _ = make("distill", "loss=diffkd")
        losses.append(method(loader.batch(0), ctx(config, 3)).losses["diffkd"].item())
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------------------ exits


def test_byot_by_hand():
    """Two classes, T = 2: p' = (3/4, 1/4) beside (1/2, 1/2); features (3, 0) and (0, 4) apart."""
    end = torch.tensor([[2 * math.log(3), 0.0]]).double()
    assert soft_cross_entropy(torch.zeros(1, 2).double(), end, 2.0).item() == pytest.approx(math.log(2))
    one, other = torch.tensor([[3.0, 0], [0, 1]]), torch.tensor([[0.0, 4], [0, 1]])
    assert hint(one, other).tolist() == [25, 0]
    assert hint_of_batch(one, other).item() == 5


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_end_of_a_network_learns_nothing_from_its_exits_and_its_stages_do(form):
    config, method, loader, _ = make("supervised", "loss=byot", f"loss.byot.form={form}")
    term, view = method.losses().terms["byot"], loader.batch(0)["labeled"]
    assert len(term.exits) == 2
    assert [isinstance(one.adapter, nn.Linear) for one in term.exits] == [True, form == "paper"]
    out = method.students["student"](view.views["weak"], term.needed.features)
    pair = Pair(out, None, view.target, view.views["weak"].index, 0.0, ctx(config, 0).draw)
    value = term(pair)
    assert value.shape == ((16,) if form == "paper" else ())
    found = torch.autograd.grad(value.sum(), [out.logits, *out.features.values()], allow_unused=True)
    given = dict(zip(["logits", *out.features], found, strict=True))
    assert {name for name, gradient in given.items() if gradient is not None} == {"stage1", "stage2"}


def test_exits_are_left_out_of_what_a_run_leaves():
    _, method, _, _ = make("supervised", "loss=byot")
    assert {name.partition(".")[0] for name in method.state_dict()} == {"students", "loss_sets"}


# ------------------------------------------------------------------------------------------------ several teachers


def test_shares_by_hand():
    """Two classes: a teacher that knows nothing has entropy log 2, one that is certain 0; of the labels' cross entropies 0
    and log 3 softmax makes 1/4 and 3/4."""
    certain, uniform = torch.tensor([100.0, 0]), torch.tensor([0.0, 0])
    members = torch.stack([certain, uniform])[None].double()
    assert entropy_shares(members)[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-12)
    third = torch.tensor([math.log(0.5), 0.0]).double()
    members = torch.stack([certain.double(), third])[None]
    assert confidence_shares(members, torch.tensor([0]))[0].tolist() == pytest.approx([0.75, 0.25])
    assert torch.isfinite(entropy_shares(torch.full((1, 2, 3), 1.0) * torch.tensor([1e4, 0, 0]))).all()


def test_the_mean_of_losses_has_the_gradient_of_the_loss_of_the_mean_of_probabilities():
    """At each temperature; of the mean of logits it is another one."""

    def gradient(loss):
        student = ZS.clone().requires_grad_()
        return torch.autograd.grad(loss(student).sum(), student)[0]

    for temperature in (1.0, 4.0):
        of_losses = gradient(lambda s, t=temperature: to_members(s, BOTH, t).mean(1))
        mean = mean_of_probabilities(BOTH.transpose(0, 1), temperature)
        torch.testing.assert_close(of_losses, gradient(lambda s, t=temperature, m=mean: kd(s, m, t)))
        of_logits = gradient(lambda s, t=temperature: kd(s, BOTH.mean(1), t))
        assert (of_losses - of_logits).abs().max() > 1e-3


def test_an_ensemble_gives_the_mean_that_is_asked_and_its_members_behind_the_images():
    nets = [make("supervised", f"seed={seed}")[1].students["student"].eval() for seed in (1, 2, 3)]
    each = torch.stack([net(PIXELS).logits for net in nets], 1)
    for mean, expected in (("logits", each.mean(1)), ("probabilities", each.softmax(2).mean(1).log())):
        out = Teacher(Ensemble(nets, mean))(PIXELS, ("members",))
        torch.testing.assert_close(out.logits, expected)
        assert torch.equal(out.features["members"], each)
        first, second = out.split([1, 1])
        assert torch.equal(torch.cat([first.features["members"], second.features["members"]]), each)
    assert Ensemble(nets).dims == {"members": 3}


@pytest.mark.parametrize("loss", OF_SEVERAL)
def test_terms_of_several_teachers_see_both_streams_and_their_parts_are_the_whole(loss):
    """One pass of labeled and unlabeled images, or two: without batch normalisation the same losses."""
    found = []
    for concatenate in (True, False):
        config, method, loader, _ = make("sho", f"loss={loss}", *SEVERAL, f"method.concatenate={concatenate}")
        method.eval()
        out = method(loader.batch(0), ctx(config, 0))
        assert {loss, f"unlabeled_{loss}"} <= out.losses.keys()
        assert 0 < out.metrics[f"{loss}/largest_share"] <= 1
        found.append({name: value.item() for name, value in out.losses.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ simkd


def test_the_teachers_own_map_gets_the_teachers_logits_at_its_temperature():
    _, method, loader, _ = make("simkd")
    view, network = loader.batch(0)["labeled"].views["weak"], method.teacher.network
    for teacher in (network, Tempered(network, 4.0)):
        made = SimKD(method.config, replace(method.setup, teacher=Teacher(teacher)))
        out = made.teacher(view, (MAP,))
        torch.testing.assert_close(made._classified(out.features[MAP]), out.logits)


def test_the_teachers_classifier_and_the_students_own_stay_as_they_are():
    config, method, loader, _ = make("simkd", "schedule.weight_decay=0.1")
    parts = [method.classifier, method.students["student"].net.get_classifier()]
    before = [p.clone() for part in parts for p in part.parameters()]
    first = fit(config, method, loader, 0, 5)
    assert all(torch.equal(b, p) for b, p in zip(before, (p for part in parts for p in part.parameters()), strict=True))
    assert first[-1] < first[0]


def test_a_term_beside_it_sees_what_is_predicted():
    config, method, loader, _ = make("simkd", "loss=ce")
    method.eval()
    batch = loader.batch(0)
    logits = method.predict(batch["labeled"].views["weak"])["reused"]
    losses = method(batch, ctx(config, 0)).losses
    assert list(losses) == ["simkd", "ce"]
    torch.testing.assert_close(losses["ce"], nn.functional.cross_entropy(logits, batch["labeled"].target))


def test_a_finished_run_is_opened_exported_and_asked_without_its_teacher(train, outputs, tmp_path, capsys):
    assert train(*FAST, *TEACHER, "method=simkd", "schedule.ema_decay=0.9") == 0
    assert "parameters of the method's own" in capsys.readouterr().out
    [path] = outputs.glob("runs/simkd/*/*/*/record.json")
    run = FinishedRun.open(path.parent)
    trained = open_trained(run)
    assert trained.name == "reused"
    method = run.method()
    assert method.teacher is None
    own = sum(p.numel() for part in (method.projector, method.classifier) for p in part.parameters())
    assert trained.num_params == run.record["nets"]["student"]["num_params"] + own
    logits, target = run.predictions("test", "reused")
    pixels, _ = trained.shown.some(len(target))
    torch.testing.assert_close(trained.classifier(pixels), logits, atol=1e-5, rtol=1e-5)
    out = tmp_path / "net.pt2"
    export([f"run={run.directory}", "to=torch_export", f"out={out}", "repeats=0", "check=9", "threads=1"])
    torch.testing.assert_close(torch.export.load(out).module()(pixels[:7]), logits[:7], atol=1e-5, rtol=1e-5)
    with pytest.raises(
        KdrunError, match=r"reused is more than the weights of one network; choose to=onnx, torch_export$"
    ):
        export([f"run={run.directory}", "to=safetensors", f"out={tmp_path / 'n'}", "repeats=0"])
    with pytest.raises(ConfigError, match=r"predictor: student: not one of"):
        open_trained(run, "student")


# --------------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "a student without a map": (["method=simkd", *TEACHER, VITS[0]], r"method=simkd needs a convolutional student with one linear layer on the mean of its last map, and vit_tiny_patch16_224 is none"),
    "a teacher without a map": (["method=simkd", *TEACHER, *VITS[1:]], r"method=simkd needs a convolutional teacher .*, and vit_tiny_patch16_224 is none"),
    "no single classifier": (["method=simkd", *SEVERAL], r"method=simkd needs a convolutional teacher .*, and resnet8\+resnet8 is none"),
    "no teacher": (["method=simkd", "teacher=none"], r"method=simkd needs a teacher, but teacher.source=none"),
    "one teacher": (["loss=camkd", *TEACHER], r"loss.camkd: camkd weighs several teachers, and teacher.source=train is one; choose teacher=ensemble"),
    "members at a temperature": (["loss=ebkd", *SEVERAL, "teacher.temperature=2"], r"teacher.temperature: divides the logits of the ensemble, and loss.ebkd looks at its members"),
    "a mean of a single teacher": (["loss=kd", *TEACHER, "teacher.mean=logits"], r"teacher.mean: not for source=train; source=ensemble has it"),
    "members of a kept teacher": (["loss=ebkd", *SEVERAL, "teacher.cache.mode=clean", "views.weak.flip=false", "views.weak.pad=0"], r"members"),
    "nothing to match": (["loss=diffkd", *TEACHER, "loss.diffkd.map_weight=0", "loss.diffkd.logits_weight=0"], r"loss.diffkd: diffkd has nothing to match"),
    "no map to denoise": (["loss=diffkd", *TEACHER, VITS[0]], r"loss.diffkd: the student gives no map"),
    "no terms at all": (["method=distill", "loss=none"], r"loss: no term with a weight above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_runs(name):
    given, line = REFUSED[name]
    with Composer() as composer, pytest.raises(ConfigError, match=line) as refused:
        check(composer.typed([*FAST, *given]))
    assert len(refused.value.lines) == 1


def test_a_teacher_that_does_more_between_map_and_classifier_is_refused_before_the_first_step():
    _, method, loader, _ = make("simkd")
    start = type("Start", (), {"fresh": True, "first": 20, "batches": staticmethod(loader.batch)})
    assert method.before(start) == {}
    method.classifier.weight.data.neg_()
    with pytest.raises(ConfigError, match=r"method=simkd needs a convolutional teacher .* and resnet8 is none"):
        method.before(start)


def test_the_mean_of_an_ensemble_is_part_of_its_key_and_the_default_is_not():
    with Composer() as composer:
        plain, said, other = (
            run_key(composer.typed([*FAST, "loss=kd", *SEVERAL, *more]))
            for more in ([], ["teacher.mean=probabilities"], ["teacher.mean=logits"])
        )
    assert plain == said != other
