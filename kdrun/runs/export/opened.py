"""A weight file as a network, with the names of its classes from what lies beside it."""

import json
from pathlib import Path

from kdrun.core.errors import KdrunError
from kdrun.core.files import reason
from kdrun.models.network import Network, load_network
from kdrun.runs.classes import class_names, numbers
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import read_record
from kdrun.runs.whole import require_whole


def open_file(file: Path) -> Network:
    """A network from a .safetensors file that a run or an export wrote, in eval mode on the CPU.

    Raises:
        KdrunError: the file, its run's record or the export's JSON is not as it was written.
    """
    record = read_record(file.parent)
    if record is not None:
        require_whole(file.parent, record, file.name)
    network = load_network(file)
    count = network.spec.num_classes
    beside = file.with_name(f"{file.name}.json")
    if record is not None:
        network.class_names = class_names(FinishedRun(file.parent.resolve(), record), count)
    elif beside.is_file():
        try:
            network.class_names = tuple(json.loads(beside.read_text("utf-8"))["class_names"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KdrunError(f"{beside}: not the JSON of an export ({reason(error)})") from None
    if len(network.class_names) != count:
        network.class_names = numbers(count)
    return network
