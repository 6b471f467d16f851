"""Names of the classes of a finished run."""

from collections.abc import Sequence
from contextlib import suppress

from kdrun.config.dataset import FilesConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import lookup
from kdrun.data.load import load_dataset
from kdrun.runs.finished import FinishedRun


def class_names(run: FinishedRun, count: int) -> tuple[str, ...]:
    """In the order of its `count` logits: as its record has them; of an older run, as its configuration or its
    data have them now. Numbers where nobody knows."""
    names: Sequence[str] = run.record.get("class_names") or ()
    if not names:
        with suppress(KdrunError):  # the data are not on this machine
            names = run.config.dataset.class_names or _of_data(run)
    return tuple(names) if len(names) == count else numbers(count)


def numbers(count: int) -> tuple[str, ...]:
    """What classes without names are called."""
    return tuple(map(str, range(count)))


def _of_data(run: FinishedRun) -> Sequence[str]:
    dataset = run.config.dataset.offline()
    if isinstance(dataset, FilesConfig):
        names: Sequence[str] = lookup("dataset", dataset.name, "dataset.name").files(dataset).class_names
        return names
    return load_dataset(dataset, run.outputs, pixels=False).class_names
