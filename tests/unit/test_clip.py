"""CLIP teachers through open_clip: tiny networks with random weights in the published format, never the network."""

import json
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.nodes import from_nodes, teacher_of
from kdrun.config.prompts import captions, templates
from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError, DataError
from kdrun.data.views.view import View, clean
from kdrun.methods.step import Setup
from kdrun.models.class_texts import class_words
from kdrun.runs.finished import FinishedRun
from kdrun.teachers.cache import Kept
from kdrun.teachers.kind import make_teacher, untrained_teacher
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import Assembly
from tests.conftest import FAST
from tests.contract.test_methods import ctx, fit, make
from tests.contract.test_ranks import asked, compare
from tests.ranks import over
from tests.unit.conftest import CFG, PREPROCESS
from tests.unit.test_captured import trained

NAMES = ("cat", "dog", "green frog")
SETUP = Setup(3, 3, (0.3,) * 3, (0.2,) * 3, train_target=torch.zeros(5, dtype=torch.int64), class_names=NAMES)
PIXELS = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a photo of a {}.", "one {} here"]


def spec(**keys) -> TeacherConfig:
    return teacher_of({"source": "open_clip", "prompts": PROMPTS, **keys})


def test_logits_are_cosines_to_the_averaged_texts(net, folder):
    import open_clip

    made = make_teacher(spec(path=str(folder)), SETUP, {})
    teacher = Teacher(made)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    with torch.no_grad():
        rows = []
        for name in NAMES:
            text = net.encode_text(tokenizer([p.format(name) for p in PROMPTS]))
            mean = F.normalize(text, dim=1).mean(0)
            rows.append(mean / mean.norm())
        classes = torch.stack(rows)
        x = F.interpolate(PIXELS.float() / 255, (8, 8), mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - torch.tensor(PREPROCESS["mean"]).view(1, 3, 1, 1)) / torch.tensor(PREPROCESS["std"]).view(1, 3, 1, 1)
        image = F.normalize(net.encode_image(x), dim=1)
        wanted = net.logit_scale.exp() * image @ classes.T
    torch.testing.assert_close(teacher.class_embeddings, classes)
    out = teacher(PIXELS, ("prelogits",))
    torch.testing.assert_close(out.logits, wanted)
    torch.testing.assert_close(out.features["prelogits"], image)
    assert teacher.dims == {"prelogits": 16}
    assert not any(p.requires_grad for p in made.parameters())
    at_zeta = Teacher(make_teacher(spec(path=str(folder), zeta=0.01), SETUP, {}))
    torch.testing.assert_close(at_zeta(PIXELS).logits, 100 * image @ classes.T)


def test_gray_images_of_the_own_size_are_not_resized(net, folder):
    teacher = Teacher(make_teacher(spec(path=str(folder)), SETUP, {}))
    gray = PIXELS[:, :1, :8, :8]
    torch.testing.assert_close(teacher(gray).logits, teacher(gray.expand(-1, 3, -1, -1)).logits)


def test_other_teachers_have_no_class_embeddings():
    from kdrun.config.model import ModelConfig

    assert Teacher(SETUP.network(ModelConfig(name="resnet8"), 0)).class_embeddings is None


