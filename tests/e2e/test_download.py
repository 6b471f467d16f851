"""scripts/download.py without a network: what is there, what can be fetched, and what goes where by hand."""

import socket
from pathlib import Path

import huggingface_hub
import pytest

from kdrun.cli.download import configs_of, main, needs_of
from kdrun.config.nodes import read_conf
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.results.spec import TableConfig
from tests.unit.test_published import write_cifar10
from tests.unit.test_readers import write_oxford_pets

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)  # datasets are below data/, where there are none


def lines_of(capsys) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_run_that_has_everything(tmp_path, capsys):
    assert main(["experiment=demo"]) == "1 of 1 present"
    assert lines_of(capsys) == ["present dataset digits"]
    write_oxford_pets(tmp_path / "data")
    assert main(["dataset=oxford_pets", "seed=0,1", "loss=ce,kd", "dry=true"]) == "1 of 1 present"
    assert lines_of(capsys) == ["present 811.0 MB dataset oxford_pets in data"]


def test_what_is_missing_is_listed_first_and_then_said_with_its_remedy(tmp_path, capsys):
    (tmp_path / "teacher.pth").write_bytes(b"")
    overrides = [
        "dataset=cifar10", "teacher=file", "student@teacher.model=resnet20", "student=timm", "student.name=resnet18",
        "student.pretrained=true", "evaluate.sets=[imagenet_r]", "teacher.path=teacher.pth",
    ]  # fmt: skip
    assert main([*overrides, "dry=true"]).startswith("1 of 4 present, 216.8 MB to fetch")
    listed = lines_of(capsys)
    assert listed[0] == "missing 170.0 MB dataset cifar10 in data"
    assert listed[1] == "present teacher.path=teacher.pth"
    assert listed[2].startswith(
        "by hand 2.2 GB evaluate.sets: imagenet_r data/imagenet-r is not there; put the content"
    )
    assert listed[3].startswith("missing 46.8 MB weights resnet18 (timm/resnet18")
    with pytest.raises(KdrunError) as refused:
        main(overrides)
    said = str(refused.value).splitlines()
    assert len(said) == 3
    assert "cifar10 in data: dataset.root: data/cifar-10-batches-py/data_batch_1 is not there and cannot be" in said[0]
    assert "put " in said[0]
    assert said[1].startswith("evaluate.sets: imagenet_r: data/imagenet-r is not there")
    assert "its published weights cannot be had" in said[2]
    assert "fetch model.safetensors of timm/resnet18" in said[2]
    assert "fetching dataset cifar10 in data" in lines_of(capsys)
    assert not (tmp_path / "data").exists()


def test_what_required_runs_need_counts_too_and_everything_counts_once(tmp_path):
    write_cifar10(tmp_path / "data")
    configs = configs_of([
        "dataset=cifar10", "dataset.verify_md5=false", "student=resnet8,resnet14", "teacher=train",
        "teacher.model.name=resnet34", "teacher.model.pretrained=true",
    ])  # fmt: skip
    assert len(configs) == 2
    needs = list(needs_of(configs))
    assert [need.state for need in needs] == ["present", "missing"]  # the teacher's own run starts from them
    assert needs[1].what.startswith("weights resnet34 (timm/")


def test_a_table(tmp_path, capsys):
    spec = read_conf("table", "ttm_cifar10_short", TableConfig)
    assert len(configs_of(["table=ttm_cifar10_short"])) == len(spec.rows) * len(spec.columns)
    assert main(["table=demo", "dry=true"]) == "1 of 1 present"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=nowhere"], "nowhere"),
        (["table=nowhere"], "table=nowhere: no such table"),
        (["table=demo", "seed=1"], "leave out the other arguments"),
        (["experiment=demo", "dry=perhaps"], "dry: must be a valid boolean, .* got 'perhaps'"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        main(arguments)


def test_data_that_nobody_offers(capsys):
    main(["dataset=imagenet", "dry=true"])
    (line,) = lines_of(capsys)
    assert line.startswith(
        "by hand 144.0 GB dataset imagenet in data/imagenet dataset.root: data/imagenet/train: no such"
    )
    assert Path("data").exists() is False
