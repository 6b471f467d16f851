"""`schedule.epoch` and `schedule.last_batch`: passes over the labeled set as a loader of PyTorch makes them."""

import numpy as np
import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError
from kdrun.core.schema import build
from kdrun.data.loader import Loader
from kdrun.data.stream import Stream
from kdrun.data.views.mix import Mix
from kdrun.data.views.recipes import Weak
from kdrun.data.views.stored import StoredViews
from kdrun.training.assembly import Assembly
from kdrun.training.check import check
from kdrun.training.decay import StepDecay
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.rates import LearningRate
from kdrun.training.tracking import Tracking
from tests.conftest import FAST, TEACHER

KINDS = [(12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4, 1]), (3, 8, [3]), (1, 5, [1]), (8, 8, [8])]
RECIPE = Weak(1, False, True)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8))
PASS = ["schedule.epoch=ceil", "schedule.last_batch=small"]


def schedule(**keys):
    return build(ScheduleConfig, {"epochs": 3, **keys}, "schedule")


def stream(size, batch_size, seed=0, **parts):
    index = torch.arange(20 - size, 20)
    return Stream(
        "labeled", IMAGES, torch.arange(20) % 3, index, batch_size, {"weak": RECIPE}, seed, small_last=True, **parts
    )


@pytest.mark.parametrize(("size", "batch_size", "sizes"), KINDS)
def test_each_pass_is_a_permutation_in_its_own_batches(size, batch_size, sizes):
    made, steps = stream(size, batch_size), len(sizes)
    passes = []
    for epoch in range(4):
        batches = [made.positions(epoch * steps + k) for k in range(steps)]
        assert [len(batch) for batch in batches] == sizes
        passes.append(torch.cat(batches).tolist())
        assert sorted(passes[-1]) == list(range(20 - size, 20))
        assert all(made.epochs(epoch * steps + k).tolist() == [epoch] * n for k, n in enumerate(sizes))
    assert size < 4 or len({tuple(order) for order in passes}) == 4
    again = stream(size, batch_size)
    assert torch.equal(again.positions(3 * steps), made.positions(3 * steps))  # whatever was asked before
    assert schedule(batch_size=batch_size, epoch="ceil").clock(size).total_steps == 3 * steps
    small = schedule(batch_size=batch_size, epoch="ceil", last_batch="small")
    assert small.labeled_sizes(size, batch_size) == list(dict.fromkeys(sizes))
    assert schedule(batch_size=batch_size).labeled_sizes(size, batch_size) == [batch_size]


@pytest.mark.parametrize("parts", ["plain", "mixup", "cutmix", "stored"])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (9, 4), (3, 8)])
def test_several_steps_in_one_go_are_those_steps(size, batch_size, parts):
    given = {}
    if parts in ("mixup", "cutmix"):
        given["mix"] = Mix(MixConfig(kind=parts), (4, 5), 3)
    if parts == "stored":
        given["stored"] = StoredViews(RECIPE, 20, 2)
    made = stream(size, batch_size, **given)
    for steps in (range(7), range(2, 5)):
        for fixed in (False, True):
            together = made.made(made.drawn(steps, fixed=fixed))
            for step, samples in zip(steps, together, strict=True):
                alone = stream(size, batch_size, **given).batch(step)
                view, own = samples.views["weak"], alone.views["weak"]
                assert torch.equal(view.pixels, own.pixels)
                assert torch.equal(view.index, own.index)
                assert torch.equal(samples.target, alone.target)
                if "mix" in given:
                    assert torch.equal(view.unmixed.partner, own.unmixed.partner)
                    assert int(own.unmixed.partner.max()) < len(own.index)
                if "stored" in given:
                    assert torch.equal(view.replay, own.replay)
                    assert len(set(own.replay.tolist())) == 1


