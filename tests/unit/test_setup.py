"""make setup, with a uv that writes down what it is asked for: what is installed, and what stays when that fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

UV = """#!/bin/sh
test "$1" != --version || { echo 'uv 0 (a stand-in)'; exit; }
echo "$@" >>"$ASKED"
for last do :; done
test "$2" != sync || cp "$last" "$ASKED.lock"
case "$*" in *"$FAILS"*) exit 2 ;; esac
"""


@pytest.fixture
def asked(tmp_path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path / "asked"


def setup(asked: Path, torch: str | None = None, fails: str = "nothing") -> subprocess.CompletedProcess:
    place = asked.parent
    words = ["make", "-s", "setup", f"VENV={place / 'venv'}", *([f"TORCH={torch}"] if torch else [])]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "TORCH")},
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "ASKED": str(asked), "FAILS": fails,
    }  # fmt: skip
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def names(lock: str) -> set[str]:
    return set(re.findall(r"^([\w-]+)==", lock, re.MULTILINE))


def test_it_installs_the_lock_once_and_says_what_and_how_long(asked):
    done = setup(asked)
    assert (done.returncode, done.stderr) == (0, "")
    first, ready, after = done.stdout.splitlines()
    assert f"packages of requirements.lock into {asked.parent / 'venv'}" in first
    assert re.search(r"venv is ready: \d+ packages, \d+\.\d GB, in \d+ s$", ready)
    assert after.startswith("next: . ")
    assert Path(f"{asked}.lock").read_text() == (ROOT / "requirements.lock").read_text()
    asked.unlink()
    again = setup(asked)
    assert again.stdout == f"{asked.parent / 'venv'} is up to date: nothing to do; make clean starts anew\n"
    assert not asked.exists()


def test_another_torch_stands_beside_the_lock_without_what_is_for_gpus_and_stays(asked):
    assert setup(asked, torch="cpu").returncode == 0
    lock, kept = (ROOT / "requirements.lock").read_text(), Path(f"{asked}.lock").read_text()
    gone = names(lock) - names(kept)
    assert {"torch", "torchvision", "triton", "cuda-toolkit"} < gone
    assert all(name.startswith(("cuda-", "nvidia-")) for name in gone - {"torch", "torchvision", "triton"})
    assert not [name for name in names(kept) if name.startswith(("triton", "cuda-", "nvidia-"))]
    assert kept.count("--hash=") > len(names(kept)) > 90
    locked = re.findall(r"^(?:torch|torchvision)==[\w.]+", lock, re.MULTILINE)
    dry, _, torch, _ = asked.read_text().splitlines()
    assert "--dry-run" in dry
    assert "--torch-backend cpu" in torch
    assert torch.endswith(" ".join(locked))
    assert "nothing to do" in setup(asked).stdout
    assert setup(asked, torch="lock").returncode == 0
    assert Path(f"{asked}.lock").read_text() == lock


def test_builds_that_cannot_be_had_change_nothing(asked):
    done = setup(asked, torch="cpu", fails="--dry-run")
    assert done.returncode == 2
    assert "error: TORCH=cpu: uv cannot get these builds, see above; nothing was changed" in done.stderr
    assert " sync " not in asked.read_text()
    assert not (asked.parent / "venv" / ".torch").exists()
