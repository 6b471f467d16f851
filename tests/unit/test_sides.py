"""Networks of a fixed size, with two heads, or with parts that share weights: they work, or one line says what to give."""

import pytest
import torch
from timm.models import register_model
from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.models.network import Network, NetworkSpec, build_network, load_network, outline
from kdrun.models.sides import refuse_images
from kdrun.runs.record import read_record
from tests.conftest import FAST

FIXED = ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s", "swin_tiny_patch4_window7_224",
         "halonet_h1", "efficientformer_l1", "csatv2"]  # fmt: skip


def made(name: str, size: int | None = None, **args) -> Network:
    model = ModelConfig(name=name, size=size, args=args)
    return outline(NetworkSpec(model.model_dump(), 3, 3, (0.5,) * 3, (0.5,) * 3))


def pixels(side: int) -> torch.Tensor:
    return torch.empty((2, 3, side, side), dtype=torch.uint8, device="meta")


@pytest.mark.parametrize("name", FIXED)
def test_what_a_network_of_a_fixed_size_is_told_to_give_would_do(name):
    with torch.device("meta"), pytest.raises(ConfigError) as refused:
        refuse_images(made(name), pixels(32), "student_2", "students.1", fresh=True)
    line = str(refused.value)
    assert line.startswith(f"student_2: {name} does not take images of 32x32")
    hints = line.rpartition("; give ")[2].split(" or ")
    assert hints[0].startswith("students.1.size=")
    for hint in hints:
        key, value = hint.removeprefix("+").removeprefix("students.1.").split("=")
        changed = {"size": int(value)} if key == "size" else {key.removeprefix("args."): int(value)}
        with torch.device("meta"):
            refuse_images(made(name, **changed), pixels(32), "student_2", "students.1", fresh=True)
    with torch.device("meta"), pytest.raises(ConfigError) as refused:
        refuse_images(made(name), pixels(32), "teacher", "teacher.model", fresh=False)
    assert str(refused.value).rpartition("; give ")[2] == hints[0].replace("students.1", "teacher.model")


def test_a_size_that_a_network_does_not_take_is_refused_too():
    with torch.device("meta"), pytest.raises(ConfigError, match=r"images of 100x100 .*; give student\.size=224"):
        refuse_images(made("deit_tiny_patch16_224", size=100), pixels(32), "student", "student", fresh=True)
    with torch.device("meta"):
        refuse_images(made("resnet10t"), pixels(32), "student", "student", fresh=True)


MEMBERS = "teacher.members=[{source: train, model: resnet8}, {source: train, model: deit_tiny_patch16_224}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["student=deit_tiny_patch16_224"], "student: deit_tiny_patch16_224 does not take images of 8x8 (Input height (8) doesn't match model (224)); give student.size=224"),
        (["method=peer_distill", "students=[resnet8,levit_128s]"], "student_2: levit_128s does not take images of 8x8 "),
        (["loss=kd", "teacher=deit_tiny_patch16_224"], "teacher: deit_tiny_patch16_224 does not take images of 8x8 (Input height (8) doesn't match model (224)); give teacher.model.size=224"),
        (["loss=kd", "teacher=ensemble", MEMBERS], "teacher: deit_tiny_patch16_224 does not take images of 8x8 (Input height (8) doesn't match model (224)); give teacher.members.1.model.size=224"),
        (["student=resnet18", "schedule.batch_size=1"], "schedule.batch_size: 1: batch normalisation sees one value of a channel"),
        (["student.head=mlp", "schedule.batch_size=1"], "schedule.batch_size: 1: batch normalisation sees one value of a channel"),
        (["student=qwen3_vit_88m_enc"], "student.name or teacher.model.name: qwen3_vit_88m_enc lacks get_classifier()"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_anything_runs(words, line, train, outputs, capsys):
    assert train("tracker=none", *words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1
    assert not outputs.exists()


@pytest.mark.slow
def test_a_student_of_two_heads_is_trained_and_said(train, outputs):
    student = ["student=deit_tiny_distilled_patch16_224", "student.size=32", "+student.args={img_size: 32, depth: 1}"]
    words = [word for word in FAST if not word.startswith("student")]
    assert train(*words, *student, "method=supervised", "loss=ce", "schedule.steps=2") == 0
    [path] = outputs.glob("runs/*/*/*/*/record.json")
    [warning] = [line for line in read_record(path.parent)["warnings"] if "classifiers" in line]
    assert warning.startswith("student: deit_tiny_distilled_patch16_224 has 2 classifiers; it gives one answer")
    both = load_network(path.parent / "student.safetensors")
    assert (both.num_heads, "prelogits" in both.dims) == (2, False)


def test_the_answer_of_two_heads_is_their_mean_in_training_too():
    both = build_network(
        ModelConfig(name="deit_tiny_distilled_patch16_224", args={"img_size": 32, "depth": 1}),
        num_classes=3, in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, seed=0,
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    for head in both.net.get_classifier():
        head.register_forward_hook(lambda module, given, out: seen.append(out))
    for mode in (True, False):
        out = both.train(mode)(torch.rand(2, 3, 32, 32)).logits
        assert torch.allclose(out, (seen[-2] + seen[-1]) / 2)


class Tied(nn.Module):
    """A layer under two names, and a weight that another layer looks into."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_chans, in_chans, 1)
        self.again = self.first
        self.other = nn.Conv2d(in_chans, in_chans, 1)
        self.other.weight = self.first.weight
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x):
        return self.head(self.other(self.again(self.first(x))).mean((2, 3)))

    def get_classifier(self):
        return self.head


@register_model
def tied_network(num_classes=3, in_chans=3, **_):
    return Tied(num_classes, in_chans)


@pytest.mark.parametrize("name", ["tied_network", "coat_tiny"])
def test_parts_that_share_weights_are_saved(name, tmp_path):
    args = {"img_size": 32} if name == "coat_tiny" else {}
    network = build_network(
        ModelConfig(name=name, args=args), num_classes=3, in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, seed=0
    )
    network.save(tmp_path / "a.safetensors")
    again = load_network(tmp_path / "a.safetensors")
    assert again.num_params == network.num_params  # they share them still
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x).logits, network.eval()(x).logits)


@pytest.mark.parametrize(
    "name", ["hiera_tiny_224", "sam2_hiera_tiny", "resnet10t", "levit_128s", "deit_tiny_patch16_224"]
)
def test_each_stage_alone_leaves_the_logits_as_they_are(name):
    """Some stop behind the last map that is asked, unless they are told to go on."""
    network = build_network(
        ModelConfig(name=name, size=64 if name == "resnet10t" else 224), num_classes=3, in_chans=3, mean=[0.5] * 3,
        std=[0.5] * 3, seed=0,
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        plain = network(x).logits
        for stage in [feature for feature in network.dims if feature.startswith("stage")][:4]:
            out = network(x, (stage,))
            assert out.features[stage].shape[1] == network.dims[stage]
            assert torch.allclose(out.logits, plain, atol=1e-5)
