"""Whether this process is one of several that a launcher has started for one run."""

import os

from kdrun.core.errors import ConfigError

COUNTS = {
    "WORLD_SIZE": "torchrun", "SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun",
    "MPI_LOCALNRANKS": "mpirun",
}  # fmt: skip


def refuse_ranks() -> None:
    """Raises ConfigError where a launcher has started several processes for what one makes."""
    for name, launcher in COUNTS.items():
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            raise ConfigError(
                f"{launcher} has started {count} processes ({name}), and a run is made by one; start it without "
                f"{launcher}, or use kdrun sweep for several runs at once"
            )
