"""What the teacher says of train images before the first step: by hand, once, and only where a term asks."""

import shutil

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.files import remove
from kdrun.data.loader import Loader
from kdrun.losses.classes import class_means, linear_cka, similarity_by_label, similarity_by_teacher
from kdrun.losses.nd import ND
from kdrun.losses.term import TermSpec
from kdrun.losses.wkd_logit import WKDLogit
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import Assembly
from kdrun.training.statistics import AskedTeacher
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import ctx, make
from tests.unit.test_published import write_image, write_tree

# ----------------------------------------------------------------------------------------------------- by hand


def test_means_are_of_the_images_of_a_known_label():
    features = torch.tensor([[1.0, 0], [3, 2], [9, 9], [5, 4]])
    target = torch.tensor([0, 0, -1, 2])
    means = class_means(features, torch.zeros(4, 3), target)
    assert means[0].tolist() == [2, 1]
    assert means[1].isnan().all()
    assert means[2].tolist() == [5, 4]


def test_linear_cka_by_hand():
    # centred: x (-1, 0, 1), y (1, -2, 1): <x, y>^2 / (|x|^2 |y|^2) = 0; z = (-1, 0, 1) + (1, -2, 1): 2^2 / (2 * 8) = 1/4
    sets = torch.tensor([[1.0, 2, 3], [1, -2, 1], [0, -2, 2]])[:, :, None]
    expected = torch.tensor([[1, 0, 0.25], [0, 1, 0.75], [0.25, 0.75, 1]])
    torch.testing.assert_close(linear_cka(sets), expected)


def test_linear_cka_is_that_of_the_formula_in_blocks_and_knows_no_scale_or_rotation(monkeypatch):
    sets = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = sets - sets.mean(1, keepdim=True)
    cross = torch.einsum("ind,jne->ijde", x, x).square().sum((2, 3))
    expected = cross / (cross.diagonal()[:, None] * cross.diagonal()).sqrt()
    torch.testing.assert_close(linear_cka(sets), expected.float())
    monkeypatch.setattr("kdrun.losses.classes.BLOCK", 60)  # two rows of four Gram matrices
    torch.testing.assert_close(linear_cka(sets), expected.float())
    turned = sets.clone()
    turned[0] = 5 * sets[0] @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] + 2
    torch.testing.assert_close(linear_cka(turned), expected.float())


def test_similarities_are_of_as_many_images_of_each_class_in_their_order():
    features = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 0, 1, -1, 0, 1, 0, -1])
    expected = linear_cka(features[torch.tensor([[0, 2, 5], [1, 3, 6]])])
    torch.testing.assert_close(similarity_by_label(features, torch.zeros(9, 2), target), expected)
    logits = torch.zeros(9, 3)
    logits[[8, 0, 4], 1] = torch.tensor([2.0, 1, 3])  # of the classes 0 and 2, what is nowhere the most probable
    logits[[8, 0, 4], 0] = torch.tensor([-5.0, -6, -7])
    found = similarity_by_teacher(features, logits, target)
    others = torch.tensor([k for k in range(9) if k not in (0, 4, 8)])
    assert found.shape == (3, 3)
    chosen = [logits.log_softmax(1)[:, k].topk(3).indices.sort().values for k in range(3)]
    assert chosen[1].tolist() == [0, 4, 8]
    assert set(chosen[0].tolist()) <= set(others.tolist())
    torch.testing.assert_close(found, linear_cka(features[torch.stack(chosen)]))


def test_features_that_are_all_the_same_are_like_no_other():
    found = linear_cka(torch.stack([torch.ones(3, 2), torch.eye(3)[:, :2]]))
    assert found.tolist() == [[0, 0], [0, 1]]


# ------------------------------------------------------------------------------------------------ what is asked


def asked(*overrides):
    config, method, _, _ = make("distill", *overrides)
    run = Assembly.of(config, torch.device("cpu"))
    run.teacher, run.method = method.setup.teacher, method
    return run, method


