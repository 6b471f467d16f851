"""How sure a teacher is: golden values, the extremes of each kind, and teachers with dropout."""

import math

import pytest
import torch
from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.data.views.view import View
from kdrun.losses.evidence import evidential
from kdrun.losses.term import Pair
from kdrun.methods.step import Context, Setup
from kdrun.methods.uncertainty import agreement, entropy_weight, evidential_weight, max_prob_weight
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble

PIXELS = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
VIEW = View(PIXELS, torch.arange(4))
SETUP = Setup(10, 1, (0.3,), (0.2,), train_target=torch.zeros(5, dtype=torch.int64))


def network(name="wrn_16_1", seed=1, **args):
    return SETUP.network(ModelConfig(name=name, args=args), seed).eval()


def ctx(step=0, seed=0):
    return Context(seed, step, 10, torch.device("cpu"))


def test_golden():
    logits = torch.tensor([[3.0, 1, 0, -1], [0, 0, 0, 0]], dtype=torch.float64)
    assert entropy_weight(logits).tolist() == pytest.approx([0.570736, 0], abs=1e-6)
    p = logits[0].softmax(0).max().item()
    assert max_prob_weight(logits).tolist() == pytest.approx([(4 * p - 1) / 3, 0])


def test_evidence_by_hand():
    """softplus(z) = e, a = e + 1: 1 - C / sum a."""
    z = torch.tensor([[2.0, 0], [5, 3]], dtype=torch.float64).expm1().log()  # the inverse of softplus
    z[0, 1] = -1e3  # no evidence at all
    assert evidential_weight(z).tolist() == pytest.approx([1 - 2 / 4, 1 - 2 / 10])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [entropy_weight, max_prob_weight, evidential_weight])
def test_extremes_of_one_pass(kind, dtype):
    sure, unsure = torch.zeros(2, 100, dtype=dtype), torch.full((2, 100), 0.5, dtype=dtype)
    sure[:, 3] = 1e4
    if kind is evidential_weight:
        unsure = torch.full((2, 100), -1e4, dtype=dtype)
        sure[:, 3] = 1e6
    assert kind(sure).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert kind(unsure).tolist() == pytest.approx([0, 0], abs=1e-6)
    wild = torch.randn(50, 100, generator=torch.Generator().manual_seed(0)).to(dtype) * 30
    assert ((kind(wild) >= 0) & (kind(wild) <= 1)).all()
    assert kind(wild).dtype == torch.float32


@pytest.mark.parametrize("members", [2, 3, 5])
def test_extremes_of_several(members):
    """0 where each is sure of another class, 1 where all say the same, be it that they do not know."""
    certain = 1e4 * torch.eye(3)[torch.arange(members) % 3]
    apart = certain[:, None]
    if members <= 3:
        assert agreement(apart).item() == pytest.approx(0, abs=1e-6)
    else:  # five sure members of three classes: two pairs and one
        entropy = -sum(n / 5 * math.log(n / 5) for n in (2, 2, 1))
        assert agreement(apart).item() == pytest.approx(1 - entropy / math.log(3), abs=1e-6)
    same = torch.stack([torch.tensor([[3.0, 1, 0], [0, 0, 0]])] * members)
    assert agreement(same).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_agreement_by_hand():
    p = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]])
    h = [-sum(q * math.log(q) for q in row) for row in ((0.7, 0.3), (0.9, 0.1), (0.5, 0.5))]
    assert agreement(p.log()).item() == pytest.approx(1 - (h[0] - (h[1] + h[2]) / 2) / math.log(2), abs=1e-6)


