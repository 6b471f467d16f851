"""Teachers that are distilled themselves, mutual learning, and the terms of born-again networks."""

import pytest
import torch

from kdrun.cli.explain import main as explain
from kdrun.config.compose import Composer
from kdrun.config.key import plugins_of, run_key
from kdrun.config.nodes import dump, from_nodes, from_record
from kdrun.core.errors import ConfigError
from kdrun.losses.cwtm import CWTM
from kdrun.losses.dkpp import DKPP, shuffled_but_first
from kdrun.losses.logits import kd
from kdrun.losses.term import Pair
from kdrun.methods.peer_distill import against_peers
from kdrun.models.output import Output
from tests.contract.test_methods import ctx, make

ZS = torch.tensor([[1, 2, 0.5], [0.2, -0.3, 1.5]], dtype=torch.float64)
ZT = torch.tensor([[0.5, 3, -1], [1, 0, 2]], dtype=torch.float64)
Y = torch.tensor([1, 0])
PLAIN = ["dataset=digits", "schedule.steps=5", "student=resnet8"]
ASSISTED = ["teacher=distilled", "teacher.model=resnet14", "teacher.teacher.model=resnet20"]
THREE = [*ASSISTED[:2], "teacher@teacher.teacher=distilled", "teacher.teacher.model=resnet20", "teacher@teacher.teacher.teacher=resnet32"]  # fmt: skip


@pytest.fixture(scope="module")
def composer():
    with Composer() as made:
        yield made


def chain(config):
    """Method and network of each run, the student's first."""
    out = [(config.method.name, config.students[0].name)]
    required = config.method_class.requires(config)
    assert set(required) <= {"teacher"}
    return out + (chain(required["teacher"]) if required else [])


def test_each_link_is_a_run_that_the_one_before_it_requires(composer):
    found = chain(composer.typed([*PLAIN, *THREE]))
    assert found == [
        ("distill", "resnet8"),
        ("distill", "resnet14"),
        ("distill", "resnet20"),
        ("supervised", "resnet32"),
    ]


def test_an_assistant_is_the_run_that_its_own_command_line_makes(composer):
    student = composer.typed([*PLAIN, *ASSISTED])
    own = composer.typed([*PLAIN[:2], "student=resnet14", "teacher=resnet20"])
    [assistant] = student.method_class.requires(student).values()
    assert run_key(assistant) == run_key(own)


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ("teacher.seed=1", True), ("teacher.teacher.seed=1", True), ("teacher.teacher.temperature=2", True),
        ("teacher.terms.kd.temperature=2", True), ("teacher.teacher.model=resnet26", True), ("seed=1", False),
        ("loss.kd.weight=0.5", False), ("teacher.temperature=2", False), ("student=resnet14", False),
    ],
)  # fmt: skip
def test_an_assistant_is_another_run_where_something_of_its_own_or_above_it_is(composer, more, other):
    one, two = (composer.typed([*PLAIN, *ASSISTED, *words]) for words in ((), (more,)))
    keys = [run_key(config.method_class.requires(config)["teacher"]) for config in (one, two)]
    assert (keys[0] != keys[1]) == other
    assert run_key(one) != run_key(two)


def test_what_has_no_effect_moves_no_key(composer):
    one, two = (
        composer.typed([*PLAIN, *ASSISTED, *words])
        for words in ((), ("+teacher.terms.idle={name: dkd, weight: 0}", "teacher.teacher.precision=fp32"))
    )
    assert run_key(one) == run_key(two)


def test_a_record_holds_the_chain(composer):
    config = composer.typed([*PLAIN, *THREE])
    again = from_record(dump(config))
    assert again == config
    assert run_key(again) == run_key(config)


