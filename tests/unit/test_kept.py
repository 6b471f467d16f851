"""Logits of a teacher that are computed once: exact enough, shared, and refused where they would be wrong."""

import json

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.data.stream import Stream
from kdrun.data.views.recipes import Crop, Weak
from kdrun.data.views.stored import StoredViews
from kdrun.data.views.view import View, together
from kdrun.methods.step import Setup
from kdrun.teachers.cache import fingerprint, keep, stored_views
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Ensemble, Tempered
from tests.conftest import FAST, TEACHER

IMAGES = torch.randint(0, 256, (12, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([0, 2, 3, 5, 7, 11])
RECIPE = Weak(1, False, True)
CROP = Crop((8, 8), 6, (0.3, 1.0), (0.75, 1.33), "bilinear", True)


def network(seed=0):
    made = Setup(10, 1, (0.3,), (0.2,), train_target=torch.zeros(12)).network(
        ModelConfig(name="resnet8", args={"width": 4}), seed
    )
    return made.eval()


def kept(outputs, net=None, count=3, images=IMAGES, recipe=RECIPE):
    net = net or network()
    teacher = Teacher(net)
    views = StoredViews(recipe, len(images), count)
    teacher.kept, figures = keep(net, views, images, INDEX, 10, images.device, 4, "fp32", outputs)
    return teacher, views, figures


def stream(views, seed=0, index=INDEX):
    target = torch.zeros(12, dtype=torch.int64)
    return Stream("labeled", IMAGES, target, index, 4, {"weak": views.recipe}, seed, stored=views)


@pytest.mark.parametrize("recipe", [RECIPE, CROP])
def test_what_is_kept_is_what_the_teacher_says_of_the_same_crops(tmp_path, recipe):
    teacher, views, _ = kept(tmp_path, recipe=recipe)
    fresh = Teacher(network())
    for step in range(6):
        view = stream(views).batch(step).views["weak"]
        torch.testing.assert_close(teacher(view).logits, fresh(view.pixels).logits, atol=2e-3, rtol=2e-3)


def test_crops_are_the_same_in_all_runs_and_change_with_the_epoch(tmp_path):
    views = StoredViews(RECIPE, 12, 3)
    seen = {}
    for seed in (0, 1):
        for step in range(9):  # six images, batches of four: six epochs
            view = stream(views, seed).batch(step).views["weak"]
            for pixels, image, which in zip(view.pixels, view.index.tolist(), view.replay.tolist(), strict=True):
                assert torch.equal(seen.setdefault((image, which), pixels), pixels)
    assert set(seen) == {(image, which) for image in INDEX.tolist() for which in range(3)}
    epochs = torch.cat([stream(views).batch(step).views["weak"].replay for step in range(9)])
    assert torch.equal(epochs, (torch.arange(36) // 6) % 3)


def test_the_network_is_not_asked_again_and_one_artifact_serves_all(tmp_path, monkeypatch):
    teacher, views, first = kept(tmp_path)
    again, _, second = kept(tmp_path)
    assert first == second == {"key": first["key"], "images": 6, "views": 3, "bytes": 6 * 3 * 11 * 2}

    def forbidden(*_):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(again.network, "forward", forbidden)
    view = stream(views).batch(0).views["weak"]
    assert torch.equal(teacher(view).logits, again(view).logits)
    joint = together([view, view])
    assert torch.equal(again(joint).logits, again(view).logits.repeat(2, 1))
    with pytest.raises(AssertionError):  # another view of the same image
        again(View(view.pixels, view.index))
    with pytest.raises(ConfigError, match="only logits are kept, and prelogits is asked"):
        again(view, ("prelogits",))


def test_another_teacher_image_or_count_is_another_artifact(tmp_path):
    keys = {
        kept(tmp_path)[2]["key"], kept(tmp_path, network(1))[2]["key"], kept(tmp_path, count=2)[2]["key"],
        kept(tmp_path, images=IMAGES.flip(0))[2]["key"],
    }  # fmt: skip
    assert len(keys) == 4
    other = network()
    other.size = 16
    assert fingerprint(other) != fingerprint(network())


def test_temperatures_share_what_is_kept_and_members_do_not(tmp_path):
    plain, views, first = kept(tmp_path)
    tempered, _, second = kept(tmp_path, Tempered(network(), 4.0).eval())
    assert first["key"] == second["key"]
    view = stream(views).batch(0).views["weak"]
    assert torch.equal(tempered(view).logits, plain(view).logits / 4)
    torch.testing.assert_close(tempered(view).logits, tempered(view.pixels).logits, atol=1e-3, rtol=2e-3)
    one, other = (Ensemble([Tempered(network(), temperature), network(1)]) for temperature in (2.0, 3.0))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-3] + b"abc", lambda b: b"no array"])
def test_a_damaged_file_is_made_anew_and_said(tmp_path, caplog, damage):
    teacher, views, figures = kept(tmp_path)
    view = stream(views).batch(0).views["weak"]
    wanted = teacher(view).logits
    path = tmp_path / "artifacts" / "teacher_outputs" / figures["key"] / "logits.npy"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))
    assert torch.equal(kept(tmp_path)[0](view).logits, wanted)
    [line] = caplog.messages
    assert line.startswith(f"{path.parent}: damaged (ValueError: ")
    assert line.endswith("; it is built anew")


