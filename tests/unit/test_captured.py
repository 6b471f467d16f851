"""`schedule.graph` without CUDA: the function that would be captured, on the memory that would be refilled.

With the same fused optimizer it gives the plain path's losses, figures and weights bit for bit.
"""

import contextlib

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup, registered
from kdrun.data.loader import Loader
from kdrun.methods.distill import Distill
from kdrun.training.assembly import Assembly
from kdrun.training.captured import Buffers, CapturedStep
from kdrun.training.check import check
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.rehearsal import rehearse
from kdrun.training.tracking import Tracking
from kdrun.training.waiting import nothing_waits
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import EXTRA, METHODS, OF_SEVERAL, SEVERAL, TWO, VITS, make
from tests.each import each

lookup("loss", "ce", "")
SHORT = ["schedule.steps=5", "schedule.eval_every_steps=null", "execution.log_every_steps=1"]
MIXES = {"linearity"}  # terms about mixed images
DROPPING = "students=[{name: resnet8, args: {width: 4}}, {name: wrn_16_1, args: {drop_rate: 0.3}}]"
TERMS = {
    f"loss.{name}": ("mixup_distill" if name in MIXES else "distill", "loss=ce", *TEACHER, *(VITS if name == "vitkd" else []),
                     *([f"+loss/term@loss.other={name}"] if name != "ce" else []),
                     *(["loss.other.num_negatives=8"] if name == "crd" else []),
                     *(["method.views=[weak,strong]"] if name == "mlkd" else []),
                     *(["student.args.width=16"] if name == "fsp" else []))
    for name in sorted(set(registered("loss")) - {"kdsvd", *OF_SEVERAL})  # which is refused there
}  # fmt: skip
OTHER = {
    "average and clipping": ("supervised", "schedule.ema_decay=0.9", "schedule.clip_norm=0.1"),
    "a ramp of a loss": (
        "distill", "+ramps.r={key: loss.kd.weight, start: 0, end: 1}", "loss=kd_40_40", *TEACHER,
    ),
    "a ramp of a method": ("fixmatch", "+ramps.r={key: method.unlabeled_weight, kind: cosine, start: 0.1, end: 1}"),
    "moving rates": ("supervised", "schedule.warmup_steps=2", "schedule/decay=cosine", "schedule.nesterov=true"),
    "half precision": ("fixmatch", "schedule.precision=bf16"),
    "a teacher in half precision": ("distill", "teacher.precision=bf16", *TEACHER),
    "three passes": ("fixmatch", "method.joint_forward=false"),
    "views by their rates": ("fixmatch", "views=ctaugment", "schedule.ema_decay=0.9"),
    "views by their rates, in half precision": (
        "peer_fixmatch", "views=ctaugment", "schedule.precision=bf16", *TEACHER,
    ),
    "boxes of other images": ("mixup_distill", "views.mix.kind=cutmix"),
    "views of DeiT": (
        # crops at random scales are computed otherwise for a captured step, see test_crops.py
        "distill", "views=deit", "views.size=null", "views.weak.scale=null", "views.eval_ratio=1",
        "loss=nkd_vitkd", "loss.nkd.mixed=larger", "loss.ce.label_smoothing=0.1", *TEACHER, *VITS,
    ),
    "strong views of labeled images": (
        "fixmatch", "views.labeled=strong", "views.strong.levels=timm", "views.strong.erase=0.5",
    ),
    "stored views": ("distill", "teacher.cache.mode=views", "teacher.cache.num_views=2", *TEACHER),
    "two backward passes": ("sho", "method.pcgrad=true"),
    "conflicts at some steps": ("dho", "execution.log_every_steps=2"),
    "a switch": ("kd_fixmatch", "method.merge=switch_at:3"),
    "several draws": ("distill", "loss=wttm_crd", "loss.crd.num_negatives=8", *TEACHER),
    "several draws of two students": (
        "peer_fixmatch", TWO, "loss=wttm_crd", "loss.crd.num_negatives=8", "method.labeler=both", *TEACHER,
    ),
    "dropout": ("peer_distill", DROPPING, *TEACHER),
    **{f"loss.{name}": ("sho", f"loss={name}", *SEVERAL) for name in OF_SEVERAL},
}  # fmt: skip
CASES = {**{f"method {name}": (name,) for name in METHODS}, **TERMS, **OTHER}