def test_the_labeled_images_and_no_hidden_label_count():
    run, _ = asked("loss=nd")
    seen = {}

    def look(features, logits, target):
        seen.update(features=features, logits=logits, target=target)
        return logits

    labeled = (run.setup.train_target >= 0).nonzero()[:, 0]
    logits = AskedTeacher(run, keep=False)(look)
    pixels = torch.from_numpy(run.arrays.train_images)[labeled].permute(0, 3, 1, 2)
    torch.testing.assert_close(logits, run.teacher(pixels).logits)
    assert torch.equal(seen["target"], run.labels[labeled])
    assert seen["features"] is seen["logits"]
    assert AskedTeacher(run, keep=False)(look, "prelogits").shape == (50, 10)
    assert seen["features"].shape == (50, run.teacher.dims["prelogits"])
    AskedTeacher(run, keep=False)(look, everything=True)
    shown = len(set(run.split.labeled.tolist()) | set(run.split.unlabeled.tolist()))
    assert len(seen["target"]) == shown > 50
    assert (seen["target"] >= 0).sum() == 50


def test_terms_hold_what_they_asked_for():
    run, method = asked("loss=nd", "+loss/term@loss.wkd=wkd_logit")
    teacher = AskedTeacher(run, keep=False)
    terms = method.losses().terms
    torch.testing.assert_close(
        terms["nd"].directions, torch.nn.functional.normalize(teacher(class_means, "prelogits"), dim=1)
    )
    torch.testing.assert_close(terms["wkd"].cost, 1 - (teacher(similarity_by_label) - 1).exp())
    run, method = asked("loss=wkd_logit", "loss.wkd_logit.classes=teacher", "loss.wkd_logit.features=prelogits")
    found = AskedTeacher(run, keep=False)(similarity_by_teacher, "prelogits", everything=True)
    torch.testing.assert_close(method.losses().terms["wkd_logit"].cost, 1 - (found - 1).exp())


def statistics(outputs):
    return sorted(path.parent for path in outputs.glob("artifacts/teacher_statistics/*/spec.json"))


COMMAND = [*FAST, *TEACHER, "loss=kdpp", "+loss/term@loss.wkd=wkd_logit", "dataset.split_seed=0", "schedule.steps=6",
           "schedule.eval_every_steps=null", "execution.checkpoint_every_steps=2"]  # fmt: skip


@pytest.fixture
def runs(outputs):
    return lambda: {record["seed"]: (path, record) for path, record in find_records(outputs) if record["nets"]
                    and record["method"] == "distill"}  # fmt: skip


def test_runs_share_them_a_term_that_asks_nothing_makes_none_and_a_resumed_run_asks_nothing(
    train, outputs, runs, monkeypatch, capsys
):
    assert train(*FAST, *TEACHER, "loss=kd", "schedule.steps=2", "dataset.split_seed=0") == 0
    assert statistics(outputs) == []
    assert train(*COMMAND, "seed=1") == 0
    found = statistics(outputs)
    assert len(found) == 2
    assert "class_means of 50 train images: computed once" in capsys.readouterr().out
    made = {path: (path / "spec.json").stat().st_mtime_ns for path in found}
    calls = []
    plain = AskedTeacher._computed
    monkeypatch.setattr(AskedTeacher, "_computed", lambda self, *given: calls.append(given) or plain(self, *given))
    assert train(*COMMAND, "seed=2") == 0
    assert (calls, {path: (path / "spec.json").stat().st_mtime_ns for path in statistics(outputs)}) == ([], made)
    figures = runs()[2][1]["artifacts"]
    assert {figures[f"teacher_{name}"]["key"] for name in ("class_means", "similarity_by_label")} == {
        path.name for path in found
    }
    assert figures["teacher_class_means"]["images"] == 50
    # of other labels, they are others
    assert train(*COMMAND, "dataset.split_seed=1", "schedule.steps=2") == 0
    assert (len(statistics(outputs)), len(calls)) == (4, 2)


