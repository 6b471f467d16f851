"""Finished runs, opened again: their predictions, their networks, and what is added to their records."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdrun.config.environment import asked_again
from kdrun.config.model import ModelConfig
from kdrun.config.nodes import from_record
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, KdrunError, allowed
from kdrun.core.files import npz_arrays, sweep
from kdrun.core.registry import load, load_plugins
from kdrun.methods.method import Method
from kdrun.methods.step import Setup
from kdrun.models.network import Network, load_network
from kdrun.runs.layout import Checkpoint, directory_of_key, outputs_of, run_lock, weights_of
from kdrun.runs.metric import Metric
from kdrun.runs.record import Record, finished_record, open_record, write_record
from kdrun.runs.whole import require_whole


@dataclass(frozen=True)
class Kept:
    """The predictions of one network for the M images of a split."""

    index: Tensor
    """(M,) int64, positions in the dataset's train (or test) array."""
    target: Tensor
    """(M,) int64."""
    logits: Tensor
    """(M, C) float32."""

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Kept":
        """Raises ValueError for arrays that are no predictions."""
        names = ("index", "target", "logits")
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"no array {', '.join(missing)}")
        index, target, logits = (arrays[name] for name in names)
        if logits.dtype.kind != "f" or logits.ndim != 2 or not logits.size:
            raise ValueError(f"logits: expected floats (M, C), got {logits.dtype} {logits.shape}")
        for name, array in (("index", index), ("target", target)):
            if array.dtype.kind not in "iu" or array.shape != logits.shape[:1]:
                raise ValueError(f"{name}: expected integers ({len(logits)},), got {array.dtype} {array.shape}")
        if target.min() < 0 or target.max() >= logits.shape[1]:
            raise ValueError(f"target: from {target.min()} to {target.max()}, allowed 0 to {logits.shape[1] - 1}")
        positions, labels = (torch.from_numpy(array.astype(np.int64)) for array in (index, target))
        return cls(positions, labels, torch.from_numpy(logits.astype(np.float32)))


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done, wherever its outputs folder lies now."""

    directory: Path
    record: Record
    checkpoint: Checkpoint = "last"
    """Which of its weights its networks have."""

    def __post_init__(self) -> None:
        """Raises KdrunError where there are no weights of the best evaluation."""
        if self.checkpoint == "last":
            return
        asked, files = f"checkpoint={self.checkpoint}: {self.directory}", self.record.get("files") or ()
        if not self.record.get("best_on_val"):
            raise KdrunError(f"{asked}: had no validation images to choose the best by; leave it out for the last step")
        names = [weights_of(net, self.checkpoint) for net in self.record["nets"]]
        if not any(name in files or (self.directory / name).is_file() for name in names):
            raise KdrunError(f"{asked}: was validated once, behind its last step; leave it out for the weights of that")

    @classmethod
    def open(cls, directory: str | Path, checkpoint: Checkpoint = "last") -> "FinishedRun":
        """Raises KdrunError for a directory that is no run's, and for a run that is not done."""
        return cls(*open_record(directory), checkpoint)

    @classmethod
    def find(cls, run: str, outputs: str | Path) -> "FinishedRun":
        """As `open`, of a directory or of a run key below `outputs`."""
        return cls(*open_record(run, outputs))

    @property
    def outputs(self) -> Path:
        """The outputs folder that it lies in."""
        return outputs_of(self.directory)

    @cached_property
    def config(self) -> RunConfig:
        """Its configuration, with the outputs folder as it is now."""
        try:
            config = from_record(self.record["config"])
        except ConfigError as error:
            raise ConfigError(
                *(f"{self.directory}: the configuration in its record: {e}" for e in error.lines)
            ) from None
        return config.replace(execution=config.execution.replace(outputs=str(self.outputs)))

    @property
    def metrics(self) -> dict[str, float | None]:
        """Its figures with the weights of its checkpoint."""
        found = self.record["metrics"] if self.checkpoint == "last" else self.record["best_on_val"]["metrics"]
        return dict(found)

    @property
    def step(self) -> int | None:
        """Steps behind which its checkpoint was."""
        last = self.checkpoint == "last"
        step: int | None = self.record.get("steps") if last else self.record["best_on_val"].get("step")
        return step

    @property
    def told(self) -> str:
        """Its weights in words."""
        what = "the last" if self.checkpoint == "last" else "the best on validation images"
        return f"weights of step {self.step}, {what}"

    @property
    def predictors(self) -> list[str]:
        """What it evaluated, but its teacher, which is a run of its own or a file, and weights that an EMA left."""
        figures = map(Metric.parse, self.record["metrics"])
        nets = list(dict.fromkeys(m.net for m in figures if m.split == "test" and m.net))
        beside = {"teacher", *(f"{net}_raw" for net in nets)}
        return [net for net in nets if net not in beside]

    @property
    def predicted(self) -> list[str]:
        """`<split>-<net>` of all predictions that it left, whether they are still there or not."""
        listed = self.record.get("files")
        if listed is None:  # from before there were checksums
            return sorted(path.stem for path in (self.directory / "predictions").glob("*-*.npz"))
        return sorted(Path(name).stem for name in listed if name.startswith("predictions/"))

    def predictions(self, split: str, net: str) -> tuple[Tensor, Tensor]:
        """Logits (M, C) float32 and targets (M,) int64 of `predictions/<split>-<net>.npz`."""
        kept = self.kept(split, net)
        return kept.logits, kept.target

    def kept(self, split: str, net: str) -> "Kept":
        """All of `predictions/<split>-<net>.npz`. Raises KdrunError: there is none, or it is damaged."""
        folder = self.directory / "predictions"
        path = folder / f"{split}-{net}.npz"
        require_whole(self.directory, self.record, f"predictions/{path.name}")
        try:
            return Kept.of(npz_arrays(path))
        except FileNotFoundError:
            has = ", ".join(sorted(p.stem for p in folder.glob("*.npz"))) or "none"
            raise KdrunError(f"{self.directory}: no predictions {split}-{net}; it has {has}") from None
        except ValueError as error:
            remedy = f"delete {self.directory} and run it anew"
            raise KdrunError(f"{path}: not readable predictions ({error}); {remedy}") from None

    def network(self, net: str | None = None) -> Network:
        """One trained network, the headline's by default, in eval mode on the CPU."""
        import timm

        load("model")
        name = net or self.record["headline"]
        path = self.directory / weights_of(name, self.checkpoint)
        require_whole(self.directory, self.record, path.name)
        if not path.is_file():
            raise KdrunError(f"{self.directory}: no network {name!r}{allowed(name, self.record['nets'])}")
        if not timm.is_model(self.record["nets"].get(name, {}).get("model", "")):  # from a user's file
            plugins = asked_again(self.record["config"])[0]["plugins"]
            load_plugins([p for p in plugins if Path(p).is_file()], forget=False)
        return load_network(path)

    def required(self, role: str) -> Path:
        """Directory of a run that this one needed."""
        key = self.record["requires"].get(role)
        found = directory_of_key(self.outputs, key)
        if found is None:
            raise KdrunError(f"{self.directory}: its {role} (run {key}) is not below {self.outputs}")
        require_whole(*open_record(found))
        return found

    def method(self, setup: Setup | None = None) -> Method[Any]:
        """Its method with the trained networks, in eval mode on the CPU; no setup: without its data and its teacher."""
        students = islice(self.record["nets"], len(self.config.students))  # behind them: what the method made of them
        networks = {name: self.network(name) for name in students}
        # as they were saved, whatever they were trained from
        config = self.config.replace(students=[ModelConfig.model_validate(n.spec.model) for n in networks.values()])
        if setup is None:
            if not networks:
                raise KdrunError(f"{self.directory}: method={self.record['method']} trains no student")
            spec = next(iter(networks.values())).spec
            nothing = torch.empty(0, dtype=torch.int64)
            setup = Setup(spec.num_classes, spec.in_chans, spec.mean, spec.std, train_target=nothing)
        method: Method[Any] = config.method_class(config, replace(setup, restoring=True))
        method.students.update(networks)
        own = self.directory / "method.safetensors"
        require_whole(self.directory, self.record, own.name)
        if own.is_file() and self.checkpoint != "last" and not set(self.predictors) <= {*self.record["nets"]}:
            raise KdrunError(
                f"checkpoint={self.checkpoint}: {own} goes with the last step alone, and {self.record['headline']} "
                "needs it; leave it out, or choose a predictor that is one network"
            )
        if own.is_file():
            from safetensors.torch import load_file

            method.load_state_dict(load_file(own), strict=False)
        return method.eval()

    @contextmanager
    def amended(self) -> Iterator[Record]:
        """The record as it is now, to change while nobody else can; written if the block ends well and changed it."""
        with run_lock(self.directory) as lock:
            sweep(self.directory)
            record = finished_record(self.directory)
            if record is None:
                raise KdrunError(f"{self.directory}: was deleted meanwhile, or files of it")
            before = copy.deepcopy(record)
            yield record
            if record != before:
                lock.require()
                write_record(self.directory, record)
