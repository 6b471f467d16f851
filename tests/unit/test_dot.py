"""The distillation-oriented trainer: two momenta, which losses go into which, and what it cannot be combined with."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError
from kdrun.core.world import world
from kdrun.training.accumulation import gradients
from kdrun.training.distributed import average_gradients, prepare
from kdrun.training.dot import DOT, parted
from kdrun.training.optimizer import make_optimizer
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import EXTRA, assembled, ctx, make
from tests.contract.test_ranks import without_batch_norm
from tests.ranks import over

GRADIENTS = ((0.5, -0.2), (0.4, -0.1), (0.3, 0.2))  # of the teacher's term, of the task


def theta() -> nn.Parameter:
    return nn.Parameter(torch.ones(1, dtype=torch.float64))


def moved(optimizer: DOT, parameter: nn.Parameter, of_teacher: float | None, of_task: float | None) -> float:
    """The parameter after a step with these gradients."""
    optimizer.zero_grad()
    other = nn.Parameter(torch.zeros_like(parameter))  # a loss that does not depend on the parameter
    terms = [(other if value is None else value * parameter).sum() for value in (of_teacher, of_task)]
    optimizer.backward(terms[:1], terms[1:])
    optimizer.step()
    return parameter.item()


def test_three_steps_are_those_of_the_authors():
    one = theta()
    optimizer = DOT([one], 0.1, weight_decay=5e-4)
    found = [moved(optimizer, one, *given) for given in GRADIENTS]
    assert found == pytest.approx([0.96995, 0.9076102525, 0.7928220803], abs=1e-10)


def test_a_step_by_hand():
    one = theta()
    optimizer = DOT([one], 1.0, momentum=0.5, delta=0.25)
    moved(optimizer, one, 1.0, 2.0)  # 1 - 3
    assert moved(optimizer, one, 1.0, 2.0) == -2 - (0.75 * 1 + 1) - (0.25 * 2 + 2)


@pytest.mark.parametrize("seen", ["teacher", "task"])
def test_what_one_loss_alone_depends_on_moves_as_by_sgd(seen):
    one, other = theta(), theta()
    optimizer = DOT([one], 0.1, weight_decay=5e-4)
    sgd = torch.optim.SGD([other], 0.1, momentum=0.9, weight_decay=5e-4)
    for value, _ in GRADIENTS:
        found = moved(optimizer, one, *((value, None) if seen == "teacher" else (None, value)))
        other.grad = torch.full_like(other, value)
        sgd.step()
        assert found == pytest.approx(other.item(), abs=1e-15)


def test_without_delta_it_is_sgd():
    _, method, loader, _ = make("distill", "schedule.optimizer=dot", "+schedule.optimizer_args.delta=0")
    twin, (batch, at) = copy.deepcopy(method), (loader.batch(0), ctx(method.config, 0))
    optimizers = make_optimizer(method), torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for group in optimizers[0].param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        for each, optimizer in zip((method, twin), optimizers, strict=True):
            out = each(batch, at)
            optimizer.zero_grad()
            if isinstance(optimizer, DOT):
                optimizer.backward(*parted(each, out.losses))
            else:
                each.backward(out.losses, lambda loss: loss)
            optimizer.step()
    for mine, theirs in zip(method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_run_that_goes_on_from_its_state_is_bitwise_the_same():
    _, method, loader, _ = make("distill", "schedule.optimizer=dot")
    optimizer, at = make_optimizer(method), ctx(method.config, 0)

    def step(method, optimizer):
        out = method(loader.batch(0), at)
        optimizer.zero_grad()
        optimizer.backward(*parted(method, out.losses))
        optimizer.step()
        return [parameter.clone() for parameter in method.parameters()]

    step(method, optimizer)
    later = make("distill", "schedule.optimizer=dot")[1]
    later.load_state_dict(method.state_dict())
    other = make_optimizer(later)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert all(map(torch.equal, step(method, optimizer), step(later, other)))


@pytest.mark.parametrize(
    ("name", "overrides", "of_teacher"),
    [
        ("distill", ["loss=kd"], {"kd"}),
        ("distill", ["loss=kd", "+loss/term@loss.mine=dkd"], {"kd", "mine"}),
        ("peer_distill", [], {"student_1/kd", "student_2/kd"}),
        ("uncertainty_distill", [], {"kd"}),
        ("peer_fixmatch", [], None),
    ],
)
def test_the_terms_against_the_teacher_are_told_by_their_names(name, overrides, of_teacher):
    config, method, loader, _ = make(name, "schedule.optimizer=dot", *overrides)
    losses = method(loader.batch(0), ctx(config, 0)).losses
    taught, task = parted(method, losses)
    names = {key for key, loss in losses.items() if any(loss is one for one in taught)}
    wanted = {key for key in losses if key.endswith("kd")} if of_teacher is None else of_teacher
    assert names == wanted
    assert len(taught) + len(task) == len(losses)
    assert task


def test_a_teacher_on_labels_is_that_of_runs_with_sgd_and_an_assistant_is_not():
    chain = ["teacher=distilled", "teacher.model=resnet8", "teacher.teacher.model=resnet14"]
    with Composer() as composer:
        configs = [composer.typed([*chain, f"schedule.optimizer={name}"]) for name in ("sgd", "dot")]
    assistants = [config.method_class.requires(config)["teacher"] for config in configs]
    teachers = [config.method_class.requires(config)["teacher"] for config in assistants]
    assert run_key(assistants[0]) != run_key(assistants[1])
    assert run_key(teachers[0]) == run_key(teachers[1])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["schedule.nesterov=true"], "schedule.nesterov: not with schedule.optimizer=dot"),
        (["schedule.clip_norm=1"], "schedule.clip_norm: not with schedule.optimizer=dot"),
        (["schedule.precision=fp16"], "schedule.precision: not with schedule.optimizer=dot"),
        (["schedule.compile=default"], "schedule.compile: not with schedule.optimizer=dot"),
        (["schedule.fused=true"], "schedule.fused: dot has no fused kernel"),
        (["schedule.graph=true"], "schedule.graph: a step with dot cannot be captured"),
        (["+schedule.optimizer_args.delta=0.1"], "schedule.optimizer_args: dot does not take .*below 0.1, got 0.1"),
        (["+schedule.optimizer_args.delta=-0.1"], "schedule.optimizer_args: dot does not take .*got -0.1"),
        (["loss=ce"], "schedule.optimizer: dot needs a term against the teacher, and loss has none"),
        (
            ["method=sho", "loss=kd", *TEACHER],
            "schedule.optimizer: dot makes the backward pass, and method=sho has one",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        make_optimizer(make("distill", "schedule.optimizer=dot", *overrides)[1])


def test_losses_under_other_names_are_refused():
    _, method, _, _ = make("distill", "schedule.optimizer=dot", "loss=kd")
    with pytest.raises(ConfigError, match=r"dot looks for the losses of kd, and method=distill has own"):
        parted(method, {"own": torch.zeros(())})


# ------------------------------------------------------------------------------------------------ parts and processes


def after_two_steps(config, norm: bool = True) -> torch.Tensor:
    """All parameters, in float64."""
    run = assembled(config)
    if not norm:
        without_batch_norm(run.method)
    method = run.method.double()
    run.teacher.network.double()
    prepare(method)
    optimizer, parts = make_optimizer(method), config.schedule.accumulate
    for step in range(2):
        batch, at = run.loader.batch(step), ctx(config, step)
        at.part = world().part
        optimizer.zero_grad()
        if parts > 1:
            gradients(method, batch, at, parts, lambda losses: optimizer.backward(*parted(method, losses)), nullcontext)
        else:
            optimizer.backward(*parted(method, method(batch, at).losses))
        average_gradients(method)
        optimizer.step()
        method.finish_step()
    run.loader.close()
    return torch.cat([parameter.detach().flatten() for parameter in method.parameters()])


@pytest.fixture
def config():
    with Composer() as composer:
        return composer.typed(["method=distill", *FAST, *EXTRA["distill"], "schedule.optimizer=dot"])


def test_two_processes_move_as_one(config, tmp_path):
    ranks, one = over(2, tmp_path, after_two_steps, config), after_two_steps(config)
    assert torch.equal(*ranks)
    torch.testing.assert_close(ranks[0], one, rtol=1e-7, atol=1e-9)


def test_parts_of_a_batch_move_as_the_whole(config):
    in_parts = config.replace(schedule=config.schedule.replace(accumulate=2))
    found, whole = (after_two_steps(each, norm=False) for each in (in_parts, config))
    torch.testing.assert_close(found, whole, rtol=1e-7, atol=1e-9)