def test_a_resumed_run_has_them_from_its_checkpoint_and_a_finished_one_does_without(
    train, outputs, runs, tmp_path, monkeypatch
):
    assert train(*COMMAND) == 0
    whole = runs()[0]
    kept = {name: (whole[0] / name).read_bytes() for name in ("student.safetensors", "metrics.jsonl")}
    remove(whole[0])
    plain = Loader.batch

    def broken(self, step):
        if step == 5:
            raise OSError("gone")
        return plain(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", broken)
        assert train(*COMMAND) == 1
    remove(outputs / "artifacts" / "teacher_statistics")
    with monkeypatch.context() as patch:
        patch.setattr(AskedTeacher, "__call__", lambda *_, **__: pytest.fail("asked again"))
        assert train(*COMMAND) == 0
        path, record = runs()[0]
        assert {name: (path / name).read_bytes() for name in kept} == kept
        assert record["artifacts"] == whole[1]["artifacts"]
        run = Assembly.restored(FinishedRun(path, record))
        assert not [term for losses in run.method.loss_sets.values() for term in losses.terms]
    assert statistics(outputs) == []


@pytest.mark.parametrize("loss", ["nd", "wkd_logit"])
def test_a_term_that_was_given_nothing_has_no_finite_loss(loss):
    config, method, loader, _ = make("distill", f"loss={loss}")
    fresh = config.method_class(config, method.setup).train()
    assert not torch.isfinite(fresh(loader.batch(0), ctx(config, 0)).losses[loss])


def spec(method, target=None):
    given = method.setup.train_target if target is None else target
    dims = (method.networks()["student"].dims, method.setup.teacher.dims)
    return TermSpec(10, len(given), *dims, given)


@pytest.mark.parametrize(("cls", "left", "message"), [
    (ND, 0, "nd needs a labeled image of each class, and class 3 has none (1 of 10 classes); give more labels"),
    (WKDLogit, 2, "classes: labels needs 3 labeled images of each class (of two, all classes are as alike), and class 3 "
                  "has 2; set it to teacher"),
])  # fmt: skip
def test_too_few_labels_are_refused_in_one_line(cls, left, message):
    _, method = asked("loss=kd")
    target = method.setup.train_target.clone()
    target[(target == 3).nonzero()[left:, 0]] = -1
    config = cls.Config(name=cls.__name__)
    with pytest.raises(ConfigError) as error:
        cls(config, spec(method, target))
    (line,) = error.value.lines
    assert line.startswith(message)
    if cls is WKDLogit:
        cls(config.replace(classes="teacher"), spec(method, target))


@pytest.mark.parametrize("how", ["dataset.pack.size=8", "dataset.stream=true"])
def test_images_in_files_are_asked_about_and_named_by_their_content(tmp_path, monkeypatch, how):
    write_tree(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    calls, plain = [], AskedTeacher._computed
    monkeypatch.setattr(AskedTeacher, "_computed", lambda self, *given: calls.append(given) or plain(self, *given))

    def means(root):
        with Composer() as composer:
            config = composer.typed([
                *FAST, *TEACHER, "dataset=imagefolder", f"dataset.path={root}", "dataset.size=8", how, "loss=kd",
                f"execution.outputs={tmp_path / 'outputs'}", "dataset.num_labels=null", "dataset.val_fraction=0",
            ])  # fmt: skip
        run = Assembly.of(config, torch.device("cpu"))
        run.teacher = Teacher(run.factory.network(ModelConfig(name="resnet8"), seed=7))
        found = AskedTeacher(run)(class_means, "prelogits")
        assert found.shape == (run.arrays.num_classes, run.teacher.dims["prelogits"])
        assert found.isfinite().all()
        return found

    first = means(tmp_path / "data")
    assert torch.equal(means(tmp_path / "copy"), first)
    assert len(calls) == 1
    write_image(next((tmp_path / "copy" / "train").glob("*/*.png")), color=(1, 2, 3))
    assert not torch.equal(means(tmp_path / "copy"), first)
    assert len(calls) == 2
