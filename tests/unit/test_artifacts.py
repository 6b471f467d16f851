"""What is made once and shared: found again under the name that it has always had, built once, damage said."""

import json
import logging
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdrun.core import artifacts
from kdrun.core.artifacts import Artifact
from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.core.files import read_npz, remove
from kdrun.core.hashing import file_hash, file_sha256, json_hash
from kdrun.core.sums import sha256_of_all
from kdrun.data.packed import Pack
from kdrun.data.sets import hf
from kdrun.data.splits import Split, keep_split
from kdrun.data.views.recipes import Weak
from kdrun.data.views.stored import StoredViews
from kdrun.methods import trusted
from kdrun.methods.clustering import ClusteringConfig
from kdrun.methods.pool import Pool
from kdrun.methods.trusted import Selection, trusted_labels
from kdrun.models.class_texts import text_features
from kdrun.results.analysis import linear_probe
from kdrun.teachers.cache import keep
from kdrun.teachers.teacher import Teacher
from kdrun.training import teacher_logits
from kdrun.training.evaluator import Evaluator
from kdrun.training.teacher_logits import TeacherLogits
from tests.damage import DAMAGE, flipped
from tests.unit.test_hf import config_of

IMAGES = torch.arange(4 * 2 * 2, dtype=torch.uint8).reshape(4, 2, 2, 1)


class Pixels(nn.Module):
    """Logits: two pixels of the image."""

    dims = {"prelogits": 2}  # noqa: RUF012
    name = "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, view, _=()):
        pixels = getattr(view, "pixels", view)
        logits = pixels.flatten(1)[:, :2].float() * self.scale
        return SimpleNamespace(logits=logits, features={"prelogits": logits})


def packed(tmp_path, monkeypatch):
    files = [tmp_path / "data" / name for name in ("a.png", "b.png")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"no image")
    Pack(Contents(files, tmp_path / "data", tmp_path), 8, "center", tmp_path, "dataset.path").build()


