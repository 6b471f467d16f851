"""Every method and every loss term over several processes: as one process has it, and alike on all of them.

One pair of processes goes over all cases; the reference is this process, with the same global batch.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from kdrun.config.compose import Composer
from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import _REGISTRY, lookup, registered
from kdrun.core.world import World, enter, world
from kdrun.losses.logits import KD
from kdrun.methods.distill import Distill
from kdrun.methods.step import Context
from kdrun.training import accumulation
from kdrun.training.accumulation import gradients, whole
from kdrun.training.assembly import Assembly
from kdrun.training.distributed import average_gradients, prepare, refuse_over_ranks, settle_statistics
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.tracking import Tracking
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import EXTRA, METHODS, OF_SEVERAL, SEVERAL, TWO, VITS, assembled, make
from tests.each import each
from tests.ranks import over

lookup("loss", "ce", "")
STEPS = 5
AT = 11  # where the step is taken: warm-ups are over, and a small last batch is met
# Terms that do not go with the others: of transformers, of mixed images, of networks as wide as each other, of several
# teachers.
OTHERS = ("vitkd", "linearity", "fsp", "kdsvd", *OF_SEVERAL)
TERMS = sorted(set(registered("loss")) - set(OTHERS))
# No two processes drop the same, so what one process has is no measure.
DROPPING_TEACHER = (
    "teacher.model.name=wrn_16_1",
    "teacher.model.args.width=null",
    "teacher.model.args.shortcut=null",
    "+teacher.model.args.drop_rate=0.3",
)


@dataclass(frozen=True)
class Case:
    method: str
    overrides: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    alike: bool = True
    """Whether one process has the same numbers."""
    near: float = 1e-5


SURE = "method.threshold=0.1"  # so that unlabeled images teach from the first step on
WITH_DIST = ("+loss/term@loss.dist=dist", "loss.dist.weight=2")
CASES = {
    **{name: Case(name, (SURE,) if "threshold" in lookup("method", name, "").Config.model_fields else ()) for name in METHODS},
    "terms": Case("distill", (), tuple(TERMS)),
    "weights of a memory": Case("uncertainty_distill", ("loss=wttm_crd", "loss.crd.num_negatives=8")),
    "gathered": Case("distill", (), ("ce", "dist", "crd", "rkd")),
    "vitkd": Case("distill", ("loss=kd", *VITS), ("vitkd", "ce", "dist")),
    "as wide": Case("distill", ("student.args.width=16",), ("fsp", "kdsvd", "ce")),
    "two views": Case("distill", ("method.views=[weak,strong]", "loss=mlkd")),
    "correlation of the code": Case("distill", ("loss=cc", "loss.cc.form=code")),
    "several teachers": Case("sho", ("loss=kd", *SEVERAL), (*OF_SEVERAL, "dist", "ce")),
    "exits, the paper's": Case("supervised", ("loss=byot",)),
    "exits, the code's": Case("supervised", ("loss=byot", "loss.byot.form=code")),
    "linearity": Case("mixup_distill", ("views.mix.kind=mixup",), ("linearity", "kd", "ce")),
    "linearity of the teacher": Case(
        "mixup_distill", ("views.mix.kind=cutmix", "loss=kd_linearity", "loss.linearity.of=teacher")
    ),
    "pcgrad": Case("sho", ("method.pcgrad=true", *TEACHER, "loss=kd", "loss.kd.temperature=1")),
    "alignment": Case("dhkd", ("method.gradient_alignment=true",)),
    "sho with a statistic": Case("sho", ("loss=kd", *WITH_DIST)),
    "normalized weights": Case("uncertainty_distill", ("method.normalize_weights=true",)),
    "mc dropout": Case("uncertainty_distill", ("method/uncertainty=mc_dropout", *DROPPING_TEACHER), alike=False),
    "dropout": Case("supervised", ("students=[{name: wrn_16_1, args: {drop_rate: 0.3}}]",), alike=False),
    "learned views": Case("fixmatch", ("views=ctaugment", SURE)),
    "three passes": Case("fixmatch", ("method.joint_forward=false", SURE)),
    "averages, clipping": Case("fixmatch", ("schedule.ema_decay=0.9", "schedule.clip_norm=0.1", SURE)),
    "three peers": Case("peer_fixmatch", (TWO.replace("]", ", {name: resnet8, args: {width: 3}}]"), SURE)),
    "crops": Case("supervised", ("views=imagenet", "views.size=8")),
    "small last batches": Case(
        "supervised", ("dataset.num_labels=44", "schedule.epoch=ceil", "schedule.last_batch=small")
    ),
    "half precision": Case("distill", ("schedule.precision=bf16",), near=0.05),
    "parts": Case("fixmatch", ("schedule.accumulate=2", SURE, "views=ctaugment")),
    "chunks": Case("sho", ("method.pcgrad=true", "schedule.accumulate=2", *TEACHER, "loss=kd"), alike=False),
    "labels in chunks": Case("flexmatch", ("schedule.accumulate=2", SURE), alike=False),
    "annealing": Case("uda", ("method.annealing=log", SURE)),
    "live labels": Case("kd_fixmatch", ("method.live={name: freematch}",)),
    "two momenta": Case("distill", ("schedule.optimizer=dot",)),
    "one share, passes apart": Case("mixmatch", ("method.per=batch", "method.interleave=false", "loss=kd", *TEACHER)),
    "aligned by this batch": Case("remixmatch", ("method.alignment=ema", "views=usb", "method.strong_views=1")),
    "averaged teacher": Case("simmatch", ("method.teacher_decay=0.9", "method.start_step=1", SURE)),
    "batch_norm=local": Case("distill", ("schedule.batch_norm=local",), alike=False),
}  # fmt: skip


def configs() -> dict[str, RunConfig]:
    """Of all cases."""
    with Composer() as composer:
        return {name: config_of(composer, case) for name, case in CASES.items()}


def config_of(composer: Composer, case: Case) -> RunConfig:
    config = composer.typed([f"method={case.method}", *FAST, *EXTRA.get(case.method, []), *case.overrides])
    if not case.terms:
        return config
    own = {name: lookup("loss", name, "").Config(name=name, weight=1.0) for name in case.terms}
    return config.replace(losses=own)


def flat(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def first_step(run: Any, exact: bool = True) -> dict[str, Any]:
    """What a step of the whole batch comes to: losses, metrics, the gradient of each loss and that of `backward`."""
    method, config = run.method, run.config
    if (
        exact and config.schedule.precision == "fp32"
    ):  # up to the logits in float64: no activation is on another side of 0
        method.double()
        if run.teacher is not None:
            run.teacher.network.double()
    ctx = Context(config.seed, AT, 20, run.device, part=world().part)
    batch = run.loader.batch(AT)
    out = method(batch, ctx)
    parameters = [p for p in method.parameters() if p.requires_grad]
    by_loss = {}
    for name, loss in out.losses.items():
        given = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        by_loss[name] = world().mean(flat(parameters, given))
    method.zero_grad()
    method.backward(out.losses, lambda loss: loss)
    average_gradients(method)
    whole = flat(parameters, [p.grad for p in parameters])
    method.finish_step()
    if method.probes:
        with torch.no_grad():
            method.eval()
            method.probe(batch)
    buffers = [b.double().flatten() for b in method.buffers() if b.is_floating_point()]
    return {
        "losses": {name: world().mean(loss).item() for name, loss in out.losses.items()},
        "metrics": {name: world().mean(value.float()).item() for name, value in out.metrics.items()},
        "gradients": {name: value.cpu() for name, value in by_loss.items()}, "gradient": whole.cpu(),
        "buffers": torch.cat(buffers).cpu(),
    }  # fmt: skip


def digest(loop: Loop) -> str:
    """Of all that training changes."""
    found = hashlib.sha256()
    states = [loop.method.state_dict().values(), *(s.values() for s in loop.optimizer.state_dict()["state"].values())]
    for value in [value for state in states for value in state] + (loop.ema.shadow if loop.ema else []):
        if isinstance(value, Tensor):
            found.update(value.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def taken(config: RunConfig, steps: int) -> tuple[str, str]:
    """The state after so many steps of the loop, and as it is evaluated."""
    run = assembled(config, device())
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            run.method,
            run.loader,
            Evaluator({}, 1000),
            run.clock,
            Path(folder),
            Tracking(),
            "key",
            hidden=run.labels.to(run.device),
        )
        take = loop._steps()
        for step in range(steps):
            take(step)
        run.loader.close()
        state = digest(loop)
        settle_statistics(run.method)
        return state, digest(loop)


def device() -> str:
    over_nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return f"cuda:{world().rank}" if over_nccl else "cpu"


def asked(cases: dict[str, RunConfig]) -> dict[str, Any]:
    """What the ranks find, or this process alone, by case."""
    found = {}
    for name, config in cases.items():
        run = assembled(config, device())
        prepare(run.method)
        found[name] = first_step(run)
        run.loader.close()
        if world().size > 1:
            found[name]["states"] = [taken(config, STEPS) for _ in range(1 + (name in AGAIN))]
    return found


AGAIN = ("chunks", "learned views", "dropout", "mc dropout")  # that are also begun anew
THREE = ("gathered", "pcgrad", "linearity")


@pytest.fixture(scope="module")
def cases():
    return configs()


@pytest.fixture(scope="module")
def of_two(cases, tmp_path_factory):
    return over(2, tmp_path_factory.mktemp("two"), asked, cases)


@pytest.fixture(scope="module")
def alone(cases):
    return asked({name: config for name, config in cases.items() if CASES[name].alike})


def compare(found: dict[str, Any], one: dict[str, Any], near: float = Case.near) -> None:
    """What ranks found is what one process did."""
    assert found["losses"] == pytest.approx(one["losses"], rel=near, abs=1e-6)
    assert found["metrics"] == pytest.approx(one["metrics"], rel=near, abs=1e-6, nan_ok=True)
    for loss, wanted in {**one["gradients"], "all": one["gradient"]}.items():
        got = {**found["gradients"], "all": found["gradient"]}[loss]
        assert wanted.norm() > 0, loss
        assert (got - wanted).norm() <= near * wanted.norm(), loss
    # running statistics, memories, rates
    torch.testing.assert_close(found["buffers"], one["buffers"], rtol=near, atol=near)


@each("name", [name for name, case in CASES.items() if case.alike])
def test_a_step_over_two_processes_has_the_losses_and_gradients_of_one(name, of_two, alone):
    compare(of_two[0][name], alone[name], CASES[name].near)


@each("name", CASES)
def test_processes_stay_bitwise_equal_and_do_the_same_again(name, of_two):
    states = [rank[name]["states"] for rank in of_two]
    local = CASES[name].overrides == ("schedule.batch_norm=local",)
    assert (states[0][0][0] != states[1][0][0]) == local  # each has statistics of its own
    assert states[0][0][1] == states[1][0][1]  # until they are settled
    assert len(states[0]) == 1 + (name in AGAIN)
    assert len(set(states[0])) == 1


def test_three_processes_share_a_batch_too(cases, tmp_path):
    chosen = {name: cases[name].replace(schedule=cases[name].schedule.replace(batch_size=15)) for name in THREE}
    ranks, one = over(3, tmp_path, asked, chosen), asked(chosen)
    for name in THREE:
        compare(ranks[0][name], one[name])
        assert len({rank[name]["states"][0] for rank in ranks}) == 1


# ------------------------------------------------------------------------------------------------------ accumulation


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        without_batch_norm(child)


def accumulated(config: RunConfig, batch_norm: bool = False) -> dict[str, Any]:
    """As `first_step`, without the gradients of single losses."""
    run = assembled(config)
    if not batch_norm:
        without_batch_norm(run.method)
    method, count = run.method.double(), config.schedule.accumulate
    if run.teacher is not None:
        run.teacher.network.double()
    prepare(method)
    ctx, batch = Context(config.seed, AT, 20, run.device), run.loader.batch(AT)
    run.loader.close()
    if count > 1 and not whole(config):
        out = gradients(method, batch, ctx, count, partial(method.backward, scale=lambda loss: loss), nullcontext)
    else:
        out = method(batch, ctx)
        method.backward(out.losses, lambda loss: loss)
    method.finish_step()
    values = {
        name: {key: value.item() for key, value in found.items()}
        for name, found in (("losses", out.losses), ("metrics", out.metrics))
    }
    guesses = None if out.guesses is None else [getattr(out.guesses, f.name).tolist() for f in fields(out.guesses)]
    parameters = [p for p in method.parameters() if p.requires_grad]
    buffers = [b.double().flatten() for b in method.buffers() if b.is_floating_point()]
    return {
        **values, "guesses": guesses, "gradients": {}, "gradient": flat(parameters, [p.grad for p in parameters]),
        "buffers": torch.cat(buffers),
    }  # fmt: skip


ACCUMULATED = [name for name, case in CASES.items() if case.alike and case.near == Case.near and name != "parts"]


@each("name", ACCUMULATED)
def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole(name, cases):
    config = cases[name]
    found, one = (accumulated(config.replace(schedule=config.schedule.replace(accumulate=k))) for k in (2, 1))
    compare(found, one)
    if config.method.name != "peer_fixmatch":  # there the guesses of several students follow one another in each part
        assert found["guesses"] == one["guesses"]


IN_CHUNKS = {
    "one pass": ("distill", "loss=dist", *TEACHER),
    "two backward passes": ("sho", "method.pcgrad=true", *TEACHER, "loss=kd"),
    "several passes": ("sho", "method.concatenate=false", *TEACHER, "loss=kd", *WITH_DIST),
    "kept statistics": ("mixup_distill", "views.mix.kind=mixup", "loss=kd_linearity"),
}


@each("name", IN_CHUNKS)
def test_passes_that_are_made_again_are_as_they_were_with_batch_norm(name, monkeypatch):
    method, *overrides = IN_CHUNKS[name]
    with Composer() as composer:
        config = composer.typed(
            [f"method={method}", *FAST, *EXTRA.get(method, []), *overrides, "schedule.accumulate=2"]
        )
    assert whole(config)
    found = accumulated(config, batch_norm=True)
    monkeypatch.setattr(accumulation, "checkpoint", lambda function, *given, **_: function(*given))
    compare(found, accumulated(config, batch_norm=True))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["schedule.accumulate=3"], "a step has 16 labeled images, which schedule.accumulate=3 parts cannot share equally; give a multiple of 3"),
        (["schedule.accumulate=3", "loss=dist"], None),
        (["schedule.accumulate=2", "loss=dist", "schedule.compile=true"], "which are not compiled; set schedule.compile to null"),
        (["schedule.accumulate=2", "schedule.compile=true"], None),
    ],
)  # fmt: skip
def test_what_cannot_be_done_in_parts_is_refused(overrides, says):
    with Composer() as composer:
        outline = Assembly.outline(composer.typed([*FAST, "method=distill", *TEACHER, "loss=kd", *overrides]))
    with pytest.raises(ConfigError, match=says) if says else nullcontext():
        refuse_over_ranks(outline)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def three():
    """This process as one of three, which asks the others nothing."""
    enter(World(0, 3))
    yield
    enter(World())


class Silent(Distill):
    """A method of a user, who has not thought of ranks."""


class SilentTerm(KD):
    """A term of a user, likewise."""


class Statistic(KD):
    """Says that it is a statistic, and that ranks may take its mean."""

    @classmethod
    def needs(cls, config):
        return Needs(teacher=True, over_ranks="mean", per_sample=False)

    def forward(self, pair):
        return super().forward(pair).mean()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"schedule\.batch_size: a step has 16 labeled images, which 3 processes cannot share equally; give a multiple of 3"),
        (
            ["schedule.batch_size=15", "schedule.epoch=ceil", "schedule.last_batch=small"],
            r"schedule\.last_batch: small leaves a last batch of 5 labeled images, which 3 processes",
        ),
        (["schedule.batch_size=15", "schedule.graph=true"], r"schedule\.graph: .* this run has 3; set it to false"),
        (["schedule.batch_size=15", "method=silent"], r"method=silent \(.*test_ranks\.py\) does not say .* docs/extend/method\.md"),
        (["schedule.batch_size=15", "loss=silent"], r"loss\.kd: silent \(.*test_ranks\.py\) does not say .* docs/extend/loss\.md"),
        (["schedule.batch_size=15"], None),
        (["method=zero_shot"], None),
    ],
)  # fmt: skip
def test_what_ranks_cannot_share_is_refused_before_anything_runs(cases, three, monkeypatch, overrides, says):
    monkeypatch.setitem(_REGISTRY["method"], "silent", Silent)
    monkeypatch.setitem(_REGISTRY["loss"], "silent", SilentTerm)
    plain = [one for one in overrides if "=silent" not in one]
    with Composer() as composer:
        config = composer.typed([*FAST, "method=distill", *TEACHER, "loss=kd", *plain])
    if "method=silent" in overrides:
        config = config.replace(method=config.method.replace(name="silent"))
    if "loss=silent" in overrides:
        config = config.replace(losses={**config.losses, "kd": config.losses["kd"].replace(name="silent")})
    outline = Assembly.outline(config)
    if says is None:
        refuse_over_ranks(outline)
        return
    with pytest.raises(ConfigError, match=says) as refused:
        refuse_over_ranks(outline)
    assert len(refused.value.lines) == 1


def test_a_statistic_that_says_it_is_a_mean_is_refused(three, monkeypatch):
    config, method, loader, _ = make("distill", "loss=kd", "schedule.batch_size=15")
    method.losses().terms["kd"].__class__ = Statistic
    method.losses().terms["kd"].needed = Statistic.needs(None)
    with pytest.raises(ConfigError, match=r"loss\.kd: kd gives a statistic of the batch, and says over_ranks=.mean."):
        method(loader.batch(0), Context(config.seed, 0, 20, torch.device("cpu"), part=world().part))