class TestDropout:
    def test_passes_differ_and_are_a_function_of_seed_and_step(self):
        teacher = Teacher(network(drop_rate=0.3))
        kind = lookup("uncertainty", "mc_dropout", "")
        weigh = kind(kind.Config(name="mc_dropout", passes=3), teacher)
        before = torch.get_rng_state()
        first = weigh.weight(VIEW, teacher(VIEW), ctx(step=4))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
        assert torch.equal(weigh.weight(VIEW, teacher(VIEW), ctx(step=4)), first)
        assert not torch.equal(weigh.weight(VIEW, teacher(VIEW), ctx(step=5)), first)
        assert not torch.equal(weigh.weight(VIEW, teacher(VIEW), ctx(step=4, seed=1)), first)
        assert ((first > 0) & (first < 1)).all()

    def test_only_dropout_is_active_and_nothing_is_left_of_it(self):
        net = network(drop_rate=0.3)
        teacher = Teacher(net)
        state = {name: value.clone() for name, value in net.state_dict().items()}
        plain = teacher(VIEW).logits
        seen = []
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda m, *_: seen.append(m.training))
        samples = teacher.mc_samples(VIEW, 2, 0)
        assert samples.shape == (2, 4, 10)
        assert not torch.equal(samples[0], samples[1])
        assert seen
        assert not any(seen)
        assert not any(module.training for module in net.modules())
        assert torch.equal(teacher(VIEW).logits, plain)
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())

    @pytest.mark.parametrize(("name", "args"), [("resnet8", {"width": 4}), ("wrn_16_1", {"drop_rate": 0.0})])
    def test_a_teacher_without_it_is_refused(self, name, args):
        kind = lookup("uncertainty", "mc_dropout", "")
        with pytest.raises(ConfigError, match=rf"mc_dropout needs a teacher with dropout, and {name} has none"):
            kind(kind.Config(name="mc_dropout"), Teacher(network(name, **args)))

    def test_modules_of_torch_are_found(self):
        net = network("resnet8", width=4)
        net.net.fc = nn.Sequential(nn.Dropout(0.5), net.net.fc)
        samples = Teacher(net).mc_samples(VIEW, 2, 0)
        assert not torch.equal(samples[0], samples[1])


def test_members_of_an_ensemble_from_one_pass():
    members = [network("resnet8", seed, width=4) for seed in (1, 2)]
    kind = lookup("uncertainty", "deep_ensemble", "")
    teacher = Teacher(Ensemble(members))
    output = teacher(VIEW, kind.features)
    assert torch.equal(output.features["members"], torch.stack([m(VIEW).logits for m in members], 1))
    weigh = kind(kind.Config(name="deep_ensemble"), teacher)
    assert torch.equal(weigh.weight(VIEW, output, ctx()), agreement(torch.stack([m(VIEW).logits for m in members])))
    assert teacher(VIEW).features == {}
    with pytest.raises(ConfigError, match="an ensemble of teachers has no feature 'prelogits'"):
        teacher(VIEW, ("prelogits",))


class TestEvidentialLoss:
    # a = (3, 1), S = 4, p = (.75, .25): squares and variances are .125 + .075 for y = 0, 1.125 + .075 for y = 1, where
    # misleading evidence costs KL(Dir(3, 1) || Dir(1, 1)) = ln 6 - ln 2 + 2 (psi(3) - psi(4)) = ln 3 - 2/3
    z = torch.tensor([[math.log(math.expm1(2)), -1e3]], dtype=torch.float64)

    @pytest.mark.parametrize(("y", "value"), [(0, 0.2), (1, 1.2 + math.log(3) - 2 / 3)])
    def test_by_hand(self, y, value):
        assert evidential(self.z, torch.tensor([y])).item() == pytest.approx(value)
        assert evidential(self.z, torch.tensor([y]), 0.0).item() == pytest.approx([0.2, 1.2][y])
        assert evidential(self.z, torch.eye(2)[[y]].double()).item() == pytest.approx(value)

    def test_gradient_and_extremes(self):
        z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda z: evidential(z, torch.tensor([0, 2, 4])), z)
        for size in (1e4, -1e4):
            z = torch.tensor([[size, -size, 0.0]], requires_grad=True)
            loss = evidential(z, torch.tensor([1]))
            loss.sum().backward()
            assert torch.isfinite(loss).all()
            assert torch.isfinite(z.grad).all()

    def test_the_penalty_rises_over_its_share_of_the_run(self):
        cls = lookup("loss", "evidential", "")
        term = cls(cls.Config(name="evidential", annealing=0.5), None)
        target = torch.tensor([1])
        for progress, ramp in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
            pair = Pair(Output(self.z, {}), None, target, torch.zeros(1).long(), progress, ctx().draw)
            assert term(pair).item() == pytest.approx(evidential(self.z, target, ramp).item())
