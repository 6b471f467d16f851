"""Linear evaluation of features: a classifier on what a student's last layer reads, the network as it is.

As in table 5 of DHO (Kang et al. 2025, arXiv 2505.07675), which does not say how its classifier is trained. Ours: clean
views, features standardised by the training images, multinomial logistic regression, its regularisation chosen on the
validation images.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from kdrun.core.artifacts import Artifact
from kdrun.core.device import autocast
from kdrun.core.errors import DataError, KdrunError
from kdrun.core.files import write_bytes, write_json
from kdrun.core.hashing import file_hash
from kdrun.data.views.view import clean_batches
from kdrun.metrics import evaluate_logits
from kdrun.models.network import Network
from kdrun.models.weights import read_state
from kdrun.results.analysis.options import LinearProbe as Options
from kdrun.results.analysis.vicinal import images_of
from kdrun.runs.finished import FinishedRun
from kdrun.runs.metric import Metric
from kdrun.runs.record import finite
from kdrun.training.assembly import Assembly, to_device

VERSION = 1  # raise it when what is kept changes
NEVER = -1e4  # logit of a class that no label names


def report(options: Options) -> str:
    return "\n\n".join(linear_probe(FinishedRun.open(run), options) for run in options.run)


def linear_probe(run: FinishedRun, options: Options) -> str:
    """Of one run: into `<run>/analysis/linear_probe.json` and the record, as `linear_probe/<net>/<metric>`.

    With labels=labeled both are called `linear_probe_labeled`.
    """
    nets = list(run.record["nets"])
    if not nets:
        raise KdrunError(f"{run.directory}: method={run.record['method']} trains no student")
    net = options.net or (run.record["headline"] if run.record["headline"] in nets else nets[0])
    network, opened = run.network(net), Assembly.restored(run)
    if not len(opened.split.val) and len(options.c) > 1:
        raise KdrunError(f"{run.directory}: has no validation images, which choose of several c; give one")
    index, target = {}, {}
    for split in ("train", "val", "test"):
        _, index[split], labels = images_of(opened, split)
        target[split] = labels[index[split]]
    found = features(run, net, network, opened, index)
    if options.labels == "labeled":
        shown = torch.isin(index["train"], torch.from_numpy(opened.split.labeled))
        found["train"], target["train"] = found["train"][shown], target["train"][shown]
    chosen, tried = best_probe(found, target, opened.arrays.num_classes, options)
    name = "linear_probe" if options.labels == "all" else "linear_probe_labeled"
    content = {
        "net": net, "labels": options.labels, "images": len(target["train"]), "dim": found["train"].shape[1], **chosen,
        "tried": tried,
    }  # fmt: skip
    figures = {metric: chosen[metric] for metric in ("top1", "top5") if metric in chosen}
    path = run.directory / "analysis" / f"{name}.json"
    with run.amended() as record:
        write_json(path, finite(content))
        kinds = {key: Metric.parse(key) for key in record["metrics"]}
        others = {key: record["metrics"][key] for key, m in kinds.items() if (m.split, m.net) != (name, net)}
        record["metrics"] = others | finite({str(Metric(name, net, key)): value for key, value in figures.items()})
    told = [f"{run.directory}: a linear classifier on {content['dim']} features of {net}, {content['images']} labels"]
    told += [f"test {', '.join(f'{k} {v:.4f}' for k, v in figures.items())}, c {chosen['c']:g} by validation"]
    if not chosen["converged"]:
        told.append(f"warning: not converged after {options.max_iter} iterations; give a larger max_iter")
    return "\n".join([*told, f"wrote {path}"])


def features(
    run: FinishedRun, net: str, network: Network, opened: Assembly, index: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Split -> (M, D) float32 features of clean views, computed once and kept in `<run>/analysis/features`.

    Args:
        index: split -> (M,) int64.
    """
    name = "pooled" if "pooled" in network.dims else "prelogits"
    if name not in network.dims:
        raise KdrunError(f"{run.directory}: {network.name} has no linear classifier, so no features before one")
    weights = file_hash(str(run.directory / f"{net}.safetensors"), "run")
    spec = {"version": VERSION, "net": net, "weights": weights, "split": opened.split.hash, "feature": name}

    @torch.no_grad()
    def build(folder: Path) -> dict[str, Any]:
        config, device = opened.config, opened.device
        model = to_device(network, config, device).eval()
        out = {}
        for split, places in index.items():
            images, _, _ = images_of(opened, split)
            parts = []
            for _, pixels in clean_batches(images, places.to(device), config.execution.eval_batch_size, opened.center):
                with autocast(device, config.schedule.precision):
                    parts.append(model(pixels, (name,)).features[name].float().cpu())
            out[split] = torch.cat(parts) if parts else torch.empty(0, network.dims[name])
        write_bytes(folder / "features.safetensors", save(out))
        return {}

    def read(folder: Path, _: dict[str, Any]) -> dict[str, Tensor]:
        state = read_state(folder / "features.safetensors", str(folder / "features.safetensors"))
        if {split: len(part) for split, part in state.items()} != {split: len(part) for split, part in index.items()}:
            raise DataError(f"{folder}: does not hold the features of this run's images")
        return state

    return Artifact(run.directory / "analysis" / "features", spec).value(build, read)


def best_probe(
    found: Mapping[str, Tensor], target: Mapping[str, Tensor], num_classes: int, options: Options
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The classifier that is best on the validation images (of several, that of the lowest NLL, then the simplest).

    Args:
        found: train, val and test -> (M, D).
        target: the same -> (M,) int64.

    Returns:
        Its c and test metrics, and what each c gave on the validation images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not found["train"].isfinite().all():
        raise KdrunError("the features of the training images are not all finite")
    mean, std = found["train"].mean(0), found["train"].std(0, correction=0)
    x = {split: ((part - mean) / std.where(std > 0, 1.0)).numpy() for split, part in found.items()}
    best: tuple[float, float, float] | None = None
    chosen: dict[str, Any] = {}
    tried = []
    for c in sorted(set(options.c)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told below
            model = LogisticRegression(C=c, max_iter=options.max_iter).fit(x["train"], target["train"].numpy())

        def metrics(split: str, model: Any = model) -> dict[str, float]:
            scores = torch.from_numpy(model.decision_function(x[split])).double()
            scores = torch.stack([torch.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
            logits = torch.full((len(scores), num_classes), NEVER, dtype=torch.float64)
            logits[:, torch.from_numpy(model.classes_)] = scores
            return {name: value.item() for name, value in evaluate_logits(logits, target[split]).items()}

        converged = bool((model.n_iter_ < options.max_iter).all())
        val = metrics("val") if len(target["val"]) else {"top1": 0.0, "nll": 0.0}
        tried.append({"c": c, "val_top1": val["top1"], "val_nll": val["nll"], "converged": converged})
        score = (val["top1"], -val["nll"], -c)
        if best is None or score > best:
            test = metrics("test")
            best, chosen = score, {"c": c, "converged": converged}
            chosen |= {
                name: test[name] for name in ("top1", "top5") if name in test
            }  # of few classes there is no top-5
    return chosen, tried