def loop(folder, name, *overrides, method_class=None):
    config, method, loader, _ = make(name, *SHORT, *overrides)
    if method_class is not None:
        method = method_class(config, method.setup).train()
    return Loop(method, loader, Evaluator({}, 1000), config.schedule.clock(50), folder, Tracking(), "key")


def trained(folder, name, *overrides):
    """What there is to tell of a run: its log, its weights, what its optimizer and its averages keep."""
    torch.manual_seed(0)
    made = loop(folder, name, *overrides)
    made.run()
    made.loader.close()
    averages = made.ema.shadow if made.ema else []
    state = {**made.method.state_dict(), **{f"average {k}": value for k, value in enumerate(averages)}}
    for k, kept in made.optimizer.state_dict()["state"].items():
        state |= {f"optimizer {k} {name}": value for name, value in kept.items()}
    return (folder / "metrics.jsonl").read_text(), state


def differing(one, other):
    assert one[1].keys() == other[1].keys()
    return [name for name, value in one[1].items() if not torch.equal(value, other[1][name])]


@each("case", CASES)
def test_equals_the_plain_path_bitwise(tmp_path, case):
    plain, captured = tmp_path / case / "plain", tmp_path / case / "captured"
    plain.mkdir(parents=True), captured.mkdir()
    one = trained(plain, *CASES[case], "schedule.fused=true")
    other = trained(captured, *CASES[case], "schedule.graph=true")
    assert one[0] == other[0]
    assert one[0].count("train/loss/") >= 5
    assert differing(one, other) == []


