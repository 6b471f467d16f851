"""FlexMatch, FreeMatch, SoftMatch, Dash and UDA: how predictions become labels, by published code's values and by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.data.views.view import Samples
from kdrun.losses.labels import cross_entropy
from kdrun.methods.freematch import fairness
from kdrun.methods.labeler import Seen
from kdrun.methods.step import Setup
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import assembled, ctx, fit, make
from tests.each import each

NAMES = ["flexmatch", "freematch", "softmatch", "dash", "uda"]
WEAK = torch.tensor([[2, 0.5, -1], [0.1, 1.2, 0.3], [-0.5, 0, 3]], dtype=torch.float64)
STRONG = torch.tensor([[1, 0.2, -0.3], [0, 0.5, 0.1], [-0.2, 0.4, 1.5]], dtype=torch.float64)
KNOWN = torch.tensor([[1.5, 0, -0.5], [0.2, 0.8, 0.4]], dtype=torch.float64)
TARGET, INDEX = torch.tensor([0, 1]), torch.tensor([5, 6, 7])
SEEN = Seen(WEAK.softmax(1), INDEX, KNOWN, TARGET, 0.5, STRONG)


def labeler(name, size=10, pool=None, classes=3, **keys):
    method = lookup("method", name, "")
    kind, spec = method.labels_with(method.Config(name=name, **keys))
    target = torch.full((size,), -1)
    setup = Setup(classes, 1, (0.5,), (0.5,), train_target=target, num_unlabeled=size if pool is None else pool)
    return kind(spec, setup).double()


def loss(target, weight):
    return (weight * cross_entropy(STRONG, target)).mean().item()


def near(*values, tolerance=2e-8):
    return pytest.approx(list(values), abs=tolerance)


# --------------------------------------------------------------------------------------------------------- flexmatch


def with_selected(made, labels):
    made.selected[: len(labels)] = torch.tensor(labels)
    made.count.copy_(torch.bincount(torch.tensor(labels), minlength=3))
    return made


def test_flexmatch_has_the_thresholds_of_the_published_code():
    warm = with_selected(labeler("flexmatch"), [0, 0, 0, 0, 1])
    assert warm.thresholds.tolist() == near(0.63333333, 0.10555556, 0)
    plain = with_selected(labeler("flexmatch", warmup=False), [0, 0, 0, 0, 1])
    assert plain.thresholds.tolist() == near(0.95, 0.13571429, 0)
    target, weight = plain(SEEN)
    assert weight.tolist() == [0, 1, 1]
    assert loss(target, weight) == pytest.approx(0.41285822, abs=1e-8)


def test_flexmatch_selects_what_passes_the_fixed_threshold_after_the_mask_is_made():
    made = with_selected(labeler("flexmatch", threshold=0.9), [0, 0, 0, 0, 1])
    before = made.thresholds
    assert torch.equal(made(SEEN)[1], (SEEN.p.amax(1) >= before[SEEN.p.argmax(1)]).float())
    assert made.selected.tolist() == [0, 0, 0, 0, 1, -1, -1, 2, -1, -1]
    beta = made.count / 4  # four images are without a label, and four of class 0
    assert made.thresholds.tolist() == near(*(0.9 * beta / (2 - beta)).tolist())
    assert beta.tolist() == [1, 0.25, 0.25]


def test_flexmatch_lets_all_pass_at_first_and_counts_the_pool_alone():
    for pool, warm in ((8, 1 / 7), (3, 0.5)):  # 7 without a label; 2
        made = labeler("flexmatch", pool=pool, threshold=0.9)
        assert made(SEEN)[1].tolist() == [1, 1, 1]
        assert made.thresholds[2].item() == pytest.approx(0.9 * warm / (2 - warm))


def test_flexmatch_counts_images_as_a_loop_over_them_does():
    made, generator = labeler("flexmatch", size=20, threshold=0.5), torch.Generator().manual_seed(1)
    wanted = [-1] * 20
    for _ in range(10):
        p = (3 * torch.randn(16, 3, generator=generator)).softmax(1)
        index = torch.randint(20, (16,), generator=generator)  # with images twice in a batch
        made(replace(SEEN, p=p, index=index))
        for i, row in zip(index.tolist(), p, strict=True):
            if row.max() >= 0.5:
                wanted[i] = int(row.argmax())
        assert made.selected.tolist() == wanted
        assert made.count.tolist() == [wanted.count(c) for c in range(3)]


def test_flexmatch_is_told_the_pool_without_the_validation_images():
    _, method, loader, _ = make("flexmatch", "dataset.val_fraction=0.2")
    assert method.labeler.pool == len(loader.streams["unlabeled"].index) < len(method.labeler.selected)


# --------------------------------------------------------------------------------------------------------- freematch


def moved(made, confidence, p, label):
    for name, value in (("confidence", [confidence]), ("p", p), ("label", label)):
        getattr(made, name).mean.copy_(torch.tensor(value, dtype=torch.float64))
    return made


def test_freematch_has_the_published_code_s_values():
    made = moved(labeler("freematch", decay=0.9), 0.8, [0.5, 0.3, 0.2], [0.6, 0.3, 0.1])
    weight = made(SEEN)[1]
    assert made.confidence.value.tolist() == near(0.79621446)
    assert made.p.value.tolist() == near(0.48349749, 0.29654292, 0.21995959)
    assert made.label.value.tolist() == near(0.57333333, 0.30333333, 0.12333333)
    assert made.thresholds.tolist() == near(0.79621446, 0.48834123, 0.36222526)
    assert weight.tolist() == [0, 1, 1]
    assert made.penalty(STRONG, torch.ones(3))["fairness"].item() == pytest.approx(-1.07621646, abs=1e-6)


def test_freematch_starts_at_chance_and_tells_a_class_that_is_absent():
    made = labeler("freematch", decay=0.9)
    assert made(SEEN)[1].tolist() == [1, 1, 1]
    assert made.thresholds.tolist() == near(0.36906321, 0.36136697, 0.37621446)
    for weight, value in (([1, 1, 1], -1.10061812), ([1, 0, 1], -9.49101708), ([0, 0, 0], 0)):
        assert made.penalty(STRONG, torch.tensor(weight).double())["fairness"].item() == pytest.approx(value, abs=1e-6)


def test_freematch_clips_the_thresholds_of_classes():
    made = labeler("freematch", decay=0.9, lowest_threshold=0.37, highest_threshold=0.375)
    made(SEEN)
    assert made.thresholds.tolist() == near(0.37, 0.37, 0.375)
    with pytest.raises(ConfigError, match=r"^method\.lowest_threshold: is above highest_threshold, which is 0\.8"):
        composed("method=freematch", "method.lowest_threshold=0.9", "method.highest_threshold=0.8")


def test_fairness_by_hand_and_without_a_gradient_where_nothing_counts():
    # p = (.6, .4), labels (.5, .5): SN of p / h is p; wanted (.75, .25) / (.5, .5): itself
    strong = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64).log().requires_grad_()
    wanted, label = torch.tensor([0.75, 0.25]).double(), torch.tensor([0.5, 0.5]).double()
    value = fairness(strong, torch.ones(2).double(), wanted, label)
    assert value.item() == pytest.approx(0.75 * torch.tensor(0.6).log().item() + 0.25 * torch.tensor(0.4).log().item())
    for weight in (torch.zeros(2).double(), torch.tensor([1.0, 0]).double()):
        gradient = torch.autograd.grad(fairness(strong, weight, wanted, label), strong)[0]
        assert torch.isfinite(gradient).all()
        assert not gradient[weight == 0].any()


# --------------------------------------------------------------------------------------------------------- softmatch


def test_softmatch_has_the_published_code_s_values():
    for decay, mean, variance, weights, value in (
        (0.9, 0.79621446, 0.01212201, (0.98157273, 0.00030925, 1), 0.31647599),
        (1 - 1e-12, 0.8, 0.01, (0.95935981, 0.0000397, 1), 0.31237852),  # as good as no update
    ):
        made = labeler("softmatch", alignment="none", decay=decay)
        made.mean.mean.fill_(0.8)
        made.variance.mean.fill_(0.01)
        target, weight = made(SEEN)
        assert [made.mean.value.item(), made.variance.value.item()] == near(mean, variance)
        assert weight.tolist() == near(*weights)
        assert target.tolist() == [0, 1, 2]
        assert loss(target, weight) == pytest.approx(value, abs=1e-8)
    made = labeler("softmatch", alignment="none", decay=0.9)
    made(SEEN)
    assert [made.mean.value.item(), made.variance.value.item()] == near(0.37621446, 0.90312201)


def test_softmatch_weighs_by_aligned_confidence_and_labels_by_the_raw_one():
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]]).double()
    found = {}
    for moments in ("raw", "aligned"):
        made = labeler("softmatch", classes=2, decay=0, moments_of=moments)
        target, weight = made(replace(SEEN, p=p))
        # mean of p (.7, .3): rows become (.6/.7, .4/.3) and (.8/.7, .2/.3), normalised; the first one turns over
        sure = [0.4 / 0.3 / (0.6 / 0.7 + 0.4 / 0.3), 0.8 / 0.7 / (0.8 / 0.7 + 0.2 / 0.3)]
        taken = [0.6, 0.8] if moments == "raw" else sure
        mean = sum(taken) / 2
        variance = sum((x - mean) ** 2 for x in taken)
        hand = [torch.tensor(-(min(x - mean, 0) ** 2) * 4 / (2 * variance)).exp().item() for x in sure]
        assert weight.tolist() == pytest.approx(hand, abs=1e-4)  # alignment adds 1e-6
        assert target.tolist() == [0, 0]
        found[moments] = weight
    assert not torch.equal(*found.values())


def test_softmatch_can_align_to_labeled_images_and_needs_two_unlabeled_ones():
    p = replace(SEEN, p=SEEN.known.softmax(1).repeat(2, 1)[:3])
    same = labeler("softmatch", alignment="labeled", decay=0)
    same(replace(p, p=SEEN.known.softmax(1)))  # what is asked for is there already
    assert same._aligned(replace(p, p=SEEN.known.softmax(1))).flatten().tolist() == near(
        *SEEN.known.softmax(1).flatten().tolist()
    )
    with pytest.raises(ConfigError, match=r"^method\.unlabeled_ratio: one unlabeled image a step has no variance"):
        make("softmatch", "schedule.batch_size=1", "method.unlabeled_ratio=1")


# -------------------------------------------------------------------------------------------------------------- dash


def at(epoch):
    return replace(SEEN, progress=epoch / 1024)


def test_dash_falls_as_the_published_code_and_not_below_its_floor():
    made = labeler("dash")
    made.total.fill_(2.0)
    made.count.fill_(1)
    for j, rho in ((1, 1.57496063), (2, 1.24012648), (3, 0.97647754), (15, 0.05546482), (16, 0.05)):
        made(at(1 + 9 * j))
        assert made.rho.item() == pytest.approx(rho, abs=1e-8)


def test_dash_learns_from_all_in_the_warm_up_whose_last_epoch_is_rho_0():
    for of, wanted in (("labeled", 0.55173585), ("unlabeled", cross_entropy(STRONG, (2 * WEAK).softmax(1)).mean())):
        made = labeler("dash", rho_from=of)
        for epoch in (0, 8.9):
            assert made(at(epoch))[1].tolist() == [1, 1, 1]
            assert made.count.item() == 0
        for epoch in (9, 9.5):
            assert made(at(epoch))[1].tolist() == [1, 1, 1]
        made(at(10))
        assert made.count.item() == 2
        assert made.rho.item() == pytest.approx(1.0001 / 1.27 * float(wanted), abs=1e-7)
    short = labeler("dash")  # a run without a step in it
    short(at(10))
    assert short.rho.item() == pytest.approx(1.0001 / 1.27 * torch.tensor(3.0).log().item())


def test_dash_keeps_what_has_a_small_loss_with_soft_labels_and_hard_ones_at_the_floor():
    made = labeler("dash", scale=1, gamma=1.0000001)
    made.total.fill_(0.5)
    made.count.fill_(1)
    target, weight = made(at(10))
    soft = -(target * WEAK.log_softmax(1)).sum(1)
    assert soft.tolist() == near(0.31934943, 0.76565678, 0.08753857)
    assert weight.tolist() == [1, 0, 1]
    assert loss(target, weight) == pytest.approx(0.33478767, abs=1e-8)
    assert 0.9 * loss(target, made.counted(weight)) == pytest.approx(0.45196336, abs=1e-8)
    assert labeler("dash", divide_by="all").counted(weight) is weight
    assert not made.counted(torch.zeros(3)).any()
    made.total.fill_(0)
    assert made(at(10))[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


# --------------------------------------------------------------------------------------------------------------- uda


def test_uda_sharpens_labels_and_holds_the_threshold_against_what_is_not_sharpened():
    made = labeler("uda", threshold=0.6)
    target, weight = made(SEEN)
    assert target[0].tolist() == near(0.97649496, 0.02296496, 0.00054008)
    assert weight.tolist() == [1, 0, 1]
    assert loss(target, weight) == pytest.approx(0.32637941, abs=1e-8)
    divergence = (target * (target.log() - STRONG.log_softmax(1))).sum(1)
    assert (weight * divergence).mean().item() == pytest.approx(0.28631376, abs=1e-8)
    assert made.of_labeled(SEEN) is None
    assert not made.gathers


def test_uda_releases_labels_over_the_run():
    # with ten classes and half of the run done: what has probability `highest` of its class is still learned from
    for kind, highest in (("linear", 0.55), ("exp", 0.1738765), ("log", 0.9261235)):
        made = labeler("uda", annealing=kind)
        for above in (-1e-6, 1e-6):
            p = torch.full((2, 10), (1 - highest - above) / 9).double()
            p[0, 3], p[1] = highest + above, 0.1
            weight = made.of_labeled(replace(SEEN, known=p.log(), target=torch.tensor([3, 0])))
            assert weight.tolist() == ([1, 1] if above < 0 else [0, 2])
    made = labeler("uda", annealing="linear")
    weight = made.of_labeled(replace(SEEN, progress=0.25))  # 3 classes: highest .5
    assert (weight * cross_entropy(KNOWN, TARGET)).mean().item() == pytest.approx(0.79711599, abs=1e-8)
    assert made.gathers


def test_progress_of_a_captured_step_is_a_tensor():
    for name, keys in (("dash", {}), ("uda", {"annealing": "exp"}), ("uda", {"annealing": "log"})):
        found = []
        for kind in (float, lambda x: torch.tensor(x, dtype=torch.float64)):
            made = labeler(name, **keys)
            states = [made(replace(SEEN, progress=kind(e / 1024))) for e in (0, 9, 9.5, 10, 40, 1000)]
            found.append([x.tolist() for pair in states for x in pair] + [b.tolist() for b in made.buffers()])
            if name == "uda":
                found[-1].append(made.of_labeled(replace(SEEN, progress=kind(0.3))).tolist())
        assert found[0] == found[1]


def test_annealing_reaches_the_labeled_loss():
    config, method, loader, _ = make("uda", "method.annealing=linear")
    out, batch = method(loader.batch(0), ctx(config, 0)), loader.batch(0)
    views = [batch["labeled"].views["weak"], *(batch["unlabeled"].views[name] for name in ("weak", "strong"))]
    logits = method.students["student"](torch.cat([view.pixels for view in views])).logits[: len(views[0].index)]
    target = batch["labeled"].target
    each = F.cross_entropy(logits, target, reduction="none")
    kept = (-each).exp() <= 0.1  # t is 0
    assert 0 < kept.sum() < len(kept)
    assert out.losses["labeled"].item() == pytest.approx(each[kept].mean().item(), rel=1e-4)


# ----------------------------------------------------------------------------------------------- in a run, with others


def test_the_fairness_term_has_its_weight_and_its_ramp():
    values = []
    for given in ("1", "0.5", "0"):
        config, method, loader, _ = make("freematch", f"method.fairness_weight={given}")
        values.append(method(loader.batch(0), ctx(config, 0)).losses["fairness"].item())
    assert values[0] < 0
    assert values == pytest.approx([values[0], values[0] / 2, 0])
    config, method, loader, _ = make("freematch", "method.fairness_weight=1.0")
    half = ctx(config, 0)
    half.factors = {"method.fairness_weight": 0.5}
    assert method(loader.batch(0), half).losses["fairness"].item() == pytest.approx(values[1])


@each("name", NAMES)
def test_a_teacher_beside_adds_its_terms_on_labeled_and_unlabeled_images(name):
    config, method, loader, _ = make(name, "loss=kd", *TEACHER)
    out = method(loader.batch(0), ctx(config, 0))
    extra = {"fairness"} if name == "freematch" else set()
    assert set(out.losses) == {"labeled", "unlabeled_ce", "kd", "unlabeled_kd"} | extra
    assert all(torch.isfinite(value) for value in out.losses.values())
    for label in ("kd", "unlabeled_kd"):
        given = torch.autograd.grad(out.losses[label], list(method.students.parameters()), retain_graph=True)
        assert sum(g.norm().item() for g in given) > 0


# ------------------------------------------------------------------------------------------------------- kd_fixmatch


def composed(*overrides):
    with Composer() as composer:
        return composer.typed([*FAST, *overrides])


@each("name", [*NAMES, "fixmatch"])
def test_the_outer_run_of_live_labels_is_a_plain_run_of_their_method(name):
    inner = composed("method=kd_fixmatch", f"method.live={name}", "method.unlabeled_ratio=3", "loss=sce")
    shared = [f"method.unlabeled_{key}={getattr(inner.method, f'unlabeled_{key}')}" for key in ("ratio", "weight")]
    assert run_key(inner.method_class.requires(inner)["outer"]) == run_key(composed(f"method={name}", *shared))


def test_live_labels_have_keys_of_their_own():
    inner = composed("method=kd_fixmatch", "method.live={name: flexmatch, threshold: 0.9, warmup: false}")
    plain = composed("method=flexmatch", "method.threshold=0.9", "method.warmup=false")
    assert run_key(inner.method_class.requires(inner)["outer"]) == run_key(plain)
    assert run_key(inner) != run_key(composed("method=kd_fixmatch", "method.live=flexmatch"))
    assert run_key(inner) != run_key(composed("method=kd_fixmatch"))
    assert inner.needs.over_ranks == "gathered"
    assert composed("method=kd_fixmatch").needs.over_ranks == "mean"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method.live=flexmach"], "method.live.name: unknown method 'flexmach'"),
        (["method.live=dho"], "method.live: dho is not FixMatch with other labels; choose e.g. flexmatch"),
        (["method.live=kd_fixmatch"], "method.live: kd_fixmatch is not FixMatch with other labels"),
        (["method.live=peer_fixmatch"], "method.live: peer_fixmatch is not FixMatch with other labels"),
        (["method.live={name: flexmatch, tau: 0.9}"], "method.live.tau: unknown key"),
        (["method.live=flexmatch", "method.threshold=0.9"], "method.threshold: live labels are those of method.live=flexmatch"),
        (["method.live={name: flexmatch, unlabeled_ratio: 3}"], "method.live.unlabeled_ratio: both networks have that beside it; give method.unlabeled_ratio"),
    ],
)  # fmt: skip
def test_live_labels_that_cannot_be_are_refused_in_a_line(overrides, line):
    with pytest.raises(ConfigError) as refused:
        composed("method=kd_fixmatch", *overrides)
    assert len(refused.value.lines) == 1
    assert refused.value.lines[0].startswith(line)


def kd(*overrides):
    config, method, loader, _ = make("kd_fixmatch", *overrides)
    return config, method, loader


def merged(method, config, p, trusted):
    samples = Samples({}, None, {"trusted_label": torch.tensor(trusted)})
    return method.targets(samples, replace(SEEN, p=p, index=torch.arange(len(p))), ctx(config, 0))


def test_trusted_labels_fill_in_where_the_live_one_counts_less_than_half():
    p = torch.full((4, 10), 0.05)
    for row, sure in enumerate((0.55, 0.55, 0.15, 0.15)):
        p[row], p[row, 3] = (1 - sure) / 9, sure
    config, method, _ = kd("method.live={name: softmatch, decay: 0, alignment: none}")
    target, weight = merged(method, config, p, [7, -1, 7, -1])
    assert target.tolist() == [3, 3, 7, 3]
    share = torch.tensor(-(0.2**2) * 4 / (2 * 4 * 0.2**2 / 3)).exp().item()  # .2 below the mean; of four, unbiased
    assert weight.tolist() == pytest.approx([1, 1, 1, share], abs=1e-5)
    config, method, _ = kd("method.live={name: uda, threshold: 0.5}")
    target, weight = merged(method, config, p, [7, -1, 7, -1])
    assert weight.tolist() == [1, 1, 1, 0]
    assert target[2].tolist() == F.one_hot(torch.tensor(7), 10).tolist()
    assert 0.9 < target[0, 3] < 1
    config, method, _ = kd("method.live=dash", "method.merge=outer_only")
    target, weight = merged(method, config, p, [7, -1, 7, -1])
    assert weight.tolist() == [1, 0, 1, 0]
    assert target[0, 7] == 1


@each("name", NAMES)
def test_the_inner_run_has_all_that_its_live_labels_bring(name):
    keys = {"uda": ", annealing: log", "dash": ", warmup_epochs: 1024"}.get(name, "")
    config, method, loader = kd(f"method.live={{name: {name}{keys}}}")
    out = method(loader.batch(0), ctx(config, 0))
    assert set(out.losses) == {"labeled", "unlabeled_ce"} | ({"fairness"} if name == "freematch" else set())
    assert set(method.labeler.metrics()) <= set(out.metrics)
    plain = make(name, *([f"method.{keys[2:].replace(': ', '=')}"] if keys else []))
    assert type(method.labeler) is type(plain[1].labeler)
    if name == "uda":  # some labels are held back
        assert method.labeler.gathers
    assert all(torch.isfinite(torch.tensor(fit(config, method, loader, 0, 2))))


def test_live_flexmatch_without_trusted_labels_is_flexmatch():
    config, method, loader = kd("method.live=flexmatch", "method.merge=inner_only", "method.unlabeled_weight=2.5")
    other = composed("method=flexmatch", "method.unlabeled_weight=2.5")
    plain = assembled(other).method
    plain.students.load_state_dict(method.students.state_dict())
    assert fit(config, method, loader, 0, 3) == fit(other, plain, loader, 0, 3)
    assert torch.equal(method.labeler.selected, plain.labeler.selected)