def test_a_plug_in_counts_where_only_an_assistant_uses_it(composer, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from kdrun.core.registry import register\nfrom kdrun.losses.logits import KD\n"
        "@register('loss', 'mine_of_chains')\nclass Mine(KD):\n    pass\n"
    )
    words = [*PLAIN, *ASSISTED, f"plugins=[{file}]"]
    assert plugins_of(composer.typed(words)) == []
    config = composer.typed([*words, "+teacher.terms.own={name: mine_of_chains}"])
    [assistant] = config.method_class.requires(config).values()
    assert [name for name, _ in plugins_of(config)] == [name for name, _ in plugins_of(assistant)] == ["mine"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["teacher.teacher.model=resnett20"], r"teacher\.teacher\.model\.name: timm knows no network 'resnett20'"),
        (["+teacher.teacher.model={name: resnet8, arg: 1}"], r"teacher\.teacher\.model\.arg: unknown key"),
        (["teacher.teacher.steps=0"], r"teacher\.teacher\.steps: must be greater than 0"),
        (
            ["+teacher.teacher.model={name: resnet8, pretrained: true, new_head: true}"],
            r"teacher\.teacher\.model\.new_head: a frozen teacher",
        ),
        (["+teacher.teacher={source: none, model: null}"], r"teacher\.teacher\.source: none is no teacher"),
        (["teacher.teacher.path=x"], r"teacher\.teacher\.path: not for source=train"),
        (["teacher.teacher.loss=kd"], r"teacher: teacher\.loss: kd works against a teacher"),
        (["teacher.teacher.source=tran"], r"teacher\.teacher\.source: .*tran"),
        (["teacher.terms.kd.temperature=0"], r"teacher\.terms\.kd\.temperature: must be greater than 0"),
        (["teacher.terms.kd.name=kdd"], r"teacher\.terms\.kd\.name: .*kdd"),
        (["teacher.terms.kd.weight=0"], r"teacher\.terms: none is against a teacher"),
        (["+teacher.terms.more={name: linearity}"], r"teacher\.terms\.more: linearity is about mixed images"),
        (
            ["teacher.teacher.cache.mode=views", "teacher.mix.kind=mixup"],
            r"teacher\.teacher\.cache\.mode: views, but mixed",
        ),
        (["teacher.loss=sce"], r"teacher\.loss: not for source=distilled; source=train has it"),
    ],
)
def test_a_mistake_in_a_chain_is_told_by_its_dotted_key(composer, words, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        every_run(composer.typed([*PLAIN, *ASSISTED, *words]))


def every_run(config, role=""):
    """As a run is checked: what its required runs have against them stands behind their role."""
    try:
        for required in config.method_class.requires(config).values():
            every_run(required, "teacher: ")
    except ConfigError as error:
        raise ConfigError(*(f"{role}{line}" for line in error.lines)) from None


def test_without_who_teaches_it_it_is_refused(composer):
    node = dump(composer.typed([*PLAIN, *ASSISTED]))
    del node["teacher"]["teacher"]
    with pytest.raises(ConfigError, match=r"teacher\.teacher: missing"):
        from_nodes(node)


def test_explain_tells_the_chain():
    text = explain([*PLAIN, *THREE])
    assert "teacher: resnet14, taught by resnet20: 0.1 ce + 0.9 kd" in text
    assert "teacher.teacher: resnet20, taught by resnet32: 0.1 ce + 0.9 kd" in text


def test_generations_begin_with_other_weights(composer):
    config = composer.typed(["experiment=kd/born_again"])
    seeds, names = [], set()
    while config.students:
        seeds.append(config.seed)
        names.add(config.students[0].name)
        required = config.method_class.requires(config)
        if not required:
            break
        config = required["teacher"]
    assert names == {"wrn_28_2"}
    assert len(seeds) == len(set(seeds)) == 3


# ------------------------------------------------------------------------------------------------------------- terms


def pair(student=ZS, drawn=None):
    draw = (lambda *shape: torch.rand(*shape)) if drawn is None else (lambda *shape: drawn)
    return Pair(Output(student, {}), Output(ZT, {}), Y, torch.arange(2), 0.0, draw)


def built(term):
    return term(term.Config(name=term.__name__.lower()), None)


def test_assistants_teach_by_kd():
    assert kd(ZS, ZT, 4.0).mean().item() == pytest.approx(0.272068438033245, abs=1e-14)


def test_a_generation_is_taught_by_the_cross_entropy_of_probabilities_but_for_a_constant():
    p = ZT.softmax(1)
    entropy = -(p * p.log()).sum(1)
    assert (kd(ZS, ZT, 1.0) + entropy).mean().item() == pytest.approx(0.703634334800371, abs=1e-14)


def test_cwtm_is_its_golden_value_and_plain_cross_entropy_where_the_teacher_is_equally_sure():
    assert built(CWTM)(pair()).item() == pytest.approx(0.971019530104314, abs=1e-14)
    even = Pair(Output(ZS, {}), Output(torch.zeros_like(ZT), {}), Y, torch.arange(2), 0.0, torch.rand)
    assert built(CWTM)(even).item() == pytest.approx(1.063752145238349, abs=1e-14)


def test_shuffling_by_hand():
    logits = torch.tensor([[5.0, 1, 2, 3]])
    drawn = torch.tensor([[0.9, 0.3, 0.1, 0.2]])  # third, fourth, second
    assert shuffled_but_first(logits, drawn).tolist() == [[5.0, 2, 3, 1]]


def test_shuffling_keeps_the_first_and_all_values_and_gives_all_orders():
    logits = torch.randn(600, 4)
    out = shuffled_but_first(logits, torch.rand(600, 4))
    assert torch.equal(out.argmax(1), logits.argmax(1))
    assert torch.equal(out.sort(1).values, logits.sort(1).values)
    same = torch.arange(4.0).expand(600, 4)
    assert len({tuple(row) for row in shuffled_but_first(same, torch.rand(600, 4)).tolist()}) == 6


def test_dkpp_is_kd_against_the_shuffled_teacher():
    drawn = torch.tensor([[0.3, 0.2, 0.1], [0.9, 0.5, 0.1]], dtype=torch.float64)  # both pairs of others change places
    other = torch.tensor([[-1, 3, 0.5], [0, 1, 2]], dtype=torch.float64)
    found = built(DKPP)(pair(drawn=drawn))
    torch.testing.assert_close(found, kd(ZS, other, 1.0), rtol=0, atol=1e-14)
    assert not torch.allclose(found, kd(ZS, ZT, 1.0))


# --------------------------------------------------------------------------------------------------- mutual learning

DML = ["students=[resnet8, resnet8]",  "loss=ce", "method.peer_weight=1", "method.peer_temperature=1",
       "method.peer_target=sum", "method/uncertainty=none"]  # fmt: skip


def test_peers_are_held_against_each_other_both_ways():
    spec = make("peer_distill", *DML)[0].method
    first, second = (against_peers([ZS, ZT], k, spec).mean().item() for k in (0, 1))
    assert first == pytest.approx(0.113065880949859, abs=1e-7)  # the authors' logarithms have 1e-8 in them
    assert second == pytest.approx(0.169676185993197, abs=1e-7)


def test_a_step_of_mutual_learning_is_cross_entropy_and_the_divergence_from_each_peer():
    config, method, loader, _ = make("peer_distill", *DML, "students=[resnet8, resnet8, resnet14]")
    batch = loader.batch(0)
    out = method(batch, ctx(config, 0))
    assert set(out.losses) == {f"student_{k}/{name}" for k in (1, 2, 3) for name in ("ce", "peer")}
    assert method.teacher is None
    logits = [net(batch["labeled"].views["weak"]).logits for net in method.students.values()]
    by_hand = [
        sum(
            (p.softmax(1) * (p.log_softmax(1) - z.log_softmax(1))).sum(1).mean() for j, p in enumerate(logits) if j != k
        )
        for k, z in enumerate(logits)
    ]
    for k, wanted in enumerate(by_hand, start=1):
        torch.testing.assert_close(out.losses[f"student_{k}/peer"], wanted, rtol=1e-4, atol=1e-6)


def test_a_mean_over_peers_has_the_gradient_of_the_sum_over_their_number():
    zs = ZS.clone().requires_grad_()
    third = torch.tensor([[0, 2, 0.5], [0.6, -1, 1.2]], dtype=torch.float64)
    spec = make("peer_distill", *DML)[0].method
    found = [
        torch.autograd.grad(against_peers([zs, ZT, third], 0, spec.replace(peer_target=form)).mean(), zs)[0]
        for form in ("mean", "sum")
    ]
    torch.testing.assert_close(found[0], found[1] / 2)
