"""A tiny CLIP with random weights, in the format in which open_clip publishes; processes of Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import kdrun

CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 32, "patch_size": 4, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def net():
    import open_clip

    torch.manual_seed(3)
    return open_clip.CLIP(**CFG).eval()


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CFG, "preprocess_cfg": PREPROCESS}))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path / "open_clip_model.safetensors")
    return path


@pytest.fixture
def start():
    """`start(script, *arguments)`: a Python process with this kdrun, ended with the test."""
    processes = []

    def launch(script, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(Path(kdrun.__file__).parents[1])}
        command = [sys.executable, "-c", script, *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate()
