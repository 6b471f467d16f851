"""kdrun doctor: what it finds, in lines and as JSON, and its exit code."""

import json

import pytest

from kdrun.cli import command, doctor


def findings(*arguments: str) -> dict[tuple[str, str], dict[str, str]]:
    found = json.loads(doctor.main(["format=json", "speed=false", *arguments]))
    return {(finding["part"], finding["name"]): finding for finding in found}


def test_it_looks_at_every_part_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = findings(f"outputs={tmp_path}/outputs", f"root={tmp_path}")
    assert {part for part, _ in found} == {"versions", "machine", "devices", "disk", "trackers", "data", "extras"}
    assert all(finding["state"] in ("ok", "warning") and finding["told"] for finding in found.values())
    assert {finding["state"] for (part, _), finding in found.items() if part == "versions"} == {"ok"}
    assert "(not there yet)" in found["disk", "outputs"]["told"]
    assert found["trackers", "wandb"]["told"].endswith("WANDB_MODE=offline")
    assert list(tmp_path.iterdir()) == []


def test_data_is_told_by_the_files_that_lie_there(tmp_path):
    assert "nothing that kdrun knows" in findings(f"root={tmp_path}")["data", "root"]["told"]
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / name).touch()
    (tmp_path / "food-101").mkdir()
    assert findings(f"root={tmp_path}")["data", "root"]["told"].endswith(": food101, svhn")


def test_a_folder_that_cannot_be_written_is_exit_code_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    file = tmp_path / "file"
    file.touch()
    assert command.main(["doctor", "speed=false", f"outputs={file}/outputs"]) == 1
    out, err = capsys.readouterr()
    assert "  broken   outputs" in out
    assert "-> give a folder that can be written" in out
    assert err.startswith(f"error: outputs: {file}/outputs: {file} cannot be written")


def test_what_is_faster_than_the_default_is_hinted_at(monkeypatch):
    rates = {("fp32", True): 100.0, ("fp32", False): 105.0, ("bf16", True): 200.0}
    monkeypatch.setattr(doctor, "_rate", lambda device, precision, last: rates[precision, last])
    hints = {finding.name: finding.hint for finding in doctor._speed(doctor.Options(device="cpu"))}
    assert hints == {"fp32": "", "fp32 nchw": "", "bf16": "faster than the default here: schedule.precision=bf16"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_timed(precision, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    assert doctor._rate(doctor.torch.device("cpu"), precision, channels_last=True) > 0
