"""Export the trained student of a finished run; the file is checked against the checkpoint, and timed.

kdrun export run=outputs/runs/... to=onnx                    into <run>/exports, with a JSON beside
kdrun export run=0123456789ab to=torch_export out=net.pt2    a run by its key; for torch.export.load
kdrun export run=... to=safetensors predictor=student_2      for kdrun.load, and by timm's own names
kdrun export run=... to=hf_dir out=my-student                for timm.create_model("local-dir:my-student")
kdrun export run=... to=onnx checkpoint=best_on_val          the weights that were best on validation images; else
                                                             those of the last step, which tables tell of
kdrun export run=... to=onnx dynamic=false batch=8 opset=20 threads=1 overwrite=true
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from kdrun.core.errors import KdrunError, Unfinished
from kdrun.core.files import folder, put_in_place, staged, write_json, write_text
from kdrun.core.hashing import file_sha256
from kdrun.core.later import later
from kdrun.core.progress import metered
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.cell import run_name
from kdrun.runs.export import SPEC
from kdrun.runs.layout import SUFFIXES, Checkpoint
from kdrun.runs.record import open_record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdrun.core.device import use_machine
    from kdrun.runs.export.card import card, description
    from kdrun.runs.export.forms import FORMS, Loaded
    from kdrun.runs.finished import FinishedRun
    from kdrun.runs.trained import Trained, open_trained
else:
    torch = later("torch")
    use_machine = later("kdrun.core.device", "use_machine")
    card, description = later("kdrun.runs.export.card", "card", "description")
    FORMS = later("kdrun.runs.export.forms", "FORMS")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")
    open_trained = later("kdrun.runs.trained", "open_trained")

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "hf_dir": "-hf"}
OPSET = 20  # of the ONNX standard
WARM_UP = 5  # calls that are not timed


class Options(Schema):
    """`run=<directory or key> to=<form>` and these."""

    run: str
    to: Literal["onnx", "torch_export", "safetensors", "hf_dir"]
    out: str | None = None
    """The file or folder; null: <run>/exports/<predictor>.<ending>, <predictor>.best.<ending>."""
    overwrite: bool = False
    checkpoint: Checkpoint = "last"
    """The weights of the last step, or of the best evaluation on validation images."""
    predictor: str | None = None
    """What the run evaluated, e.g. student_2, ensemble or ce_head; null: its headline."""
    batch: int = Field(32, ge=2)
    """The larger batch that is timed; with dynamic=false the only one that the file takes."""
    dynamic: bool = True
    """Any number of images at once."""
    opset: int | None = Field(None, ge=18)
    check: int = Field(64, ge=1)
    """Images on which the file and the checkpoint are compared."""
    tolerance: float = Field(1e-4, gt=0)
    """Largest difference of logits, as a share of the largest logit where that is above 1."""
    repeats: int = Field(30, ge=0)
    """Calls that are timed; 0: none."""
    threads: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)
    """Side of the run's own images, where its dataset is not on this machine."""
    outputs: str = "outputs"
    """Where a run key is looked for."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.opset is not None and self.to != "onnx":
            raise ValueError(f"opset: only of to=onnx, not of to={self.to}; leave it out")
        if not self.dynamic and self.to not in ("onnx", "torch_export"):
            raise ValueError(f"dynamic: to={self.to} takes any batch; leave it out")
        return self


def main(arguments: Sequence[str]) -> str:
    """What was written, how far it is from the checkpoint, and how fast both are.

    Raises:
        ConfigError: an unknown key or predictor, or a value that is not allowed.
        KdrunError: no finished run, a missing package, a target that is there, or what the form cannot hold.
        Unfinished: the file differs from the checkpoint; it was removed.
    """
    options = from_arguments(Options, arguments)
    if options.to == "onnx":
        _require_onnx()
    run = open_record(options.run, options.outputs)
    trained = open_trained(FinishedRun(*run, options.checkpoint), options.predictor, options.size)
    use_machine("cpu", options.threads)
    name = f"{trained.name}{SUFFIXES[options.checkpoint]}{ENDINGS[options.to]}"
    target = Path(options.out or trained.run.directory / "exports" / name)
    spec_target = target / SPEC if options.to == "hf_dir" else target.with_name(f"{target.name}.json")
    if options.out is not None:
        folder(target.parent, "out")
    _refuse_existing(target, spec_target, options)
    with staged(target) as staging, torch.no_grad():
        path = staging / target.name
        batch = None if options.dynamic else options.batch
        loaded = FORMS[options.to](trained, path, batch, options.opset or OPSET)
        parity = _comparison(trained, loaded, options)
        spec = {**description(trained, options.to, batch or "batch"), "file": target.name, "parity": parity}
        if options.to == "hf_dir":
            write_text(path / "README.md", card(trained, spec))
            write_json(path / SPEC, {**spec, "sha256": file_sha256(path / "model.safetensors")})
        else:
            write_json(staging / spec_target.name, {**spec, "sha256": file_sha256(path)})
        times = _timing(trained, loaded, options)
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        put_in_place(path, target)
        if options.to != "hf_dir":
            put_in_place(staging / spec_target.name, spec_target)
    return "\n".join([*_report(trained, spec), *times, f"wrote {target} ({size / 1e3:,.0f} kB) and {spec_target}"])


def _refuse_existing(target: Path, spec: Path, options: Options) -> None:
    there = next((path for path in (target, spec) if path.exists()), None)
    if there is None:
        return
    if not options.overwrite:
        raise KdrunError(f"out: {there}: is there already; give another name, or overwrite=true")
    own = spec.is_file() if options.to == "hf_dir" else not target.is_dir()
    if not own:
        raise KdrunError(f"out: {target}: is no export of this form, so it is not overwritten; give another name")


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise KdrunError(f"to=onnx: needs {', '.join(missing)}, not installed here: pip install 'kdrun[onnx]'")


def _comparison(trained: Trained, loaded: Loaded, options: Options) -> dict[str, Any]:
    """Raises Unfinished where the file says something else than the checkpoint."""
    pixels, which = trained.shown.some(options.check)
    size = len(pixels) if options.dynamic else options.batch
    if len(pixels) % size:
        pixels = torch.cat([pixels, pixels[:1].expand(size - len(pixels) % size, -1, -1, -1)])
    parts = pixels.split(size)
    told = metered(parts, "comparing with the checkpoint", len(parts), "batches")
    pairs = [(trained.classifier(part), loaded(part)) for part in told]
    ours, theirs = (torch.cat(each) for each in zip(*pairs, strict=True))
    if options.dynamic:  # one image too
        ours, theirs = torch.cat([ours, trained.classifier(pixels[:1])]), torch.cat([theirs, loaded(pixels[:1])])
    if theirs.shape != ours.shape:
        shapes = f"{tuple(theirs.shape)} and not {tuple(ours.shape)}"
        raise Unfinished("", f"to={options.to}: gives {shapes}; nothing is left")
    worst = (ours - theirs).abs().max().item()
    same = (ours.argmax(1) == theirs.argmax(1)).double().mean().item()
    limit = options.tolerance * max(1.0, ours.abs().max().item())
    if not worst <= limit:  # NaN too
        raise Unfinished(
            "",
            f"to={options.to}: differs from the checkpoint by {worst:.3g} on {which}, allowed {limit:.3g} "
            f"(tolerance={options.tolerance:g}), same class for {same:.2%}; nothing is left",
        )
    return {"images": which, "max_abs_difference": worst, "allowed": limit, "argmax_agreement": same}


def _report(trained: Trained, spec: dict[str, Any]) -> list[str]:
    taken, out, parity = spec["input"], spec["output"], spec["parity"]
    lines = [
        f"{trained.name} of {run_name(trained.run.directory)}: {trained.num_params:,} parameters, "
        f"{len(spec['class_names'])} classes, {trained.run.told}",
        f"input {taken['name']} {_shape(taken)}, {taken['range']}; output {out['name']} {_shape(out)}",
        f"against the checkpoint on {parity['images']}: largest difference {parity['max_abs_difference']:.3g} "
        f"(allowed {parity['allowed']:.3g}), same class for {parity['argmax_agreement']:.2%}",
    ]
    if trained.shown.gone is not None:
        lines.append(f"{'classes are numbers: ' if trained.shown.unnamed else ''}{trained.shown.gone}")
    if trained.temperature is None:
        lines.append(f"warning: no temperature: {trained.uncalibrated}")
    if trained.run.config.schedule.precision != "fp32":
        lines.append(f"float32; the run was evaluated in {trained.run.config.schedule.precision}")
    return lines


def _shape(what: dict[str, Any]) -> str:
    return f"({', '.join(map(str, what['shape']))}) {what['dtype']}"


def _timing(trained: Trained, loaded: Loaded, options: Options) -> list[str]:
    """Milliseconds a call of the file and of the checkpoint, one after the other."""
    if not options.repeats:
        return []
    threads = torch.get_num_threads()
    lines = [
        f"ms a call on {platform.machine()}, {threads} thread{'s' * (threads != 1)}, median of {options.repeats} "
        "(least to most):"
    ]
    for batch in (1, options.batch) if options.dynamic else (options.batch,):
        pixels, _ = trained.shown.some(1)
        pixels = pixels.expand(batch, -1, -1, -1).contiguous()
        for name, call in ((options.to, loaded), ("checkpoint", trained.classifier)):
            times = sorted(_times(name, call, pixels, options.repeats))
            middle = statistics.median(times)
            lines.append(f"  batch {batch:<4} {name:<13}{middle:9.2f} ({times[0]:.2f} to {times[-1]:.2f})")
    return lines


def _times(name: str, call: Loaded, pixels: Tensor, repeats: int) -> list[float]:
    for _ in range(WARM_UP):
        call(pixels)
    out = []
    for _ in metered(range(repeats), f"timing {name}", repeats, "calls"):
        started = time.perf_counter()
        call(pixels)
        out.append(1000 * (time.perf_counter() - started))
    return out