@each("optimizer", ["adam", "AdamW"])
def test_rounds_the_learning_rate_of_adam_to_float32_and_equals_the_plain_path_but_for_that(tmp_path, optimizer):
    name = ("supervised", f"schedule.optimizer={optimizer}", "schedule.lr=0.001", "schedule.steps=3")
    found = []
    for kind in ("fused", "graph"):
        (tmp_path / optimizer / kind).mkdir(parents=True)
        found.append(trained(tmp_path / optimizer / kind, *name, f"schedule.{kind}=true")[1])
    one, other = ({name: value for name, value in state.items() if value.is_floating_point()} for state in found)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path, monkeypatch):
    case = ("peer_fixmatch", *OTHER["several draws of two students"][1:], DROPPING, "schedule.ema_decay=0.9",
            "schedule.graph=true", "execution.checkpoint_every_steps=2")  # fmt: skip
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole", *case)
    drawn = Loader.drawn

    def stopped(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return drawn(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "drawn", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", *case)
    torch.rand(3)
    parts = trained(tmp_path / "parts", *case)
    assert parts[0] == whole[0]
    assert differing(parts, whole) == []


# ------------------------------------------------------------------------------------------------------- refusals


class Asking(Distill):
    """A plug-in's method that does something more to its losses."""

    def step(self, batch, ctx):
        out = super().step(batch, ctx)
        (name, value), *_ = out.losses.items()
        return type(out)({**out.losses, name: value + 0 * self.asks(value.detach().expand(3), ctx)}, out.metrics)


ASKS = {
    "Tensor.item": (lambda x, ctx: x[0].item(), r"asks for numbers on the host \(aten._local_scalar_dense, test_cap"),
    "float": (lambda x, ctx: float(x[0]), "asks for numbers on the host"),
    "bool": (lambda x, ctx: 1.0 if x[0] > 0 else 0.0, "asks for numbers on the host"),
    "a minimum of the progress": (lambda x, ctx: min(ctx.progress, 1.0), "asks for numbers on the host"),
    "Tensor.tolist": (lambda x, ctx: x.tolist()[0], r"asks for numbers on the host \(Tensor.tolist, test_captured.py"),
    "Tensor.numpy": (lambda x, ctx: float(x.numpy()[0]), "asks for numbers on the host"),
    "Tensor.cpu": (lambda x, ctx: x.cpu()[0], "asks for numbers on the host"),
    "torch.equal": (lambda x, ctx: float(torch.equal(x, x)), "asks for numbers on the host"),
    "a mask": (lambda x, ctx: x[x > 0].sum(), r"chooses by a mask.* \(aten.index.Tensor"),
    "nonzero": (lambda x, ctx: x[x.nonzero()[:, 0]].sum(), "makes a tensor whose shape is a matter of numbers"),
    "masked_select": (lambda x, ctx: x.masked_select(x > 0).sum(), "makes a tensor whose shape"),
    "unique": (lambda x, ctx: x.unique().sum(), "makes a tensor whose shape"),
    "bincount": (lambda x, ctx: x.long().abs().bincount().sum(), "makes a tensor whose shape"),
    "repeat_interleave": (lambda x, ctx: x.repeat_interleave(x.long().abs()).sum(), "makes a tensor whose shape"),
    "torch.tensor": (lambda x, ctx: x @ torch.tensor([1.0, 2.0, 3.0]), r"numbers of the host \(torch.full"),
    "the step": (lambda x, ctx: x[0] * ctx.step, r"asks for the number of the step \(Context.step\)"),
    "a seed": (lambda x, ctx: x[0] * ctx.subseed("noise"), r"asks for a seed in each step \(Context.subseed\)"),
}  # fmt: skip


@each("asked", ASKS)
def test_a_step_that_cannot_be_captured_is_refused_in_one_line(tmp_path, asked):
    asks, message = ASKS[asked]
    made = loop(tmp_path, "distill", "schedule.graph=true", *TEACHER,
                method_class=type("Asks", (Asking,), {"asks": staticmethod(asks)}))  # fmt: skip
    with pytest.raises(ConfigError, match=message) as caught:
        made.run()
    made.loader.close()
    (line,) = caught.value.lines
    assert line.startswith("schedule.graph: method=distill ")
    assert line.endswith("; set it to false")


def test_numbers_that_move_between_host_and_device_are_refused():
    with nothing_waits(ConfigError), pytest.raises(ConfigError, match="moves numbers between host and device"):
        torch.ones(2).to("meta")
    with nothing_waits(ConfigError), pytest.raises(ConfigError, match="moves numbers between host and device"):
        torch.empty(2, device="meta").copy_(torch.ones(2))
    with nothing_waits(ConfigError):
        torch.ones(2).to(torch.float64)
        torch.ones(2).repeat_interleave(torch.ones(2).long(), output_size=2)


def test_steps_that_draw_differently_are_refused(tmp_path):
    class Changing(Distill):
        drawn = 0

        def step(self, batch, ctx):
            type(self).drawn += 1
            ctx.draw(2, self.drawn)
            return super().step(batch, ctx)

    made = loop(tmp_path, "distill", "schedule.graph=true", *TEACHER, method_class=Changing)
    with pytest.raises(ConfigError, match="method=distill draws other numbers than in its first step"):
        made.run()
    made.loader.close()


def outline(name):
    with Composer() as composer:
        return Assembly.outline(composer.typed([f"method={name}", *FAST, *EXTRA.get(name, []), "schedule.graph=true"]))


@each("name", METHODS)
def test_the_check_before_a_run_passes_every_method(name):
    rehearse(outline(name))


@each("asked", ["the step", "a mask", "Tensor.tolist"])
def test_the_check_before_a_run_refuses_what_no_step_could(asked):
    asks, message = ASKS[asked]
    run = outline("distill")
    with torch.device("meta"):
        run.method = type("Asks", (Asking,), {"asks": staticmethod(asks)})(run.config, run.setup)
    with pytest.raises(ConfigError, match=message):
        rehearse(run)


@each("refused", {
    "fp16": (["schedule.precision=fp16"], "schedule.graph: the loss scaling of fp16 waits"),
    "compile": (["schedule.compile=reduce-overhead"], "schedule.graph: compile=reduce-overhead has graphs of its own"),
    "rmsprop": (["schedule.optimizer=rmsprop"], "schedule.graph: a step with rmsprop cannot be captured; choose sgd"),
    "lamb": (["schedule.optimizer=lamb"], "schedule.graph: a step with lamb cannot be captured"),
    "adagrad": (["schedule.optimizer=Adagrad", "schedule.fused=true"], "schedule.graph: a step with Adagrad cannot be"),
    "mc_dropout": (
        ["method=uncertainty_distill", "method/uncertainty=mc_dropout", "teacher=wrn_16_1",
         "teacher.model.args.drop_rate=0.1", "loss=kd"],
        "method.uncertainty: mc_dropout draws from a seed of its own in each step",
    ),
}.items())  # fmt: skip
def test_what_does_not_go_together_is_refused(refused):
    _, (line, message) = refused
    with Composer() as composer, pytest.raises(ConfigError, match=message) as caught:
        check(composer.job([*FAST, "schedule.graph=true", *line]))
    assert len(caught.value.lines) == 1


# --------------------------------------------------------------------------------------------------------- memory


def test_what_a_captured_step_reads_and_writes_stays_where_it_is(tmp_path):
    """From the second step on: what it is told, weights, gradients of the next step aside, averages, rates."""
    places = []

    class Looking(Distill):
        def step(self, batch, ctx):
            own = [*self.parameters(), *self.buffers(), *made.ema.shadow]
            told = [ctx.progress, *ctx.factors.values(), ctx.draw(3), ctx.holds(lambda step: step > 2)]
            rates = [group["lr"] for group in made.optimizer.param_groups]
            kept = [value for state in made.optimizer.state.values() for value in state.values()]
            places.append([tensor.data_ptr() for tensor in (*own, *rates, *told, *kept)])
            return super().step(batch, ctx)

    made = loop(
        tmp_path, "distill", "schedule.graph=true", "schedule.ema_decay=0.9", "schedule.eval_every_steps=2",
        "+ramps.r={key: loss.kd.weight, start: 0, end: 1}", "loss=kd_40_40", *TEACHER, method_class=Looking,
    )  # fmt: skip
    images, at = torch.zeros(8, 8, 8, 1, dtype=torch.uint8), torch.arange(8)
    made.evaluator = Evaluator({"val": (images, at, at)}, 8)
    made.run()
    made.loader.close()
    assert len(places) == 5
    assert len(places[1]) > len(places[0])  # the optimizer has a state by then
    assert places[1] == places[2] == places[3] == places[4]


def test_is_captured_once_after_three_steps_and_replayed_from_then_on(tmp_path, monkeypatch, caplog):
    """The order of things, with a graph that calls the function again in CUDA's place."""
    done, made = [], []

    class Stream:
        def wait_stream(self, other):
            done.append("waits")

    class Graph:
        def replay(self):
            if done[-1] != "captured":  # what is captured on a CPU is done at once
                made[0]._out.copy_(made[0]._take(made[0]._buffers.tree))
            done.append("replayed")

    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode):
        assert (stream, capture_error_mode) == (made[0]._stream, "thread_local")
        yield
        done.append("captured")

    build = CapturedStep.__init__

    def built(self, *given, **more):
        build(self, *given, **more)
        self._stream = Stream()
        made.append(self)

    case = ("fixmatch", "schedule.ema_decay=0.9", "schedule.nesterov=true", "schedule.steps=7")
    for kind in ("fused", "graph"):
        (tmp_path / kind).mkdir()
    plain = trained(tmp_path / "fused", *case, "schedule.fused=true")
    monkeypatch.setattr(CapturedStep, "__init__", built)
    for name, fake in {"CUDAGraph": Graph, "graph": graph, "current_stream": Stream, "device": contextlib.nullcontext,
                       "stream": contextlib.nullcontext}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    with caplog.at_level("INFO"):
        found = trained(tmp_path / "graph", *case, "schedule.graph=true")
    assert done == [*["waits"] * 6, "captured", *["replayed"] * 4]
    assert found[0] == plain[0]
    assert differing(found, plain) == []
    assert caplog.text.count("schedule.graph: step captured as one CUDA graph") == 1


def test_memory_is_refilled_with_tensors_of_the_same_shapes_only():
    tree = {"a": torch.arange(3), "b": [torch.rand(2, 2, dtype=torch.float64), torch.ones(())], "c": torch.zeros(5) > 0,
            "d": torch.empty(0, 4), "e": None}  # fmt: skip
    buffers = Buffers(tree, torch.device("cpu"))
    places = [buffers.tree["a"].data_ptr(), buffers.tree["b"][0].data_ptr()]
    for factor in (1, 7):
        given = {**tree, "a": tree["a"] * factor, "b": [tree["b"][0] * factor, torch.tensor(2.0 * factor)]}
        buffers.fill(given)
        assert torch.equal(buffers.tree["a"], given["a"])
        assert torch.equal(buffers.tree["b"][0], given["b"][0])
        assert buffers.tree["b"][1].item() == 2.0 * factor
        assert buffers.tree["d"].shape == (0, 4)
    assert places == [buffers.tree["a"].data_ptr(), buffers.tree["b"][0].data_ptr()]
    with pytest.raises(KdrunError, match=r"a step has int64 \(4,\) where the first one had int64 \(3,\)"):
        buffers.fill({**tree, "a": torch.arange(4)})
