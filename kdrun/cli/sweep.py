"""Make all combinations of values, on an engine: this machine's cores or GPUs, Ray, SLURM.

kdrun sweep experiment=demo loss=ce,kd seed=0,1,2                two at once: engine.slots=2
kdrun sweep experiment=demo loss=ce,kd seed=range(5) dry=true    what would be made, and in which order
kdrun sweep experiment=demo loss=ce,kd seed=0,1,2 limit=4        four runs at most; the same command goes on
kdrun sweep experiment=demo search=optuna schedule.lr=tag(log,interval(0.01,1))   by val/top1; or objective=val/nll
kdrun sweep experiment=demo seed=0,1,2 engine=ray                engine: local, ray, slurm; see docs/sweeps.md
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdrun.cli import train
from kdrun.cli.plan import plan
from kdrun.config.compose import flags_first
from kdrun.core import signals
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.later import later
from kdrun.core.schema import Schema, from_arguments

if TYPE_CHECKING:
    from kdrun.training.graph import Graph
else:
    Graph = later("kdrun.training.graph", "Graph")


class Options(Schema):
    """Whatever else is given goes to every run, as to `kdrun train -m`."""

    dry: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code, as `train`."""
    return signals.exit_code(lambda: execute(sys.argv[1:] if argv is None else argv))


def execute(arguments: Sequence[str]) -> int:
    """As `main`. Raises KeyboardInterrupt: stopped by a signal."""
    own = [word for word in arguments if word.startswith("dry=")]
    words = [f"engine.{word}" if word.startswith("limit=") else word for word in arguments if word not in own]
    words = ["-m", *words]
    try:
        options = from_arguments(Options, own)
        if not options.dry:
            return train.execute(words)
        asked = plan(flags_first(words), start=False)
        if asked is None:
            raise ConfigError("dry: only the sweeper knows its runs; leave it out")
        if asked.search is not None:
            raise ConfigError("dry: a search decides as it goes; leave it out")
    except KdrunError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    graph = Graph.of(asked.jobs)
    limit = asked.settings.engine.get("limit") if asked.settings is not None else None
    if isinstance(limit, int):
        graph.leave(limit)
    print(graph.picture())
    return 0