def test_what_is_given_in_epochs_counts_whole_batches():
    """CIFAR-100 in batches of 64: 782 steps in a pass, as the literature's loaders count."""
    keys = {"epochs": 240, "batch_size": 64, "eval_every_epochs": 1, "warmup_epochs": 2}
    exact, ceil = schedule(**keys), schedule(**keys, epoch="ceil")
    assert (exact.clock(50000).total_steps, ceil.clock(50000).total_steps) == (187500, 187680)
    clock = ceil.clock(50000)
    decay = StepDecay(StepDecay.Config(name="step", milestones_epochs=[150, 180, 210]), clock, 0)
    moves = [step for step in range(clock.total_steps) if decay.factor(step) != decay.factor(max(step - 1, 0))]
    assert moves == [782 * 150, 782 * 180, 782 * 210]
    rate = LearningRate(ceil, clock)
    assert (rate.warmup_steps, rate.factor(782)) == (1564, 0.5)
    assert [done for done in range(1, 3000) if ceil.evaluates_after(done, clock)] == [782, 1564, 2346]
    assert ceil.evaluations(clock) == 240
    few = schedule(batch_size=64, epoch="ceil", eval_every_epochs=1).clock(10)
    assert (few.steps_per_epoch, few.total_steps) == (1, 3)


def composed(*line):
    with Composer() as composer:
        return composer.typed([*FAST, *line])


def loop(folder, *line):
    torch.manual_seed(0)
    config = composed(*line)
    parts = Assembly.of(config, torch.device("cpu"))
    folder.mkdir(exist_ok=True)
    return Loop(parts.method.train(), parts.loader, Evaluator({}, 1000), parts.clock, folder, Tracking(), "key"), parts


RUN = ["method=fixmatch", "views=kekmodel", "schedule.ema_decay=0.9", "schedule.steps=5", "dataset.num_labels=20",
       "schedule.eval_every_steps=null", "execution.log_every_steps=1", "execution.checkpoint_every_steps=1", *PASS]  # fmt: skip


def test_three_steps_and_two_are_five_and_unlabeled_batches_stay_whole(tmp_path, monkeypatch):
    whole, parts = loop(tmp_path / "whole", *RUN)
    sizes = [{name: len(samples.views["weak"].index) for name, samples in parts.loader.batch(k).items()}
             for k in range(4)]  # fmt: skip
    assert sizes == [{"labeled": 16, "unlabeled": 112}, {"labeled": 4, "unlabeled": 112}] * 2
    assert parts.batch_sizes == sizes[:2]
    parts.loader.close()
    whole, _ = loop(tmp_path / "whole", *RUN)
    whole.run()
    whole.loader.close()
    plain = Loader.batch

    def stopped(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return plain(self, step)

    first, _ = loop(tmp_path / "parts", *RUN)
    with monkeypatch.context() as patched:
        patched.setattr(Loader, "batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    first.loader.close()
    second, _ = loop(tmp_path / "parts", *RUN)
    second.run()
    second.loader.close()
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()
    state = second.method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.method.state_dict().items())


def test_a_labeled_set_smaller_than_a_batch_is_seen_once_a_step(tmp_path):
    for line, unlabeled in (([], 112), (["schedule.repeat_labeled=false"], 70)):
        parts = Assembly.of(composed(*RUN, "dataset.num_labels=10", *line), torch.device("cpu"))
        batch = parts.loader.batch(0)
        parts.loader.close()
        assert sorted(batch["labeled"].views["weak"].index.tolist()) == sorted(parts.split.labeled.tolist())
        assert len(batch["unlabeled"].views["weak"].index) == unlabeled
        assert parts.clock.steps_per_epoch == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["schedule.last_batch=small"], "schedule.last_batch: small batches end a pass of whole steps; set schedule.epoch"),
        (["method=supervised", "schedule.graph=true", *PASS], "schedule.graph: a captured step has one size, and with last_batch=small 50 labeled"),
        (["method=supervised", "student.head=mlp", "dataset.num_labels=49", *PASS], "schedule.last_batch: small leaves a last batch of 1, of which batch"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(line, told):
    with pytest.raises(ConfigError) as refused:
        check(composed(*line))
    assert len(refused.value.lines) == 1
    assert told in str(refused.value)


@pytest.mark.parametrize("line", [["dataset.num_labels=48", "schedule.graph=true"], ["dataset.num_labels=10", "schedule.graph=true"]])  # fmt: skip
def test_batches_of_one_size_can_be_captured(line):
    check(composed("method=supervised", *PASS, *line))


def test_the_warm_up_of_a_head_counts_as_its_student():
    config = composed(*TEACHER, "method=distill", "student.head_warmup={epochs: 1, lr: 0.1}", *PASS)
    [head] = [run for role, run in config.method_class.requires(config).items() if role == "head_warmup"]
    assert (head.schedule.epoch, head.schedule.last_batch) == ("ceil", "small")
