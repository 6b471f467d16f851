"""Every method on an accelerator: near the CPU, in bf16, compiled, resumed. `pytest -m gpu` where there is one."""

import json

import pytest
import torch

from kdrun.runs.record import find_records
from tests.conftest import FAST
from tests.contract.test_methods import EXTRA, METHODS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SHORT = [*FAST, "execution.log_every_steps=1"]


def losses(train, outputs, name, *overrides):
    """Sum of all loss terms at each step."""
    assert train(*SHORT, f"method={name}", *EXTRA.get(name, []), *overrides) == 0
    ((directory, record),) = [(d, r) for d, r in find_records(outputs) if r["method"] == name]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    terms = [[v for k, v in line.items() if k.startswith("train/loss/")] for line in lines]
    return [sum(values) for values in terms if values], record


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    from kdrun.cli.train import main

    known = {}

    def call(name):
        if name not in known:
            outputs = tmp_path_factory.mktemp(name)
            known[name], _ = losses(lambda *a: main([*a, f"execution.outputs={outputs}"]), outputs, name)
        return known[name]

    return call


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 0.01), ("bf16", 0.1)])
@pytest.mark.parametrize("name", METHODS)
def test_near_the_cpu(train, outputs, on_cpu, name, precision, near, compiled):
    found, record = losses(
        train, outputs, name, "execution.device=cuda", f"schedule.precision={precision}", f"schedule.compile={compiled}"
    )
    assert record["device"] == torch.cuda.get_device_name(0)
    expected = on_cpu(name)
    assert found[0] == pytest.approx(expected[0], rel=near)
    # later steps part ways; they stay together on the scale of the first loss
    assert found == pytest.approx(expected, abs=2 * near * expected[0])


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_device(name):
    """No step reads a value back: CUDA itself says so."""
    from kdrun.methods.step import Context
    from tests.contract.test_methods import make

    config, method, loader, _ = make(name, device="cuda")
    ctx = Context(config.seed, 0, 20, torch.device("cuda"))
    method(loader.batch(0), ctx)  # the first call may set things up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = method(loader.batch(1), ctx)
        torch.stack(list(out.losses.values())).sum().backward()
        method.finish_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", METHODS)
def test_captured_steps_are_near_the_plain_path_and_are_captured(train, tmp_path, name, caplog):
    from kdrun.cli.train import main

    found = {}
    for kind in ("fused", "graph"):
        folder = tmp_path / kind
        with caplog.at_level("INFO"):
            found[kind], _ = losses(
                lambda *a, folder=folder: main([*a, f"execution.outputs={folder}"]), folder, name,
                "execution.device=cuda", f"schedule.{kind}=true", "schedule.ema_decay=0.9", "schedule.clip_norm=10",
            )  # fmt: skip
    assert "step captured as one CUDA graph" in caplog.text
    plain = found["fused"]
    assert found["graph"][:4] == pytest.approx(plain[:4], rel=1e-3)  # uncaptured three times, then captured
    assert found["graph"] == pytest.approx(plain, abs=0.02 * plain[0])


@pytest.mark.parametrize("name", METHODS)
def test_no_captured_step_waits_for_the_device(name, tmp_path):
    from kdrun.training.evaluator import Evaluator
    from kdrun.training.loop import Loop
    from kdrun.training.tracking import Tracking
    from tests.contract.test_methods import make

    config, method, loader, _ = make(name, "schedule.graph=true", "schedule.optimizer=adamw", device="cuda")
    made = Loop(method, loader, Evaluator({}, 1000), config.schedule.clock(50), tmp_path, Tracking(), "key")
    take = made._steps()
    values = [take(step) for step in range(5)]  # three uncaptured, the capture, a replay
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values += [take(step) for step in range(5, 10)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        loader.close()
    assert len({value.data_ptr() for value in values}) == 10
    assert torch.stack(values)[:, : len(values[0])].isfinite().any(1).all()
    assert not torch.equal(values[-1], values[-2])  # other images, other numbers


@pytest.mark.parametrize("captured", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed(train, outputs, tmp_path, name, captured, monkeypatch):
    from kdrun.cli.train import main
    from kdrun.data.loader import Loader

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    asked = "drawn" if captured else "batch"
    plain = getattr(Loader, asked)

    def batch(self, step):
        if step == 13 and not (tmp_path / "went").exists():
            (tmp_path / "went").touch()
            raise RuntimeError("stopped here")
        return plain(self, step)

    try:
        graph = f"schedule.graph={captured}"
        expected, _ = losses(train, outputs, name, "execution.device=cuda", graph)
        elsewhere = tmp_path / "again"
        with monkeypatch.context() as patch:
            patch.setattr(Loader, asked, batch)
            arguments = [
                *SHORT, f"method={name}", *EXTRA.get(name, []), "execution.device=cuda",
                "execution.checkpoint_every_steps=5", graph,
            ]  # fmt: skip
            assert main([*arguments, f"execution.outputs={elsewhere}"]) == 1
            assert main([*arguments, f"execution.outputs={elsewhere}"]) == 0
        ((directory, _),) = [(d, r) for d, r in find_records(elsewhere) if r["method"] == name]
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        terms = [[v for k, v in line.items() if k.startswith("train/loss/")] for line in lines]
        assert [sum(values) for values in terms if values] == expected
    finally:
        torch.use_deterministic_algorithms(False)
