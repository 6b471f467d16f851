"""kdrun: run, compare and reproduce (semi-supervised) knowledge distillation for image classification.

Runs are started by the command `kdrun`. From Python: `load` gives the network of a finished run, `kdrun.losses` the
losses as functions, `kdrun.metrics` accuracy and calibration; docs/notebook.ipynb uses them. What a plug-in needs is
here, too: `from kdrun import Method, Needs, Step, register`, with a page for each kind in docs/extend.

Nothing is loaded before it is asked for: importing kdrun imports no torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.core.machine import wait_briefly
from kdrun.core.version import __version__ as __version__

if TYPE_CHECKING:  # for type checkers; at run time each name is loaded when it is asked for
    from kdrun.config.dataset import DatasetConfig as DatasetConfig
    from kdrun.config.dataset import Facts as Facts
    from kdrun.config.dataset import FilesConfig as FilesConfig
    from kdrun.config.needs import Needs as Needs
    from kdrun.config.parts import MethodConfig as MethodConfig
    from kdrun.config.parts import TermConfig as TermConfig
    from kdrun.config.parts import UncertaintyConfig as UncertaintyConfig
    from kdrun.config.run import RunConfig as RunConfig
    from kdrun.config.teacher import TeacherConfig as TeacherConfig
    from kdrun.core.errors import ConfigError as ConfigError
    from kdrun.core.errors import DataError as DataError
    from kdrun.core.errors import KdrunError as KdrunError
    from kdrun.core.registry import register as register
    from kdrun.data.arrays import Arrays as Arrays
    from kdrun.data.listing import Listing as Listing
    from kdrun.data.views.view import Batch as Batch
    from kdrun.data.views.view import View as View
    from kdrun.losses.term import Pair as Pair
    from kdrun.losses.term import Term as Term
    from kdrun.losses.term import TermSpec as TermSpec
    from kdrun.methods.choice import Choice as Choice
    from kdrun.methods.method import Method as Method
    from kdrun.methods.pool import Start as Start
    from kdrun.methods.step import Context as Context
    from kdrun.methods.step import Guesses as Guesses
    from kdrun.methods.step import Setup as Setup
    from kdrun.methods.step import Step as Step
    from kdrun.methods.uncertainty import Uncertainty as Uncertainty
    from kdrun.models.network import Network
    from kdrun.models.output import Output as Output
    from kdrun.runs.layout import Checkpoint
    from kdrun.teachers.kind import TeacherKind as TeacherKind
    from kdrun.teachers.teacher import Teacher as Teacher

wait_briefly()  # before torch is loaded

# Where each public name is defined.
_PUBLIC = {
    "register": "core.registry", "ConfigError": "core.errors", "DataError": "core.errors", "KdrunError": "core.errors",
    "MethodConfig": "config.parts", "TermConfig": "config.parts", "UncertaintyConfig": "config.parts",
    "DatasetConfig": "config.dataset", "FilesConfig": "config.dataset", "Facts": "config.dataset",
    "RunConfig": "config.run",
    "Arrays": "data.arrays", "Listing": "data.listing", "View": "data.views.view", "Batch": "data.views.view",
    "Output": "models.output", "Pair": "losses.term", "Term": "losses.term", "TermSpec": "losses.term",
    "TeacherConfig": "config.teacher", "TeacherKind": "teachers.kind", "Teacher": "teachers.teacher",
    "Method": "methods.method", "Context": "methods.step", "Guesses": "methods.step", "Setup": "methods.step",
    "Step": "methods.step", "Needs": "config.needs", "Choice": "methods.choice", "Start": "methods.pool",
    "Uncertainty": "methods.uncertainty",
}  # fmt: skip
_MODULES = ("losses", "metrics", "models")


def load(run_dir: str | Path, net: str | None = None, checkpoint: "Checkpoint" = "last") -> "Network":
    """The trained network of a finished run, in eval mode on the CPU, with its input adapter.

    Args:
        run_dir: a run directory (the one with record.json), or a .safetensors file that kdrun wrote or exported.
        net: which network of the run, e.g. student_2; default: the run's headline network.
        checkpoint: the weights of the last step, or those that were `best_on_val`, on validation images.

    Returns:
        A module that takes raw pixels, a tensor (B, C, H, W), uint8 in [0, 255] or float in [0, 1], resizes (where
        it was trained so) and normalises them itself, and gives `Output.logits` (B, classes) float32, not softened by a
        temperature. Features that are asked for, of those in `network.dims`, are in
        `network(images, features=["prelogits"]).features`.
        `network.class_names` are the names of the classes; of a file that has neither its run nor its JSON beside it,
        numbers.

    Raises:
        KdrunError: not a finished run, no such network or weights, or a file that is not as it was written.

    Example:
        >>> network = kdrun.load("outputs/runs/distill/digits/n100/s0-...")
        >>> probabilities = network(images).logits.softmax(1)
    """
    from kdrun.runs.classes import class_names
    from kdrun.runs.finished import FinishedRun

    if net is None and checkpoint == "last" and Path(run_dir).suffix == ".safetensors" and Path(run_dir).is_file():
        from kdrun.runs.export.opened import open_file

        return open_file(Path(run_dir))
    run = FinishedRun.open(run_dir, checkpoint)
    network = run.network(net)
    network.class_names = class_names(run, network.spec.num_classes)
    return network


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kdrun.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"kdrun.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'kdrun' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_MODULES})