def test_a_file_of_weights_needs_a_name_and_must_fit(net, folder, tmp_path):
    import open_clip

    weights = folder / "open_clip_model.safetensors"
    (tmp_path / "tiny-test.json").write_text(json.dumps(CFG))
    (tmp_path / "tiny-large.json").write_text(
        json.dumps({**CFG, "vision_cfg": {**CFG["vision_cfg"], "image_size": 16}})
    )
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    open_clip.add_model_config(tmp_path / "tiny-large.json")
    named = make_teacher(
        spec(path=str(weights), model={"name": "tiny-test", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}), SETUP, {}
    )
    whole = make_teacher(spec(pretrained=f"local-dir:{folder}"), SETUP, {})
    assert torch.equal(Teacher(named)(PIXELS).logits, Teacher(whole)(PIXELS).logits)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "old.pt")
    old = Teacher(make_teacher(spec(path=str(tmp_path / "old.pt"), model={"name": "tiny-test"}), SETUP, {}))
    assert torch.equal(old.class_embeddings, whole.class_embeddings)
    with pytest.raises(DataError, match=r"teacher\.path: .*open_clip_model.safetensors: no such folder"):
        make_teacher(spec(path=str(weights)), SETUP, {})
    with (
        torch.device("meta"),
        pytest.raises(
            ConfigError,
            match=r"does not fit tiny-large: visual.positional_embedding is \(5, 32\).* another image size\?",
        ),
    ):
        untrained_teacher(spec(path=str(weights), model={"name": "tiny-large"}), SETUP)
    stretched = make_teacher(
        spec(path=str(weights), model={"name": "tiny-test", "size": 16, "args": {"force_image_size": 16}}), SETUP, {}
    )
    assert Teacher(stretched)(PIXELS).logits.isfinite().all()
    with (
        torch.device("meta"),
        pytest.raises(
            ConfigError, match=r"teacher\.model\.size: 16, but tiny-test takes images of 8 .*force_image_size=16"
        ),
    ):
        untrained_teacher(spec(path=str(weights), model={"name": "tiny-test", "size": 16}), SETUP)


def test_a_check_without_memory_computes_nothing(folder):
    with torch.device("meta"):
        made = untrained_teacher(spec(path=str(folder)), SETUP)
        assert made(torch.empty(2, 3, 8, 8, dtype=torch.uint8)).logits.shape == (2, 3)
    assert all(p.is_meta for p in made.parameters())


def test_published_weights_without_a_network_fail_at_once_and_name_the_file():
    started = time.perf_counter()
    missing = spec(model={"name": "RN50"}, pretrained="cc12m")
    with (
        torch.device("meta"),
        pytest.raises(
            DataError,
            match=r"teacher\.pretrained: cc12m of RN50 cannot be had .*fetch open_clip_model.safetensors.* of \S+ .*name the file in teacher\.path",
        ),
    ):
        untrained_teacher(missing, SETUP)
    assert time.perf_counter() - started < 10


def write_pickle(path):
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.system, ("touch attacked",)

    (path / "open_clip_model.safetensors").write_bytes(pickle.dumps(Attack()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "open_clip_config.json").unlink(), "no open_clip_config.json"),
        (lambda p: (p / "open_clip_config.json").write_text("{}"), "not a configuration of open_clip"),
        (lambda p: (p / "open_clip_model.safetensors").unlink(), "no weights; expected open_clip_model.safetensors"),
        (lambda p: (p / "open_clip_model.safetensors").write_bytes(b"abc"), "not a readable file of weights"),
        (write_pickle, "would run its code|not a readable file"),
    ],
)
def test_damaged_folders(folder, tmp_path, monkeypatch, damage, message):
    import shutil

    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with torch.device("meta"), pytest.raises(DataError, match=message):
        untrained_teacher(spec(path=str(copy)), SETUP)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": {"name": "RN51"}, "pretrained": "openai"}, r"teacher\.model\.name: open_clip knows no model 'RN51'; nearest: RN50"),
        ({"model": {"name": "RN50"}, "pretrained": "opnai"}, r"teacher\.pretrained: open_clip has no weights 'opnai' of RN50; nearest: openai"),
        ({"model": {"name": "RN50", "args": {"width": 3}}, "pretrained": "openai"}, r"teacher\.model\.args\.width: not for open_clip"),
        ({"model": {"name": "RN50"}}, r"open_clip needs teacher\.model\.name and teacher\.pretrained"),
        ({"path": "x", "prompts": ["a cat"]}, r"'a cat' must hold \{\} once"),
        ({"path": "x", "prompts": []}, "no template"),
        ({"path": "x", "zeta": 0}, "zeta"),
    ],
)  # fmt: skip
def test_mistakes(keys, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        untrained_teacher(spec(**keys), SETUP)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no name for class 0 to 2, "),
        (("a", " ", "c"), "no name for class 1, "),
        (
            ("n01440764", "n01443537", "n00000003"),
            "the classes are WordNet's numbers, e.g. n00000003, which is none of ",
        ),
    ],
)
def test_a_class_without_a_name(folder, names, message):
    from dataclasses import replace

    with pytest.raises(ConfigError, match=rf"dataset\.class_names: {message}"):
        make_teacher(spec(path=str(folder)), replace(SETUP, class_names=names), {})


