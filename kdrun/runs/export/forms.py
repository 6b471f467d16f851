"""The forms in which a finished run's student leaves kdrun, see `FORMS`.

`onnx` and `torch_export` hold the whole way from pixels to logits; `safetensors` the weights of one network, whose
input adapter is kdrun's, and `hf_dir` a network of timm, whose input timm's transforms make.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from kdrun.config.model import ModelConfig
from kdrun.core.errors import KdrunError
from kdrun.core.files import write_json
from kdrun.models.network import Network, apart, load_network
from kdrun.runs.export.card import import_of
from kdrun.runs.trained import Trained

Loaded = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) uint8 -> (B, classes)


def _export(trained: Trained, batch: int | None) -> torch.export.ExportedProgram:
    pixels = torch.zeros((batch or 2, *trained.shown.shape), dtype=torch.uint8)  # 1 would be taken for a constant
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    with _named("torch.export cannot trace the network"):
        return torch.export.export(trained.classifier, (pixels,), dynamic_shapes=shapes)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of torch and timm, whatever they are, in a line."""
    try:
        yield
    except Exception as error:
        line = shorten(str(error), 160, placeholder=" ...")
        raise KdrunError(f"{what} ({type(error).__name__}: {line}); choose to=safetensors") from error


def _torch_export(trained: Trained, path: Path, batch: int | None, opset: int) -> Loaded:
    with path.open("wb") as file:
        torch.export.save(_export(trained, batch), file)
    with path.open("rb") as file:
        module: Loaded = torch.export.load(file).module()
    return module


def _onnx(trained: Trained, path: Path, batch: int | None, opset: int) -> Loaded:
    import onnxruntime

    program = _export(trained, batch)
    # ONNX would have log(exp(a) + exp(b)), which is -inf for two classes less likely than 1e-38
    program = program.run_decompositions({torch.ops.aten.logaddexp.default: _log_of_sum})
    made: Any
    with _named("torch.onnx cannot write the network"), redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter itself; what it made is compared below
        made = torch.onnx.export(
            program, dynamo=True, input_names=["pixels"], output_names=["logits"], verbose=False,
            opset_version=opset,
        )  # fmt: skip
    if made is None:
        raise KdrunError("to=onnx: torch.onnx.export gave nothing")
    if (got := made.model.opset_imports.get("")) != opset:
        raise KdrunError(f"opset: {opset}: the exporter can only write {got}; give that, or leave it out")
    if batch is None:
        made.model.graph.inputs[0].shape[0] = "batch"
    made.save(str(path), external_data=False)
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), wanted, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _log_of_sum(a: Tensor, b: Tensor) -> Tensor:
    top = torch.maximum(a, b)
    return top + ((a - top).exp() + (b - top).exp()).log()


def _safetensors(trained: Trained, path: Path, batch: int | None, opset: int) -> Loaded:
    network = _one_network(trained, "safetensors")
    _portable(network).save(path)
    loaded = load_network(path)
    return lambda pixels: loaded(pixels).logits


def _hf_dir(trained: Trained, path: Path, batch: int | None, opset: int) -> Loaded:
    import timm
    from safetensors.torch import save_file

    network = _one_network(trained, "hf_dir")
    if ModelConfig.model_validate(network.spec.model).head != "linear":
        raise KdrunError("to=hf_dir: its head is kdrun's own, which timm does not know; choose to=safetensors")
    path.mkdir()
    write_json(path / "config.json", _timm_config(trained, network))
    save_file(apart(network.net.state_dict()), path / "model.safetensors", metadata={"format": "pt"})
    with _named("timm does not open what was written"):
        net = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return lambda pixels: net(network.adapt(pixels))


def _one_network(trained: Trained, form: str) -> Network:
    if trained.network is None:
        alone = trained.run.config.method_class.alone
        names = [name for name in trained.run.record["nets"] if name not in alone.values()]
        known = [name for name in (*alone, *names) if name in trained.run.predictors]
        choice = f"predictor={'|'.join(known)}, or " if known else ""
        raise KdrunError(
            f"to={form}: {trained.name} is more than the weights of one network; choose {choice}to=onnx, torch_export"
        )
    return trained.network


def _portable(network: Network) -> Network:
    """The network without what its description says of files of this machine."""
    network.spec = replace(network.spec, model={**network.spec.model, "pretrained": False, "file": None})
    return network


def _timm_config(trained: Trained, network: Network) -> dict[str, Any]:
    """config.json as timm's `hf-hub:` and `local-dir:` read it."""
    shown, spec = trained.shown, network.spec
    channels, *sides = shown.shape
    published: dict[str, Any] = getattr(network.net, "pretrained_cfg", None) or {}
    kept = {name: published[name] for name in ("first_conv", "classifier", "fixed_input_size") if name in published}
    args: dict[str, Any] = {"in_chans": channels, **spec.model["args"]}
    if import_of(network) is not None:  # else timm has it from below
        args["num_classes"] = spec.num_classes
    center = shown.center
    return {
        "architecture": network.name.partition(".")[0],
        "num_classes": spec.num_classes,
        "num_features": getattr(network.net, "num_features", None),
        "label_names": list(shown.class_names),
        "model_args": args,
        "pretrained_cfg": {
            **kept,
            "input_size": [channels, *([network.size] * 2 if network.size else sides)],
            "interpolation": "bilinear" if network.size else "bicubic" if center is None else center.mode,
            "crop_pct": 1.0 if center is None else center.ratio,
            "crop_mode": "squash" if shown.crop == "square" else "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": spec.num_classes,
            "custom_load": False,
        },
    }


FORMS: dict[str, Callable[[Trained, Path, int | None, int], Loaded]] = {
    "onnx": _onnx, "torch_export": _torch_export, "safetensors": _safetensors, "hf_dir": _hf_dir,
}  # fmt: skip
"""Each writes a file or folder, and reads it again. After the path: number of images (None: any), opset."""