def parquet(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train-00000-of-00001.parquet").write_bytes(b"rows")

    def unpack(config, place):
        return {"class_names": ["cat"], "train": [0], "test": [0]}

    monkeypatch.setattr(hf, "unpack", unpack)
    hf.HuggingFace.files(config_of(tmp_path / "d", tmp_path / "data", label="class"))


def texts(tmp_path, monkeypatch):
    monkeypatch.setattr("kdrun.models.class_texts.class_features", lambda *_: torch.eye(2))
    net = SimpleNamespace(logit_scale=torch.zeros(()))
    text_features(
        lambda: net, lambda texts: torch.zeros(len(texts), 3), ["cat", "dög"], ["a {}"], {"weights": "abc", "size": 8},
        tmp_path,
    )  # fmt: skip


def teacher_outputs(tmp_path, monkeypatch):
    views, index = StoredViews(Weak(0, False, False), 4, 2), torch.tensor([0, 2, 3])
    keep(Pixels(), views, IMAGES, index, 2, torch.device("cpu"), 2, "fp32", tmp_path)


def teacher_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_logits, "_device", lambda _: "a machine")
    monkeypatch.setattr(teacher_logits, "package_versions", lambda: {"torch": "2.15.0", "hydra-core": "1.3"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    evaluator = Evaluator({"test": (IMAGES, torch.arange(4), torch.arange(4))}, 2)
    TeacherLogits(Teacher(Pixels()), torch.device("cpu"), True, tmp_path).of(evaluator)


def trusted_of(tmp_path, monkeypatch, *selected_by):
    found = {"index": torch.arange(2), "label": torch.tensor([1, 0]), "cluster": torch.zeros(2, dtype=torch.int32)}
    monkeypatch.setattr(trusted, "load_network", lambda *_: None)
    monkeypatch.setattr(trusted, "select", lambda *_: {**found, "selected": torch.ones(2, dtype=torch.uint8)})
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    pool = Pool(
        IMAGES, torch.arange(3), 2, 2, "fp32", tmp_path, lambda *_: {"coverage": 1.0}, print, torch.device("cpu")
    )
    selector, *count = selected_by or ["dec"]
    selection = Selection(0.95, selector, ClusteringConfig(), 7, *count)
    return trusted_labels(tmp_path / "student.safetensors", "0123456789ab", selection, pool)


def trusted_by_confidence(tmp_path, monkeypatch):
    trusted_of(tmp_path, monkeypatch, "confidence")


def trusted_by_confidence_as_many(tmp_path, monkeypatch):
    trusted_of(tmp_path, monkeypatch, "confidence", "dec")


def probe(tmp_path, monkeypatch):
    save_file({"w": torch.zeros(1)}, tmp_path / "student.safetensors")
    index = {split: torch.arange(2) for split in ("train", "val", "test")}
    config = SimpleNamespace(
        execution=SimpleNamespace(eval_batch_size=2), schedule=SimpleNamespace(precision="fp32", channels_last=False)
    )
    rebuilt = SimpleNamespace(
        split=SimpleNamespace(hash="fedcba9876543210"), config=config, device=torch.device("cpu"), center=None
    )
    monkeypatch.setattr(linear_probe, "images_of", lambda *_: (IMAGES, None, None))
    monkeypatch.setattr(linear_probe, "to_device", lambda network, *_: network)
    linear_probe.features(SimpleNamespace(directory=tmp_path), "student", Pixels(), rebuilt, index)


# As they were on 2026-11-29: what users have on disk is found again.
PLACES = {
    packed: "artifacts/packed/315e81d7e96b",
    parquet: "data/hf/d-a654e2e37bd5",
    texts: "artifacts/text_features/6d6338b4fd58",
    teacher_outputs: "artifacts/teacher_outputs/05c12ed36af0",
    teacher_evaluation: "artifacts/teacher_evaluation/07994b3f6834",
    trusted_of: "artifacts/trusted/c05165032f37",
    trusted_by_confidence: "artifacts/trusted/c40775818ed0",
    trusted_by_confidence_as_many: "artifacts/trusted/67eac5151cab",
    probe: "analysis/features/f4f4cd5ffdf3",
}


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_an_artifact_is_found_where_it_has_always_been(make, tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    [spec] = tmp_path.rglob("spec.json")
    assert spec.parent.relative_to(tmp_path).as_posix() == PLACES[make]
    assert not list(spec.parent.parent.glob("*.lock"))


class Builder:
    """Builds a folder with one text and counts how often."""

    def __init__(self, text="whole"):
        self.text, self.count = text, 0

    def __call__(self, folder):
        self.count += 1
        (folder / "text").write_text(self.text)
        return {"length": len(self.text)}


def text_of(folder, spec):
    text = (folder / "text").read_text()
    if len(text) != spec["length"]:
        raise ValueError("its length has changed")
    return text


def test_the_key_is_the_spec_whatever_its_order(tmp_path):
    one, other = (Artifact.of(tmp_path, "kind", spec) for spec in ({"a": 1, "b": [2]}, {"b": [2], "a": 1}))
    assert one.folder == other.folder == tmp_path / "artifacts" / "kind" / one.key
    assert len(one.key) == 12
    assert one.key == json_hash({"a": 1, "b": [2]}) != Artifact.of(tmp_path, "kind", {"a": 1}).key
    assert Artifact(tmp_path, {"a": 1}, "named").folder == tmp_path / "named"


def test_many_at_once_build_it_once_and_spec_json_holds_the_figures(tmp_path):
    artifact, build = Artifact(tmp_path, {"a": 1}), Builder()
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: artifact.value(build, text_of), range(4)))
    assert values == ["whole"] * 4
    assert build.count == 1
    spec = json.loads((artifact.folder / "spec.json").read_text())
    assert {key: spec[key] for key in spec if key not in ("sums", "checksum")} == {"a": 1, "length": 5}
    assert spec["sums"]["files"] == 1
    assert spec["sums"]["bytes"] == 5
    assert [path.name for path in tmp_path.iterdir()] == [artifact.key]


@pytest.mark.parametrize("file", ["text", "spec.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said_and_the_folder_is_built_anew_once(tmp_path, caplog, damage, file):
    artifact, build = Artifact(tmp_path, {"a": 1}), Builder()
    artifact.value(build, text_of)
    damage(artifact.folder / file)
    with caplog.at_level(logging.WARNING):
        assert artifact.value(build, text_of) == artifact.value(build, text_of) == "whole"
    assert build.count == 2
    [line] = caplog.messages
    assert line.startswith(f"{artifact.folder}: damaged (")
    assert line.endswith("; it is built anew")
    assert [path.name for path in tmp_path.iterdir()] == [artifact.key]


def test_a_file_in_the_place_of_a_folder_and_the_folder_of_another_one_are_damage_too(tmp_path):
    artifact, other, build = Artifact(tmp_path, {"a": 1}), Artifact(tmp_path, {"a": 2}), Builder()
    tmp_path.joinpath(artifact.key).write_text("in the way")
    assert artifact.value(build, text_of) == "whole"
    artifact.folder.rename(other.folder)
    assert other.value(build, text_of) == "whole"
    assert build.count == 2


def test_hidden_files_of_the_system_are_no_damage(tmp_path):
    artifact, build = Artifact(tmp_path, {"a": 1}), Builder()
    artifact.value(build, text_of)
    (artifact.folder / ".DS_Store").write_bytes(b"icons")
    (artifact.folder / ".nfs0001").write_bytes(b"deleted, and open somewhere")
    artifact.value(build, text_of)
    assert build.count == 1


def test_one_from_before_there_were_checksums_is_read_and_given_them(tmp_path, caplog):
    artifact, build = Artifact(tmp_path, {"a": 1}), Builder()
    artifact.folder.mkdir()
    (artifact.folder / "text").write_text("old")
    (artifact.folder / "spec.json").write_text('{"a": 1, "length": 3}')
    with caplog.at_level(logging.INFO):
        assert [artifact.value(build, text_of) for _ in range(2)] == ["old", "old"]
    assert [line.rpartition(": ")[2] for line in caplog.messages] == [
        "from before there were checksums; from now on it is checked"
    ]
    flipped(artifact.folder / "text")
    assert artifact.value(build, text_of) == "whole"


def test_a_large_one_is_hashed_once_for_each_state_of_its_files(tmp_path, monkeypatch, caplog):
    hashed = []

    def counted(folder, names):
        hashed.append(folder)
        return sha256_of_all(folder, names)

    monkeypatch.setattr(artifacts, "sha256_of_all", counted)
    monkeypatch.setattr(artifacts, "LARGE", 0)
    artifact, build = Artifact(tmp_path, {"a": 1}), Builder()
    artifact.value(build, text_of)
    assert len(hashed) == 1  # when it was built
    artifacts._CHECKED.clear()  # as in a new process
    artifact.value(build, text_of)
    assert len(hashed) == 1
    text = artifact.folder / "text"
    text.write_bytes(text.read_bytes())  # another time
    artifacts._CHECKED.clear()
    artifact.value(build, text_of)
    artifact.value(build, text_of)
    assert len(hashed) == 2
    before = text.stat()
    flipped(text)
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))  # the kernel keeps a time that nobody can set
    assert artifact.value(build, text_of) == "whole"
    assert "sha256 differs" in caplog.text
    (artifact.folder / "checked.json").write_text("{")
    artifacts._CHECKED.clear()
    assert artifact.value(build, text_of) == "whole"
    assert build.count == 2


def killed_while(where, tmp_path):
    artifact = Artifact(tmp_path, {"a": 1})

    def build(folder):
        (folder / "text").write_text("who")
        if where == "building":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"length": 3}

    if where == "giving the lock back":
        artifacts.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL) if not path.exists() else remove(path)
    artifact.value(build, text_of)


