"""What every registered method must keep, at no cost to its author."""

from dataclasses import replace

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import lookup, registered
from kdrun.data.loader import Loader
from kdrun.methods.distill import Distill
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble
from kdrun.training.assembly import Assembly
from kdrun.training.optimizer import make_optimizer
from kdrun.training.statistics import AskedTeacher
from tests.conftest import FAST, TEACHER

lookup("method", "supervised", "")
ONE = torch.ones(())
# contrastive in tests/unit/test_clip.py, the other two in test_tip_adapter.py: importing open_clip takes ten seconds
METHODS = sorted(set(registered("method")) - {"contrastive", "tip_adapter", "zero_shot"})
TWO = "students=[{name: resnet8, args: {width: 4}}, {name: resnet14, args: {width: 4}}]"
VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2}
# Behind TEACHER: timm leaves out what is null.
VITS = [
    f"students=[{{name: vit_tiny_patch16_224, args: {str(VIT).translate({39: None})}}}]", "teacher.model.name=vit_tiny_patch16_224",
    "teacher.model.args.width=null", "teacher.model.args.shortcut=null",
    *(f"+teacher.model.args.{k}={v}" for k, v in ({**VIT, "embed_dim": 24}).items()),
]  # fmt: skip
OF_SEVERAL = ("avgkd", "ebkd", "camkd")  # terms
SEVERAL = [
    "teacher=ensemble",
    "teacher.members=[{source: train, model: resnet8}, {source: train, model: resnet8, seed: 1}]",
]
EXTRA: dict[str, list[str]] = {
    "distill": ["loss=wttm", *TEACHER], "uncertainty_distill": TEACHER, "peer_distill": [TWO, *TEACHER],
    "mixup_distill": ["loss=kd_mixup", *TEACHER], "peer_fixmatch": [TWO, *TEACHER],
    "linear_eval": ["method.num_labels=50"], "dash": ["method.rho_min=3"], "simkd": TEACHER,
}  # fmt: skip
# How a batch is fitted in 60 steps: a head alone takes more of them, on features that nobody trained; a fairness term asks
# for classes that the batch lacks.
FITS = {
    "linear_eval": ["schedule.optimizer=adam", "student.args.width=16"],
    "freematch": ["method.fairness_weight=0.001"],
    "remixmatch": ["student.args.width=16"],
}
# What `Method.before` would give, for the 1,397 training digits.
ARTIFACTS = {"kd_fixmatch": {"trusted_label": torch.arange(1397) % 11 - 1}}


def make(name: str, *overrides: str, device: str = "cpu") -> tuple[RunConfig, Method, Loader, torch.Tensor]:
    with Composer() as composer:
        config = composer.typed([f"method={name}", *FAST, *EXTRA.get(name, []), *overrides])
    run = assembled(config, device)
    return run.config, run.method, run.loader, run.labels


def assembled(config: RunConfig, device: str = "cpu") -> Assembly:
    """A run whose teacher nobody trained, ready for its first step."""
    name, run = config.method.name, Assembly.of(config, torch.device(device))
    if config.needs_teacher:  # one that nobody trained
        asked = getattr(config.teacher, "model", None)
        kind = asked if asked is not None and asked.name.startswith(("vit", "wrn")) else ModelConfig(name="resnet8")
        network = run.factory.network(kind, seed=7).to(device)
        if config.teacher.source == "ensemble":
            others = [run.factory.network(kind, seed=seed).to(device) for seed in (8, 9)]
            network = Ensemble([network, *others], config.teacher.mean)
        run.teacher = Teacher(network, config.teacher.precision)
        run.method.before_terms(AskedTeacher(run, keep=False))
    run.stream_seed = config.seed  # the golden losses of all methods are of the same images
    run.loader.give({key: value.to(device) for key, value in ARTIFACTS.get(name, {}).items()})
    run.method.train()
    return run


