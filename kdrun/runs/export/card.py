"""What goes with an exported student: a JSON for programs and, for a folder, a model card for people."""

from dataclasses import asdict
from typing import Any

from kdrun.config.model import ModelConfig
from kdrun.core.errors import KdrunError
from kdrun.core.version import __version__
from kdrun.models.network import Network
from kdrun.runs.export import SPEC
from kdrun.runs.metric import Metric, is_percent
from kdrun.runs.record import finite
from kdrun.runs.trained import Trained


def import_of(network: Network) -> str | None:
    """What must be imported before timm knows the network: kdrun's, or a plugin. None: nothing, it is timm's own."""
    import timm

    module: str = timm.models.model_entrypoint(network.name).__module__
    return None if module.startswith("timm.") else "kdrun.models" if module.startswith("kdrun.models.") else module


def description(trained: Trained, form: str, batch: int | str) -> dict[str, Any]:
    """How to call the file, and where it comes from: the JSON beside it.

    Args:
        batch: the number of images that it takes, or a name for any number.
    """
    record, shown, network = trained.run.record, trained.shown, trained.network
    channels, height, width = shown.shape
    taken: dict[str, Any] = {
        "name": "pixels", "shape": [batch, channels, height, width], "dtype": "uint8", "range": [0, 255],
        "channels": "gray" if channels == 1 else "RGB" if channels == 3 else channels,
        "from_files": {"size": list(shown.size), "crop": shown.crop, "resize": "bicubic",
                       "center": None if shown.center is None else asdict(shown.center)},
    }  # fmt: skip
    if form == "hf_dir" and network is not None:
        size = [network.size] * 2 if network.size else [height, width]
        taken |= {"name": "x", "shape": ["batch", channels, *size], "dtype": "float32"}
        taken["range"] = "(pixels / 255 - mean) / std"
        taken |= {"mean": list(network.spec.mean), "std": list(network.spec.std)}
    out: dict[str, Any] = {
        "kdrun": __version__,
        "form": form,
        "input": taken,
        "output": {
            "name": "logits", "shape": [batch, len(shown.class_names)], "dtype": "float32",
            "what": "logits" if network is not None else "logits or log-probabilities; softmax gives probabilities",
        },
        "class_names": list(shown.class_names),
        "temperature": trained.temperature,
        "run": {
            **{name: record.get(name) for name in ("key", "method", "dataset", "num_labels", "seed", "steps")},
            "predictor": trained.name, "checkpoint": trained.run.checkpoint, "step": trained.run.step,
            "num_params": trained.num_params,
            "precision": trained.run.config.schedule.precision,
            **{name: record.get(name) for name in ("split", "requires", "code", "packages")},
        },
        "metrics": finite(_metrics(trained)),
    }  # fmt: skip
    if network is not None:
        model = ModelConfig.model_validate(network.spec.model)
        made = {"model_name": network.name, "num_classes": network.spec.num_classes, "in_chans": channels}
        fits = model.head == "linear"
        out["timm"] = {"create_model": {**made, **model.args}, "import": import_of(network)} if fits else None
    return out


def _metrics(trained: Trained) -> dict[str, float | None]:
    """`split/metric` of the predictor, without the network's name."""
    figures = {Metric.parse(key): value for key, value in trained.run.metrics.items()}
    return {str(metric.of(None)): value for metric, value in figures.items() if metric.net == trained.name}


def card(trained: Trained, spec: dict[str, Any]) -> str:
    """README.md of a folder: the metrics and the protocol of the record.

    Args:
        spec: what `description` gave.
    """
    record, split = trained.run.record, trained.run.record.get("split") or {}
    if absent := [name for name in ("labeled", "unlabeled", "val", "test", "hash") if name not in split]:
        raise KdrunError(f"{trained.run.directory}: its record has no split.{absent[0]}, which a model card tells")
    labels = "all" if record["num_labels"] is None else record["num_labels"]
    needs, name = (None, "") if trained.network is None else (import_of(trained.network), trained.network.name)
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm, kdrun]",
        "---",
        "",
        f"# {name}, {record['dataset']}",
        "",
        f"{trained.num_params:,} parameters, {len(spec['class_names'])} classes, trained by kdrun {spec['kdrun']} with",
        f"`method={record['method']}`{', taught by another run' if record['requires'] else ''}.",
        "",
        "```python",
        *([f"import {needs}  # registers {name} with timm"] if needs else []),
        "import timm",
        "",
        'network = timm.create_model("local-dir:<this folder>", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
        "```",
        "",
        f"The network takes normalised images, channels {spec['input']['channels']}; their size, mean and standard "
        "deviation are in `config.json`.",
        f"`{SPEC}` has the class names, the temperature that was fitted on the validation images, and what follows.",
        "",
        "## Metrics",
        "",
        f"Of one run, {trained.run.told}; the test images chose nothing.",
        "",
        "| metric | value |",
        "|---|---|",
        *(
            f"| {key} | {100 * value:.2f} % |" if is_percent(key) else f"| {key} | {value:.4f} |"
            for key, value in spec["metrics"].items()
            if value is not None
        ),
        "",
        "## Protocol",
        "",
        f"{record['dataset']}, {labels} labels: {split['labeled']} labeled, {split['unlabeled']} unlabeled, "
        f"{split['val']} validation and {split['test']} test images (split `{split['hash']}`).",
        f"{record.get('steps')} steps, seed {record['seed']}. Run key `{record['key']}`, kdrun's commit "
        f"`{(record.get('code') or {}).get('commit')}`.",
    ]
    return "\n".join(lines) + "\n"
