"""What a frozen teacher says of the train images, for loss terms that need it before the first step.

`outputs/artifacts/teacher_statistics/<key>` holds one tensor, shared by all runs with the same teacher, the same images
and the same labels among them; nothing is computed unless a term asks.
"""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from kdrun.core.artifacts import Artifact
from kdrun.core.errors import KdrunError
from kdrun.core.files import write_bytes
from kdrun.core.registry import plugin_hashes
from kdrun.core.world import world
from kdrun.data.views.view import View
from kdrun.losses.term import Statistic
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator
from kdrun.training.teacher_logits import TeacherLogits

log = logging.getLogger(__name__)
VERSION = 1  # raise it when a statistic of kdrun's own changes: it is part of the artifact's name
KIND, FILE, SPLIT = "teacher_statistics", "statistic.safetensors", "train"


class AskedTeacher:
    """The teacher of a run, asked by loss terms; see `TeacherStatistics`.

    Args:
        keep: whether what is computed is kept, and what was kept is read.

    Attributes:
        figures: for the record, by name.
    """

    def __init__(self, assembly: Assembly, keep: bool = True) -> None:
        self.assembly = assembly
        self.keep = keep
        self.figures: dict[str, dict[str, Any]] = {}

    def __call__(self, statistic: Statistic, feature: str | None = None, everything: bool = False) -> Tensor:
        """On the CPU. Raises ConfigError as the statistic does."""
        evaluator, target = self._images(everything)
        images = evaluator.identity()
        name = f"{getattr(statistic, '__module__', '')}.{getattr(statistic, '__qualname__', '')}"
        told = f"the teacher's {name.rpartition('.')[2]} of {len(target)} train images"
        if not self.keep or images is None:
            log.info("%s: computed, and not kept", told)
            return self._computed(evaluator, target, statistic, feature)
        artifact = Artifact.of(self.assembly.job.outputs, KIND, {
            **self._logits.spec, "evaluation": images, "target": sha256(target.numpy().tobytes()).hexdigest(),
            "statistic": name, "statistics": VERSION, "feature": feature, "code": plugin_hashes([statistic]),
        })  # fmt: skip

        def build(folder: Path) -> dict[str, Any]:
            log.info("%s: computed once, for all runs with this teacher and these labels", told)
            found = self._computed(evaluator, target, statistic, feature)
            write_bytes(folder / FILE, save({"value": found.contiguous()}))
            return {}

        def read(folder: Path, _: dict[str, Any]) -> Tensor:
            return load((folder / FILE).read_bytes())["value"]

        value = world().first_then(lambda: artifact.value(build, read))
        self.figures[f"teacher_{name.rpartition('.')[2]}"] = {"key": artifact.key, "images": len(target)}
        return value

    @property
    def _logits(self) -> TeacherLogits:
        run = self.assembly
        if run.teacher is None:
            raise KdrunError("a loss term asks the teacher, and the run has none")
        return TeacherLogits(run.teacher, run.device, run.config.schedule.channels_last, run.job.outputs)

    def _images(self, everything: bool) -> tuple[Evaluator, Tensor]:
        """Of the labeled images, or of all that the run may see; and their labels (M,), -1 where they are hidden."""
        run = self.assembly
        shown = [run.split.labeled, run.split.unlabeled] if everything else [run.split.labeled]
        index = torch.from_numpy(np.unique(np.concatenate(shown)))
        target = run.setup.train_target[index]
        splits = {SPLIT: (run.images[0], index.to(run.device), target.to(run.device))}
        compiled = run.config.schedule.compile is not None
        return Evaluator(splits, **run.evaluation, compiled=compiled, named=run.named(SPLIT)), target

    def _computed(self, evaluator: Evaluator, target: Tensor, statistic: Statistic, feature: str | None) -> Tensor:
        network = self._logits.teacher.network

        def said(view: View) -> dict[str, Tensor]:
            out = network(view, () if feature is None else (feature,))
            found = {"logits": out.logits} | ({} if feature is None else {"features": out.features[feature]})
            return {name: value.float().cpu() for name, value in found.items()}  # there may be many images

        found = evaluator.logits(said, "the teacher")
        logits = found[SPLIT, "logits"]
        return statistic(found.get((SPLIT, "features"), logits), logits, target)
