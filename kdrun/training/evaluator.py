"""Evaluation of all networks on the validation and test images."""

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.core.device import autocast, eager, finish
from kdrun.core.files import atomic_path
from kdrun.core.progress import Meter
from kdrun.core.world import world
from kdrun.data.views.center import Center
from kdrun.data.views.view import Predict, Source, View, clean_batches
from kdrun.methods.method import Method
from kdrun.methods.uncertainty import confident_errors_warning
from kdrun.metrics import compare_with_teacher, evaluate_logits, fit_temperature
from kdrun.runs.metric import ENOUGH
from kdrun.teachers.cache import pixels_hash

Logits = dict[tuple[str, str], Tensor]
"""(split, network) -> (M, C)."""


class Evaluator:
    """Holds the evaluation images.

    Args:
        splits: split name -> (images (N, H, W, C) uint8, index (M,) int64, targets (M,) int64), the latter two on the
            device.
        center: what networks see of an image; None: all of it.
        named: what names the images of a split by their content, where it need not be read for it.
        told: what is said of the splits where an evaluation takes long.
    """

    def __init__(
        self, splits: Mapping[str, tuple[Source, Tensor, Tensor]], batch_size: int, precision: str = "fp32",
        compiled: bool = False, center: Center | None = None, named: Mapping[str, str] | None = None,
        told: str = "",
    ) -> None:  # fmt: skip
        self.splits = {name: parts for name, parts in splits.items() if len(parts[1])}
        self.batch_size = batch_size
        self.precision = precision
        self.compiled = compiled
        self.center = center
        self.named = dict(named or {})
        self.told = told
        self.seconds_per_image: float | None = None
        """Of the method's networks, all in one pass, as they were asked last; images fetched and resized with it."""

    def identity(self) -> dict[str, Any] | None:
        """All that decides the bits of a frozen network's logits here but the network and the machine, as JSON.

        None: files whose content nobody has read.
        """
        images: dict[str, str] = {}
        for split, (source, index, _) in self.splits.items():
            digest = sha256(index.cpu().numpy().tobytes())
            if split in self.named:
                digest.update(self.named[split].encode())
            elif isinstance(source, Tensor):
                digest.update(pixels_hash(source, index, self.batch_size).encode())
            else:
                return None
            images[split] = digest.hexdigest()
        center = None if self.center is None else asdict(self.center)
        return {"images": images, "center": center, "batch_size": self.batch_size, "precision": self.precision}

    @torch.no_grad()
    def logits(self, predict: Predict, whose: str = "") -> dict[tuple[str, str], Tensor]:
        """(split, net) -> logits (M, C) of what `predict` gives. Networks must be in eval mode.

        Args:
            whose: is evaluated, in words for who waits.
        """
        with eager() if self.compiled else nullcontext():
            return self._logits(predict, " ".join(filter(None, ("evaluating", whose, "on", self.told))))

    def _logits(self, predict: Predict, what: str) -> dict[tuple[str, str], Tensor]:
        """Over several ranks, whole batches are dealt out: each is what it is in one process."""
        here, out = world(), {}
        for split, (images, index, _) in self.splits.items():
            chunks = index.split(self.batch_size)
            own = chunks[here.rank :: here.size]
            shown = iter(clean_batches(images, torch.cat(own), self.batch_size, self.center) if own else ())
            parts: dict[str, list[Tensor]] = {}
            with Meter(f"{what} {split}", len(index), speaks=here.first) as meter:
                for first in range(0, len(chunks), here.size):  # as often on each rank, for it agrees on signals
                    here.poll()
                    for chunk, pixels in itertools.islice(shown, 1):
                        with autocast(index.device, self.precision):
                            for net, values in predict(View(pixels, chunk)).items():
                                parts.setdefault(net, []).append(values)
                    meter.update(sum(map(len, chunks[first : first + here.size])))
            found = {net: torch.cat(values) for net, values in parts.items()}
            out.update({(split, net): values for net, values in self._of_ranks(found, len(chunks), index).items()})
        return out

    def _of_ranks(self, own: dict[str, Tensor], count: int, index: Tensor) -> dict[str, Tensor]:
        """What all ranks have found of `count` batches, in their order."""
        here = world()
        if here.size == 1:
            return own
        out = {}
        # rank 0 has the first batch; another one may have none, and not know what networks there are
        known = here.once(lambda: {net: (v.shape[1:], v.dtype, v.device.type) for net, v in own.items()})
        for net, (shape, dtype, kind) in known.items():
            device = index.device if index.device.type == kind else torch.device(kind)
            values = own[net] if net in own else torch.empty((0, *shape), dtype=dtype, device=device)
            batches = [part.split(self.batch_size) for part in here.collected(values)]
            out[net] = torch.cat([batches[k % here.size][k // here.size] for k in range(count)])
        return out

    @torch.no_grad()
    def settled(self, method: Method[Any]) -> dict[tuple[str, str], Tensor]:
        """As `logits` of its networks, once what it has to choose is chosen on the validation images."""
        choice = method.choice()
        if choice is None or "val" not in self.splits:
            return self._timed(method.predict)
        inputs: dict[str, dict[str, Tensor]] = {split: {} for split in self.splits}
        for (split, name), values in self._timed(choice.inputs).items():
            inputs[split][name] = values
        choice.make(inputs["val"], self.splits["val"][2])
        return {(split, net): values for split in inputs for net, values in choice.apply(inputs[split]).items()}

    def _timed(self, predict: Predict) -> Logits:
        started, out = perf_counter(), self.logits(predict)
        for values in out.values():
            finish(values.device)
        count = sum(len(index) for _, index, _ in self.splits.values())
        self.seconds_per_image = (perf_counter() - started) * world().size / count if count else None
        return out

    def warnings(self, logits: Mapping[tuple[str, str], Tensor], needs: Needs) -> list[str]:
        """Lines for the record about what the networks do, where the method counts on it."""
        lines = []
        count = len(self.splits["val"][1]) if "val" in self.splits else ENOUGH
        if logits and count < ENOUGH:
            fitted = "val/*/temperature and test/*/scaled_* say little"
            lines.append(f"{count} validation images are too few to fit a temperature on: {fitted} ({ENOUGH} would do)")
        split = "val" if ("val", "teacher") in logits else "test"
        if not needs.unsure_errors or (split, "teacher") not in logits:
            return lines
        warning = confident_errors_warning(logits[split, "teacher"], self.splits[split][2], split)
        return lines if warning is None else [*lines, warning]

    def metrics(self, logits: Mapping[tuple[str, str], Tensor]) -> dict[str, float]:
        """Flat `split/net/metric` of logits that `logits` gave."""
        out: dict[str, float] = {}
        for (split, net), values in logits.items():
            out |= _flat(f"{split}/{net}/", evaluate_logits(values, self.splits[split][2]))
        return out

    def final_metrics(self, logits: Mapping[tuple[str, str], Tensor]) -> dict[str, float]:
        """As `metrics`, with what is too dear for every evaluation.

        Students beside the network `teacher` where there is one; and each network's temperature, fitted on the
        validation images (`val/<net>/temperature`), with the test metrics that it changes (`test/<net>/scaled_ece`).
        Without validation images there is no temperature: the test images choose nothing.
        """
        out, temperatures = self.metrics(logits), self.temperatures(logits)
        for (split, net), values in logits.items():
            teacher = logits.get((split, "teacher"))
            if teacher is not None and net != "teacher":
                out |= _flat(f"{split}/{net}/", compare_with_teacher(values, teacher))
            if split == "val" and net in temperatures:
                test, temperature = logits["test", net], temperatures[net]
                scaled = evaluate_logits(test.to(temperature) / temperature, self.splits["test"][2])
                out[f"val/{net}/temperature"] = temperature.item()
                out |= _flat(f"test/{net}/scaled_", {k: v for k, v in scaled.items() if k not in ("top1", "top5")})
        return out

    def temperatures(self, logits: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        """Network -> its temperature () float64, fitted on the validation images; of those with test logits, too."""
        nets = [net for split, net in logits if split == "val" and ("test", net) in logits]
        return {net: fit_temperature(logits["val", net], self.splits["val"][2]) for net in nets}

    def save(self, directory: Path, logits: Mapping[tuple[str, str], Tensor]) -> None:
        """predictions/<split>-<net>.npz with index, target and float32 logits."""
        for (split, net), values in logits.items():
            _, index, target = self.splits[split]
            arrays: dict[str, Any] = {"index": index, "target": target, "logits": values.float()}
            with atomic_path(directory / f"{split}-{net}.npz") as path, path.open("wb") as file:
                np.savez(file, **{name: value.cpu().numpy() for name, value in arrays.items()})


def choice_metrics(method: Method[Any]) -> dict[str, float]:
    """What it chose on the validation images, as metrics."""
    choice = method.choice()
    return {} if choice is None else choice.metrics()


def _flat(prefix: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars of one device as numbers, in one transfer."""
    numbers = torch.stack(list(values.values())).tolist()
    return {f"{prefix}{name}": number for name, number in zip(values, numbers, strict=True)}