def ctx(config: RunConfig, step: int) -> Context:
    return Context(config.seed, step, 20, torch.device("cpu"))


def fit(config: RunConfig, method: Method, loader: Loader, first: int, last: int, optimizer=None):
    optimizer = optimizer or make_optimizer(method)
    losses = []
    for step in range(first, last):
        out = method(loader.batch(step), ctx(config, step))
        total = torch.stack(list(out.losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.finish_step()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_losses_are_named_finite_scalars(self, name):
        config, method, loader, _ = make(name)
        out = method(loader.batch(0), ctx(config, 0))
        assert out.losses
        for key, loss in out.losses.items():
            assert isinstance(key, str)
            assert loss.shape == ()
            assert torch.isfinite(loss)
        assert not any(value.requires_grad for value in out.metrics.values())

    def test_every_parameter_gets_a_gradient(self, name):
        config, method, loader, _ = make(name)
        out = method(loader.batch(0), ctx(config, 0))
        torch.stack(list(out.losses.values())).sum().backward()
        assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_the_optimizer_holds_every_parameter_once(self, name):
        _, method, _, _ = make(name)
        held = [p for group in make_optimizer(method).param_groups for p in group["params"]]
        assert len(held) == len({id(p) for p in held}) == sum(p.requires_grad for p in method.parameters())

    def test_the_teacher_is_bitwise_unchanged_and_in_no_checkpoint(self, name):
        config, method, loader, _ = make(name)
        if method.teacher is None:
            pytest.skip("no teacher")
        network = method.teacher.network
        before = {k: v.clone() for k, v in network.state_dict().items()}
        method.train()
        fit(config, method, loader, 0, 3)
        assert not network.training
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
        pointers = {p.data_ptr() for p in network.parameters()}
        assert not pointers & {v.data_ptr() for v in method.state_dict().values()}
        assert not any(p.requires_grad for p in network.parameters())

    def test_same_seed_same_losses_another_seed_others(self, name):
        runs = [fit(*make(name, f"seed={seed}")[:3], 0, 4) for seed in (0, 0, 1)]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    def test_ten_and_ten_steps_are_twenty(self, name):
        whole = make(name)
        losses = fit(*whole[:3], 0, 20)
        first = make(name)
        optimizer = make_optimizer(first[1])
        head = fit(*first[:3], 0, 10, optimizer)
        second = make(name)
        second[1].load_state_dict(first[1].state_dict())
        other = make_optimizer(second[1])
        other.load_state_dict(optimizer.state_dict())
        assert head + fit(*second[:3], 10, 20, other) == losses
        assert all(
            torch.equal(a, b)
            for a, b in zip(whole[1].state_dict().values(), second[1].state_dict().values(), strict=True)
        )

    def test_overfits_a_batch(self, name):
        config, method, loader, _ = make(name, "schedule.lr=0.05", "schedule.weight_decay=0", *FITS.get(name, []))
        batch = loader.batch(0)
        optimizer = make_optimizer(method)
        for step in range(60):
            out = method(batch, ctx(config, step))
            optimizer.zero_grad()
            torch.stack(list(out.losses.values())).sum().backward()
            optimizer.step()
        method.eval()
        labeled = batch["labeled"]
        predicted = method.predict(labeled.views["weak"])[method.headline].argmax(1)
        wanted = labeled.target if method.teacher is None else method.teacher(labeled.views["weak"]).logits.argmax(1)
        given = labeled.target if labeled.target.ndim == 1 else labeled.target.argmax(1)
        agreement = max((predicted == w).float().mean().item() for w in (wanted, given))
        assert agreement > 0.9

    def test_no_hidden_label_reaches_the_method(self, name):
        config, method, loader, labels = make(name)
        hidden = method.setup.train_target
        assert int((hidden >= 0).sum()) == config.dataset.num_labels
        for step in range(20):
            for stream, samples in loader.batch(step).items():
                index = next(iter(samples.views.values())).index
                if stream == "labeled":
                    assert (hidden[index] >= 0).all()
                    if samples.target.ndim == 1:
                        assert torch.equal(samples.target, labels[index])
                    else:  # mixed within the batch
                        assert (samples.target.gather(1, labels[index][:, None]) > 0).all()
                        assert set(samples.target.nonzero()[:, 1].tolist()) <= set(labels[index].tolist())
                else:
                    assert samples.target is None

    def test_what_it_predicts_are_scores_for_every_class_its_networks_run_once(self, name):
        config, method, loader, _ = make(name)
        method.eval()
        view = next(iter(loader.batch(0).values())).views["weak"]
        ran = []
        for net in method.networks().values():
            net.register_forward_hook(lambda module, *_: ran.append(module))
        with torch.no_grad():
            predicted = method.predict(view)
        assert ran == list(method.networks().values())
        assert method.headline in predicted
        for scores in predicted.values():
            assert scores.shape == (config.schedule.batch_size, 10)
            assert scores.dtype == torch.float32


@pytest.mark.parametrize("name", ["dho", "kd_fixmatch", "distill"])
def test_a_finished_method_predicts_what_its_choice_applies_and_has_no_losses(name):
    config, method, loader, _ = make(name)
    restored = config.method_class(config, replace(method.setup, restoring=True)).eval()
    assert all(not losses.terms for losses in restored.loss_sets.values())
    view = loader.batch(0)["labeled"].views["weak"]
    choice = restored.choice()
    assert (choice is not None) == (name == "dho")
    if choice is not None:
        with torch.no_grad():
            applied, predicted = choice.apply(choice.inputs(view)), restored.predict(view)
        assert applied.keys() == predicted.keys()
        assert all(torch.equal(applied[net], predicted[net]) for net in applied)
        assert choice.net in predicted
        for value in choice.values.values():
            assert any(value is buffer for buffer in restored.buffers())


class TwoBatches(Distill):
    """Two pairs of one student in a step: the terms hear of both."""

    def step(self, batch, ctx):
        self.given = [self.pair(one, ctx) for one in (batch, self.other)]
        found = [self.losses().teacher(pair) for pair in self.given]
        return Step({f"{label}_{k}": value for k, one in enumerate(found) for label, value in one.items()})


def test_every_pair_of_a_step_reaches_the_metrics_and_the_memories_of_the_terms():
    config, method, loader, _ = make("distill", "loss=wttm_crd", "loss.crd.num_negatives=8")
    two = TwoBatches(config, method.setup).train()
    batch, two.other = loader.batch(0), loader.batch(1)
    out = two(batch, ctx(config, 0))
    terms = two.losses().terms
    told = [terms["wttm"].metrics(pair)["renyi_entropy"] for pair in two.given]
    assert told[0] != told[1]
    torch.testing.assert_close(out.metrics["wttm/renyi_entropy"], torch.stack(told).mean().detach())
    memory, before = terms["crd"].student_memory, terms["crd"].student_memory.clone()
    two.finish_step()
    touched = set((memory != before).any(1).nonzero().flatten().tolist())
    assert touched == set(terms["crd"].row[torch.cat([pair.index for pair in two.given])].tolist())
    assert len(touched) > len(two.given[0].index)
    again = memory.clone()
    two.finish_step()
    assert torch.equal(memory, again)  # each pair once


@pytest.mark.parametrize("name", ["sho", "dho"])
def test_labeled_and_unlabeled_pairs_reach_a_memory_and_resume_bitwise(name):
    def fresh():
        return make(name, "loss=wttm_crd", "loss.crd.num_negatives=8")

    config, method, loader, _ = fresh()
    crd, batch = method.losses().terms["crd"], loader.batch(0)
    before = crd.teacher_memory.clone()
    assert {"crd", "unlabeled_crd"} <= method(batch, ctx(config, 0)).losses.keys()
    method.finish_step()
    index = torch.cat([batch[stream].views["weak"].index for stream in ("labeled", "unlabeled")])
    touched = (crd.teacher_memory != before).any(1).nonzero().flatten().tolist()
    assert set(touched) == set(crd.row[index].tolist())

    whole = fit(*fresh()[:3], 0, 6)
    first, second = fresh(), fresh()
    optimizer, other = make_optimizer(first[1]), make_optimizer(second[1])
    head = fit(*first[:3], 0, 3, optimizer)
    second[1].load_state_dict(first[1].state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert head + fit(*second[:3], 3, 6, other) == whole


def test_what_terms_tell_is_logged_under_their_labels():
    config, method, loader, _ = make("distill", "loss=kd", "+loss/term@loss.other=ttm")
    out = method(loader.batch(0), ctx(config, 0))
    assert list(out.metrics) == ["kd/renyi_entropy", "other/renyi_entropy"]
    assert all(value.shape == () and not value.requires_grad for value in out.metrics.values())
    assert make("distill", "loss=dkd")[1](loader.batch(0), ctx(config, 0)).metrics == {}


def test_what_terms_tell_of_several_students_is_kept_apart():
    class Two(Distill):
        @classmethod
        def needs(cls, config):
            return replace(super().needs(config), students=(2, 2))

        def step(self, batch, ctx):
            pairs = [self.pair(batch, ctx, k=k) for k in range(2)]
            return Step(
                {f"{k}": sum(self.losses(k).teacher(pair).values()) for k, pair in enumerate(pairs)}, {"own": ONE}
            )

    config, method, loader, _ = make("distill", "loss=wttm")
    two = Two(config.replace(students=[config.students[0], ModelConfig(name="resnet14")]), method.setup)
    out = two(loader.batch(0), ctx(config, 0))
    assert list(out.metrics) == ["own", "student_1/wttm/renyi_entropy", "student_2/wttm/renyi_entropy"]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_no_image_is_distillation(kind):
    plain = fit(*make("distill", "loss=kd")[:3], 0, 5)
    mixed = make("mixup_distill", "loss=kd", f"views.mix.kind={kind}", "views.mix.share=0")
    assert fit(*mixed[:3], 0, 5) == plain
    assert fit(*make("mixup_distill", "loss=kd", f"views.mix.kind={kind}")[:3], 0, 5) != plain


@pytest.mark.parametrize("loss", ["ce", "kd", "ttm", "wttm", "dkd", "nkd", "dist", "rkd", "sce", "mae", "nce", "gce"])
def test_losses_take_mixed_images(loss):
    config, method, loader, _ = make("mixup_distill", f"loss={loss}")
    batch = loader.batch(0)
    assert batch["labeled"].target.shape == (16, 10)
    out = method(batch, ctx(config, 10))
    assert all(torch.isfinite(value) for value in out.losses.values())


def test_the_teacher_sees_the_mixed_images_and_a_supervised_method_may_mix_too():
    _, method, loader, _ = make("mixup_distill")
    seen = []
    method.setup.teacher.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = loader.batch(0)
    method(batch, ctx(method.config, 0))
    assert seen[0] is batch["labeled"].views["weak"]
    config, method, loader, _ = make("supervised", "views.mix.kind=mixup", "views.mix.alpha=0.2")
    losses = fit(config, method, loader, 0, 3)
    assert all(loss > 0 for loss in losses)


def test_an_optimizer_of_torch_keeps_the_momentum_of_the_schedule():
    _, method, _, _ = make("supervised", "schedule.optimizer=SGD", "schedule.momentum=0.8", "schedule.nesterov=true")
    optimizer = make_optimizer(method)
    assert type(optimizer) is torch.optim.SGD
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.8, True)}
    assert type(make_optimizer(make("supervised", "schedule.optimizer=AdamW")[1])) is torch.optim.AdamW
