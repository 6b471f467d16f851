"""bf16 autocast stays near float32, and is resumed like it."""

import json

import numpy as np
import pytest

from kdrun.record import find_records
from tests.conftest import FAST, TEACHER


def test_bf16_is_near_float32(train, outputs):
    short = [*FAST, *TEACHER, "loss=wttm", "execution.log_every_steps=1", "schedule.lr=0.01"]
    assert train("-m", *short, "schedule.precision=fp32,bf16") == 0
    runs = {r["precision"]: (d, r) for d, r in find_records(outputs) if r["method"] == "distill"}
    losses = {}
    for precision, (directory, record) in runs.items():
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [line["train/loss/wttm"] for line in lines if "train/loss/wttm" in line]
        logits = np.load(directory / "predictions" / "test-student.npz")["logits"]
        assert logits.dtype == np.float32
        assert record["config"]["schedule"]["precision"] == precision
    assert losses["bf16"] != losses["fp32"]
    # 8 bits of mantissa: 0.4 % a rounding, some of it summed over layers and steps
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.03)
    # later steps part ways, as two float32 machines do; they stay together on the scale of the first loss
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.1 * losses["fp32"][0])
