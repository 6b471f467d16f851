"""Finished runs, opened again: their predictions, their networks, and what is added to their records."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.config.model import ModelConfig
from kdrun.config.nodes import from_nodes
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError, allowed
from kdrun.core.files import sweep
from kdrun.core.registry import load, load_plugins
from kdrun.methods.method import Method
from kdrun.methods.step import Setup
from kdrun.models.network import Network, load_network
from kdrun.runs.layout import directory_of_key, outputs_of, place_of, run_lock
from kdrun.runs.record import Record, finished_record, open_record, write_record
from kdrun.runs.whole import require_whole


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done, wherever its outputs folder lies now."""

    directory: Path
    record: Record

    @classmethod
    def open(cls, directory: str | Path) -> "FinishedRun":
        """Raises KdrunError for a directory that is no run's, and for a run that is not done."""
        return cls(*open_record(directory))

    @classmethod
    def find(cls, run: str, outputs: str | Path) -> "FinishedRun":
        """As `open`, of a directory or of a run key below `outputs`."""
        return cls.open(place_of(run, outputs))

    @property
    def outputs(self) -> Path:
        """The outputs folder that it lies in."""
        return outputs_of(self.directory)

    @cached_property
    def config(self) -> RunConfig:
        """Its configuration, with the outputs folder as it is now."""
        config = from_nodes(self.record["config"])
        return config.replace(execution=config.execution.replace(outputs=str(self.outputs)))

    @property
    def predicted(self) -> list[str]:
        """`<split>-<net>` of all predictions that it left, whether they are still there or not."""
        listed = self.record.get("files")
        if listed is None:  # from before there were checksums
            return sorted(path.stem for path in (self.directory / "predictions").glob("*-*.npz"))
        return sorted(Path(name).stem for name in listed if name.startswith("predictions/"))

    def predictions(self, split: str, net: str) -> tuple[Tensor, Tensor]:
        """Logits (M, C) float32 and targets (M,) int64 of `predictions/<split>-<net>.npz`."""
        folder = self.directory / "predictions"
        path = folder / f"{split}-{net}.npz"
        require_whole(self.directory, self.record, f"predictions/{path.name}")
        try:
            with np.load(path, allow_pickle=False) as file:
                return torch.from_numpy(file["logits"]), torch.from_numpy(file["target"])
        except FileNotFoundError:
            has = sorted(p.stem for p in folder.glob("*.npz"))
            raise KdrunError(f"{self.directory}: no predictions {split}-{net}; it has {', '.join(has)}") from None
        except (OSError, ValueError, KeyError) as error:
            raise KdrunError(f"{path}: not readable predictions ({error})") from None

    def network(self, net: str | None = None) -> Network:
        """One trained network, the headline's by default, in eval mode on the CPU."""
        import timm

        load("model")
        name = net or self.record["headline"]
        path = self.directory / f"{name}.safetensors"
        require_whole(self.directory, self.record, path.name)
        if not path.is_file():
            raise KdrunError(f"{self.directory}: no network {name!r}; {allowed(name, self.record['nets'])}")
        if not timm.is_model(self.record["nets"].get(name, {}).get("model", "")):  # from a user's file
            plugins = self.record["config"]["plugins"]
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
        networks = {name: self.network(name) for name in self.record["nets"]}
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