CLEAN = ["teacher.cache.mode=clean", "views.weak.pad=0", "views.weak.flip=false"]


@pytest.mark.slow
def test_runs_with_kept_logits_say_so_and_are_nearly_those_without(train, outputs):
    assert train("-m", *FAST, *TEACHER, *CLEAN, "teacher.cache.mode=off,clean", "seed=0") == 0
    assert train("-m", *FAST, *TEACHER, "teacher.cache.mode=views", "teacher.cache.num_views=2", "loss=kd,ttm") == 0
    records = [json.loads(p.read_text()) for p in outputs.glob("runs/distill/*/*/*/record.json")]
    by_mode = {record["config"]["teacher"]["cache"]["mode"]: record for record in records}
    assert by_mode["off"]["artifacts"].keys() == {"teacher_evaluation"}
    off, clean = ([json.loads(line)["train/loss/kd"] for line in lines] for lines in (
        [line for line in (p.parent / "metrics.jsonl").read_text().splitlines() if "train/loss/kd" in line]
        for mode in ("off", "clean")
        for p in outputs.glob("runs/distill/*/*/*/record.json")
        if json.loads(p.read_text())["key"] == by_mode[mode]["key"]
    ))  # fmt: skip
    assert clean == pytest.approx(off, rel=0.02)
    assert by_mode["clean"]["artifacts"]["teacher_outputs"]["views"] == 1
    shared = [r["artifacts"]["teacher_outputs"] for r in records if r["config"]["teacher"]["cache"]["mode"] == "views"]
    assert len(shared) == 2
    assert shared[0] == shared[1]
    assert len(list(outputs.glob("artifacts/teacher_outputs/*/logits.npy"))) == 2


ONE = "{source: train, model: {name: resnet8}, steps: 5}"
MEMBERS = [
    "method=uncertainty_distill", "method/uncertainty=deep_ensemble", "teacher=ensemble", f"teacher.members=[{ONE}, {ONE}]",
]  # fmt: skip


def test_what_cannot_be_kept_is_refused(train, capsys):
    with Composer() as composer:
        with pytest.raises(ConfigError, match=r"teacher\.cache\.mode: views, but mixed images"):
            composer.typed(["teacher=resnet8", "teacher.cache.mode=views", "views.mix.kind=mixup"])
        clean = composer.typed(["teacher=resnet8", "teacher.cache.mode=clean"])
    with pytest.raises(ConfigError, match=r"views\.weak has crops at random scales .*; choose mode=views"):
        stored_views(clean, CROP, 12)
    for line, message in {
        (
            *TEACHER,
            "teacher.cache.mode=clean",
        ): "clean is for views without randomness, and views.weak has pad=1, flip=false",
        (
            *TEACHER,
            "teacher.cache.mode=views",
            "loss=fitnet",
        ): "only logits are kept, and the teacher's stage2 is asked for",
        (*MEMBERS, "teacher.cache.mode=views"): "only logits are kept, and the teacher's members is asked for",
    }.items():
        assert train(*FAST, *line) == 2
        assert message in capsys.readouterr().err


def test_a_teacher_without_cache_has_the_key_that_it_had():
    from kdrun.config.key import run_key

    with Composer() as composer:
        plain = run_key(composer.typed(["teacher=resnet8"]))
        assert run_key(composer.typed(["teacher=resnet8", "teacher.cache.num_views=3"])) == plain
        assert run_key(composer.typed(["teacher=resnet8", "teacher.cache.mode=views"])) != plain
        assert run_key(composer.typed(["loss=ce", "teacher.cache.mode=views"])) == run_key(composer.typed(["loss=ce"]))