@pytest.mark.parametrize("where", ["building", "giving the lock back"])
def test_what_a_killed_builder_left_goes_with_the_next_one_who_comes(tmp_path, where):
    process = multiprocessing.get_context("fork").Process(target=killed_while, args=(where, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    artifact = Artifact(tmp_path, {"a": 1})
    assert len(list(tmp_path.iterdir())) == 2
    artifact.value(Builder(), text_of)
    assert [path.name for path in tmp_path.iterdir()] == [artifact.key]


def test_the_split_is_an_artifact_too(tmp_path, caplog):
    split = Split(torch.arange(3).numpy(), torch.arange(5).numpy(), torch.arange(5, 7).numpy(), 4)
    for damage in (None, *DAMAGE):
        if damage is not None:
            damage(tmp_path / "artifacts" / "split" / split.hash / "split.npz")
        keep_split(split, {"dataset": "digits", "hash": split.hash}, tmp_path)
        [folder] = (tmp_path / "artifacts" / "split").iterdir()
        assert folder.name == split.hash
        assert set(read_npz(folder / "split.npz", "key")) == {"labeled", "unlabeled", "val"}
    assert len(caplog.messages) == len(DAMAGE)


def test_what_is_built_and_cannot_be_read_is_an_error_and_a_failed_build_leaves_nothing(tmp_path):
    artifact = Artifact(tmp_path, {"a": 1})

    def failing(folder):
        (folder / "text").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        artifact.value(failing, text_of)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="its length has changed"):
        artifact.value(Builder(), lambda folder, spec: text_of(folder, {"length": 0}))


def test_damaged_trusted_labels_are_chosen_anew(tmp_path, monkeypatch, caplog):
    label, figures = trusted_of(tmp_path, monkeypatch)
    [file] = tmp_path.rglob("trusted.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    again, second = trusted_of(tmp_path, monkeypatch)
    assert "built anew" in caplog.text
    assert label.tolist() == again.tolist() == [1, 0, -1, -1]
    assert figures == second
    assert figures["key"] == file.parent.name


def test_one_hash_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert file_sha256(tmp_path / "file") == file_hash(str(tmp_path / "file"), "key")
