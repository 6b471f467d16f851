"""The image encoder of a CLIP as a student: features, weights, heads that start from its own text encoder, whole runs."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.config.prompts import templates
from kdrun.core.errors import ConfigError, DataError
from kdrun.data.views.view import View, clean
from kdrun.models.network import load_network
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import Assembly
from kdrun.training.check import check
from tests.conftest import FAST
from tests.unit.conftest import CFG, PREPROCESS
from tests.unit.test_clip import PIXELS, SETUP

PLAIN = [override for override in FAST if not override.startswith("student")]

NULL = ["student.args.model=null", "student.args.tag=null"]


def line(folder, *more):
    return [*PLAIN, "student=open_clip", f"student.file={folder}", *NULL, *more]


def model(folder, **keys) -> ModelConfig:
    return ModelConfig(name="open_clip", pretrained=True, file=str(folder), **keys)


def composed(*overrides):
    with Composer() as composer:
        return composer.typed(list(overrides))


def built(config, teacher=None):
    run = Assembly.of(config, torch.device("cpu"))
    run.teacher = Teacher(teacher or run.factory.network(ModelConfig(name="resnet8"), seed=7))
    return run.method


def test_its_features_are_the_embeddings_and_its_weights_are_published(net, folder, tmp_path):
    network = SETUP.network(model(folder), seed=0).eval()
    assert (network.size, network.dims) == (8, {"prelogits": 16})
    pixels = PIXELS[..., :8, :8]
    x = (pixels.float() / 255 - torch.tensor(PREPROCESS["mean"]).view(1, 3, 1, 1)) / torch.tensor(
        PREPROCESS["std"]
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        out = network(pixels, ("prelogits",))
        torch.testing.assert_close(out.features["prelogits"], net.encode_image(x))
        torch.testing.assert_close(out.logits, network.net.head(net.encode_image(x)))
        assert network(PIXELS).logits.shape == (4, 3)  # brought to its size
    state = network.net.state_dict()
    assert {name.split(".")[0] for name in state} == {"visual", "head"}  # no text encoder
    assert network.num_params < sum(p.numel() for p in net.parameters()) / 10

    network.save(tmp_path / "student.safetensors")
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone)
    SETUP.network(model(gone), seed=0).save(tmp_path / "other.safetensors")
    shutil.rmtree(gone)
    for name in ("student", "other"):
        with torch.no_grad():
            again = load_network(tmp_path / f"{name}.safetensors")
            torch.testing.assert_close(again(pixels, ("prelogits",)).features, out.features)

    frozen = SETUP.network(model(folder, trainable="head"), seed=0).train()
    assert [n for n, p in frozen.net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert not frozen.net.visual.training
    bare = SETUP.network(model(folder).replace(pretrained=False), seed=0)
    assert bare.net.state_dict().keys() == state.keys()
    assert not torch.equal(bare.net.visual.conv1.weight, network.net.visual.conv1.weight)


def test_a_file_of_weights_and_a_stretched_embedding(net, folder, tmp_path):
    import open_clip

    (tmp_path / "tiny-student.json").write_text(json.dumps(CFG))
    open_clip.add_model_config(tmp_path / "tiny-student.json")
    file = folder / "open_clip_model.safetensors"
    named = SETUP.network(model(file, args={"model": "tiny-student"}), seed=0)
    assert torch.equal(named.net.visual.conv1.weight, net.visual.conv1.weight)
    stretched = SETUP.network(model(file, args={"model": "tiny-student", "force_image_size": 16}), seed=0)
    assert stretched.size == 16
    assert stretched(PIXELS).logits.isfinite().all()
    for damage, error in ((b"abc", "not a readable file of weights"), (None, "no such file")):
        bad = tmp_path / f"{error[:4].strip()}.safetensors"
        if damage:
            bad.write_bytes(damage)
        with pytest.raises((ConfigError, DataError), match=rf"student\.file: .*({error}|cannot be read)"):
            SETUP.network(model(bad, args={"model": "tiny-student"}), seed=0)


def test_heads_start_from_the_student_s_own_text_encoder(net, folder, tmp_path):
    import open_clip

    outputs = f"execution.outputs={tmp_path}"
    given = ["method=dho", "method.language_aware_init=both", "method.kd_head=cosine", outputs]
    method = built(composed(*line(folder, *given)))
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    with torch.no_grad():
        rows = []
        for k in range(10):
            text = net.encode_text(tokenizer([t.format(k) for t in templates(None, "digits")]))
            rows.append(F.normalize(F.normalize(text, dim=1).mean(0), dim=0))
    wanted = torch.stack(rows)
    classifier = method.students["student"].net.get_classifier()
    torch.testing.assert_close(classifier.weight.detach(), wanted)
    torch.testing.assert_close(method.kd_head.weight.detach(), wanted)
    assert not classifier.bias.any()
    assert not [name for name in method.state_dict() if "text" in name or "token" in name]
    assert len(list((tmp_path / "artifacts" / "text_features").glob("*/spec.json"))) == 1
    for name in ("supervised", "sho"):
        one_head = built(composed(*line(folder, f"method={name}", "method.language_aware_init=ce", outputs)))
        classifier = one_head.students["student"].net.get_classifier()
        torch.testing.assert_close(classifier.weight.detach(), wanted)
        assert not classifier.bias.any()

    prompts = ["method.text_encoder=student", "teacher=open_clip", "teacher.model=null", "teacher.pretrained=null"]
    prompts += [f"teacher.path={folder}", "teacher.prompts=['the {}']"]
    other = composed(*line(folder, *given[:-1], outputs, *prompts))
    with torch.no_grad():
        the = F.normalize(net.encode_text(tokenizer([f"the {k}" for k in range(10)])), dim=1)
    torch.testing.assert_close(built(other).kd_head.weight.detach(), the)

    theirs = composed(*line(folder, *given, "method.text_encoder=teacher"))
    with pytest.raises(ConfigError, match="language_aware_init: the teacher has no text encoder"):
        built(theirs)
    teacher = SETUP.network(ModelConfig(name="resnet8"), seed=7)
    teacher.class_embeddings = torch.ones(10, 17)
    with pytest.raises(ConfigError, match="teacher's embeddings have 17 dimensions, the student's features 16"):
        built(theirs, teacher)
    built(composed(*line(folder, *given)), teacher)  # a wider teacher is no hindrance


def test_a_run_that_is_opened_after_its_weights_are_gone(folder, train, outputs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    probe = ["teacher=train", "student@teacher.model=open_clip", f"teacher.model.file={copy}"]
    probe += [override.replace("student", "teacher.model") for override in NULL]
    probe += ["teacher.model.trainable=head", "teacher.num_labels=50", "teacher.steps=3"]
    given = ["method=dho", "method.language_aware_init=both", "method.kd_head=cosine", "schedule.steps=3"]
    assert train(*line(copy, *given, *probe)) == 0
    records = {record["method"]: (place, record) for place, record in find_records(outputs)}
    place, _ = records["supervised"]
    published = SETUP.network(model(folder), seed=0).net.state_dict()
    probed = load_network(place / "student.safetensors").net.state_dict()
    for name, value in probed.items():  # only the probe has learned
        assert torch.equal(value, published[name]) == name.startswith("visual."), name
    place, record = records["dho"]
    assert record["split"]["hash"] == records["supervised"][1]["split"]["hash"]
    with safe_open(place / "student.safetensors", framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"visual", "head"}  # noqa: SIM118
    shutil.rmtree(copy)
    run = FinishedRun.open(place)
    opened, index = Assembly.restored(run), torch.arange(2)
    view = View(clean(torch.from_numpy(opened.arrays.test_images), index, opened.center), index)
    assert opened.predict(view).keys() == {"ce_head", "kd_head", "combined", "teacher"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.args.tag=null"], r"student\.args: open_clip needs the name of a model and the tag"),
        (
            ["student.args.model=null"],
            r"student\.args: open_clip needs the name of a model and the tag",
        ),
        (["student.file=/"], r"student\.args\.model: the folder in student\.file tells which network it holds"),
        (
            ["method=dho", "method.text_encoder=student", "method.language_aware_init=ce", "student=resnet8"],
            r"method\.text_encoder: student, but resnet8 has none; take student=open_clip",
        ),
        (
            ["method=dho", "method.language_aware_init=ce", "student.pretrained=false"],
            r"method\.text_encoder: the student's has learned nothing",
        ),
    ],
)
def test_mistakes(overrides, message):
    student = [] if "student=resnet8" in overrides else ["student=open_clip"]
    with pytest.raises(ConfigError, match=message):
        composed(*PLAIN, *student, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.args={model: RN51, tag: openai}"], r"student\.args\.model: open_clip knows no model 'RN51'; nearest: RN50"),
        (["student.args={model: RN50, tag: opnai}"], r"student\.args\.tag: open_clip has no weights 'opnai' of RN50"),
        (["student.args.width=3", "student.args.model=RN50"], r"student\.args\.width: not for open_clip"),
        (["student.args.model=RN50", "student.size=8"], r"student\.size: 8, but RN50 takes images of 224; .*student\.args\.force_image_size=8"),
    ],
)  # fmt: skip
def test_mistakes_that_open_clip_knows(overrides, message):
    added = [f"+{o}" if o.startswith("student.args.width") else o for o in overrides]
    config = composed(*PLAIN, "loss=ce", "method=supervised", "student=open_clip", *added)
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install kdrun\[clip\]"):
        SETUP.network(model(folder), seed=0)