def test_wordnet_ids_of_imagenet_are_words():
    setup = Setup(
        3, 3, (0.3,) * 3, (0.2,) * 3, train_target=torch.zeros(5), class_names=("n01440764", "n02012849", "n15075141")
    )
    assert class_words(setup) == ["tench", "crane bird", "toilet paper"]


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install kdrun\[clip\]"):
        make_teacher(spec(path=str(folder)), SETUP, {})


def test_text_features_are_kept_and_a_damaged_file_is_made_anew(folder, tmp_path, caplog):
    first = make_teacher(spec(path=str(folder)), SETUP, {}, outputs=tmp_path)
    [kept] = (tmp_path / "artifacts" / "text_features").glob("*/features.safetensors")
    stamp = kept.stat().st_mtime_ns
    again = make_teacher(spec(path=str(folder)), SETUP, {}, outputs=tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert torch.equal(first.class_embeddings, again.class_embeddings)
    kept.write_bytes(b"damaged")
    repaired = make_teacher(spec(path=str(folder)), SETUP, {}, outputs=tmp_path)
    assert "built anew" in caplog.text
    assert torch.equal(first.class_embeddings, repaired.class_embeddings)
    make_teacher(spec(path=str(folder), prompts=["the {}"]), SETUP, {}, outputs=tmp_path)
    assert len(list((tmp_path / "artifacts" / "text_features").glob("*/spec.json"))) == 2


def compose(folder, *more):
    with Composer() as composer:
        return composer.typed(
            [
                *FAST,
                "teacher=open_clip",
                f"teacher.path={folder}",
                "teacher.pretrained=null",
                "teacher.model=null",
                *more,
            ]
        )


def test_the_key_knows_the_content_the_words_and_the_defaults(folder, tmp_path):
    import shutil

    config = compose(folder)
    assert config.teacher.prompts == ["a photo of the number {}.", "the figure {} on paper.", "somebody wrote {} here."]
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert run_key(compose(copy)) == run_key(config)
    weights = (copy / "open_clip_model.safetensors").read_bytes()
    (copy / "open_clip_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))  # of the same size
    assert run_key(compose(copy)) != run_key(config)
    assert run_key(compose(folder, "teacher.prompts=food101")) != run_key(config)
    words = "dataset.class_names=[zero,one,two,three,four,five,six,seven,eight,nine]"
    assert run_key(compose(folder, words)) != run_key(config)
    (tmp_path / "names.txt").write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    assert run_key(compose(folder, f"dataset.class_names={tmp_path / 'names.txt'}")) == run_key(compose(folder, words))
    with Composer() as composer:  # nobody reads the names
        assert run_key(composer.typed(["loss=ce", words])) == run_key(composer.typed(["loss=ce"]))


def test_a_run_with_a_clip_teacher(folder, train, outputs, capsys):
    line = [*FAST, "teacher=open_clip", f"teacher.path={folder}", "teacher.pretrained=null", "teacher.model=null"]
    assert train(*line, "dataset.class_names=[zero,one]") == 2
    assert "dataset.class_names: 2 names for 10 classes" in capsys.readouterr().err
    assert train(*line) == 0
    [path] = outputs.glob("runs/distill/*/*/*/record.json")
    record = json.loads(path.read_text())
    assert "test/teacher/top1" in record["metrics"]
    from_nodes(record["config"])  # can be opened again

    opened, index = Assembly.restored(FinishedRun.open(path.parent)), torch.arange(2)
    assert "teacher" in opened.predict(View(clean(torch.from_numpy(opened.arrays.test_images), index), index))


TINY = (
    "{embed_dim: 16, vision_cfg: {image_size: 8, layers: 1, width: 16, patch_size: 4, head_width: 8}, "
    "text_cfg: {context_length: 16, vocab_size: 49408, width: 8, heads: 2, layers: 1}}"
)


TINY_CLIP = ["student=digits_clip", f"student.args={TINY}", "schedule=clip", "schedule.batch_size=16"]


@pytest.fixture
def contrastive(monkeypatch):
    """Config, method, loader and labels of a tiny CLIP; the same at each call."""
    plain = [override for override in FAST if not override.startswith("student.args")]
    monkeypatch.setattr("tests.contract.test_methods.FAST", plain)
    return lambda *more: make("contrastive", *TINY_CLIP, "schedule.steps=20", *more)


def test_contrastive_steps_can_be_captured(contrastive, tmp_path):
    """As in test_captured.py, by adamw: but for the learning rate's rounding to float32 the same."""
    found = []
    for kind in ("fused", "graph"):
        (tmp_path / kind).mkdir()
        found.append(trained(tmp_path / kind, "contrastive", *TINY_CLIP, f"schedule.{kind}=true")[1])
    one, other = ({name: value for name, value in state.items() if value.is_floating_point()} for state in found)
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_contrastive_processes_hold_an_image_against_the_captions_of_all(contrastive, tmp_path):
    config, _, _, _ = contrastive()
    ranks, one = over(2, tmp_path, asked, {"contrastive": config}), asked({"contrastive": config})
    compare(ranks[0]["contrastive"], one["contrastive"])
    assert ranks[0]["contrastive"]["states"] == ranks[1]["contrastive"]["states"]


def test_captions_say_the_class_and_never_a_template_of_the_teacher():
    names = [str(k) for k in range(10)]
    said = captions(None, "digits", names)
    assert "a thin zero" in said[0][0]
    assert "a bold zero" in said[0][1]
    assert not {"a bold zero", "a heavy nought"} & set(said[0][0])
    everything = [sentence for one in said for tone in one for sentence in tone]
    assert len(everything) == len(set(everything)) + sum(
        len(set(a) & set(b)) for a, b in said
    )  # no class says another's
    held_out = {template.format(word) for template in templates("digits", "digits") for word in names}
    assert not held_out & set(everything)
    assert captions(None, "cifar10", ["cat", "dog"])[1][1][0] == "a photo of a dog"
    with pytest.raises(ConfigError, match="digits has words for 10 classes, the dataset has 2"):
        captions("digits", "npz", ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"no set of captions 'digit'; nearest: digits \(allowed: any, digits\)"):
        captions("digit", "npz", names)


def test_contrastive_training_learns_resumes_and_moves_everything(contrastive):
    config, method, loader, _ = contrastive()
    out = method(loader.batch(0), ctx(config, 0))
    out.losses["ce"].backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    method.zero_grad()
    from kdrun.training.optimizer import make_optimizer

    losses = fit(config, method, loader, 0, 20)
    assert losses[-1] < losses[0]
    _, first, loader, _ = contrastive()
    optimizer = make_optimizer(first)
    head = fit(config, first, loader, 0, 10, optimizer)
    _, second, loader, _ = contrastive()
    second.load_state_dict(first.state_dict())
    other = make_optimizer(second)
    other.load_state_dict(optimizer.state_dict())
    assert head + fit(config, second, loader, 10, 20, other) == losses
    method.eval()
    view = loader.batch(0)["labeled"].views["weak"]
    assert method.predict(view)["student"].shape == (16, 10)
    torch.testing.assert_close(method.students["student"].net.class_embeddings.norm(dim=1), torch.ones(10))


def test_equal_captions_share_their_images(contrastive):
    config, method, loader, _ = contrastive()
    batch = loader.batch(0)
    method.tokens[:] = method.tokens[0, 0, 0]  # everything says the same
    logits = method(batch, ctx(config, 0)).losses["ce"].item()
    assert logits == pytest.approx(torch.tensor(16.0).log().item(), abs=0.5)


def test_a_student_of_a_clip_that_kdrun_trained_on_other_images(train, outputs):
    line = [*FAST, "dataset.upstream=0.5", "teacher=digits_clip", f"teacher.model.args={TINY}", "teacher.steps=3"]
    assert train(*line, "dataset.num_labels=20") == 0
    assert train(*line, "dataset.num_labels=30", "schedule.lr=0.1") == 0
    [clip] = outputs.glob("runs/contrastive/digits/nall/*/record.json")  # one for both
    [one, _] = sorted(outputs.glob("runs/distill/digits/*/*/record.json"))
    clip, one = json.loads(clip.read_text()), json.loads(one.read_text())
    assert one["requires"]["teacher"] == clip["key"]
    assert "test/teacher/top1" in one["metrics"]
    assert one["metrics"]["test/teacher/top1"] == pytest.approx(clip["metrics"]["test/student/top1"])
    parts = {}
    for name, record in {"clip": clip, "student": one}.items():
        with np.load(outputs / "artifacts" / "split" / record["split"]["hash"] / "split.npz") as file:
            parts[name] = {key: set(file[key].tolist()) for key in file.files}
    assert parts["clip"]["labeled"] == parts["clip"]["unlabeled"]
    assert not parts["clip"]["unlabeled"] & parts["student"]["unlabeled"]
    assert len(parts["clip"]["unlabeled"] | parts["student"]["unlabeled"]) == 1257
    assert parts["clip"]["val"] == parts["student"]["val"]


def test_dho_learns_from_kept_logits_of_a_clip_and_is_opened_again(train, outputs, monkeypatch):
    asked = []
    plain = Kept.__call__
    monkeypatch.setattr(Kept, "__call__", lambda *args: asked.append(len(args[1])) or plain(*args))
    line = [
        *FAST, "method=dho", "method.language_aware_init=both", "dataset.upstream=0.5", "teacher=digits_clip",
        f"teacher.model.args={TINY}", "teacher.steps=3", "teacher.temperature=2", "teacher.cache.mode=views",
        "teacher.cache.num_views=2", "schedule.steps=4",
    ]  # fmt: skip
    assert train(*line) == 0
    assert asked == [32] * 4  # labeled and unlabeled images together, in every step
    [path] = outputs.glob("runs/dho/digits/*/*/record.json")
    record = json.loads(path.read_text())
    assert record["artifacts"]["teacher_outputs"]["images"] == record["split"]["unlabeled"]
    run = FinishedRun.open(path.parent)
    rebuilt = Assembly.restored(run)
    images, index = torch.from_numpy(rebuilt.arrays.test_images), torch.arange(400)
    with torch.no_grad():
        for name in ("teacher", "combined"):
            again = rebuilt.predict(View(clean(images, index), index))[name]
            torch.testing.assert_close(again, run.predictions("test", name)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["method=contrastive", "student=resnet8"], "trains a CLIP, got resnet8"),
        (["method=contrastive", "loss=evidential"], r"loss\.evidential: method=contrastive"),
        (["method=contrastive", "dataset.part=upstream"], "the upstream part is empty"),
        (
            ["teacher=digits_clip", "student@teacher.model=resnet8"],
            "source=clip trains a network named clip, got resnet8",
        ),
    ],
)
def test_unfit_ways_to_train_a_clip(line, message):
    with Composer() as composer, pytest.raises(ConfigError, match=message):
        composer.typed(line)
