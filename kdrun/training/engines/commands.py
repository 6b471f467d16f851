"""SLURM's commands: what they are asked, and how their answers are read."""

import logging
import re
import subprocess
from collections.abc import Iterable
from functools import cache

from kdrun.core.errors import ConfigError, allowed

log = logging.getLogger(__name__)
PATIENCE = 60.0
"""Seconds that a command may take."""
PENDING = "PD"


def require_partition(name: str | None) -> None:
    """Raises ConfigError where SLURM does not answer, or has no such partition."""
    code, out, err = command("sinfo", "--noheader", "--format=%R")
    if code:
        raise ConfigError(f"engine=slurm: SLURM does not answer: {last_of(err.splitlines())}")
    names = set(out.split())
    if name is not None and name not in names:
        raise ConfigError(f"engine.partition: unknown partition {name!r}{allowed(name, names)}")


@cache  # what has passed is asked, and what is odd about it told, once
def require_possible(
    partition: str | None, minutes: int, cpus: int, gpus: int, options: tuple[tuple[str, str | int | bool], ...]
) -> None:
    """Raises ConfigError where SLURM will not take such a job, or would keep it waiting for ever.

    What no node has now, as some are down, it may have tomorrow: that is said, and the job waits.
    """
    given: dict[str, str | int | bool] = {"time": minutes, "cpus-per-task": cpus, **dict(options)}
    given |= {"partition": partition} if partition else {}
    given |= {"gpus-per-node": gpus} if gpus else {}
    words = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in given.items()]
    code, _, err = command("sbatch", "--test-only", "--wrap=true", *words)
    if not code:
        return
    if "not available" not in err:
        raise refused(next((line for line in err.splitlines() if line.strip()), "sbatch said nothing"))
    where = [f"--partition={partition}"] if partition else []
    _, out, _ = command("sinfo", "--noheader", "--Node", "--format=%c %G", *where)
    nodes = [(int(cores), gpus_of(gres)) for cores, _, gres in (line.partition(" ") for line in out.splitlines())]
    for key, asked, most in (
        ("cpus", cpus, max((node[0] for node in nodes), default=cpus)),
        ("gpus", gpus, max((node[1] for node in nodes), default=gpus)),
    ):
        if asked > most:
            raise ConfigError(f"engine.{key}: {asked} were asked for, and the largest node has {most}")
    log.warning("engine=slurm: no node can take such a job now, so it will wait: %s", last_of(err.splitlines()))


def gpus_of(gres: str) -> int:
    """Of a node, from `gpu:h100:8(S:0-1),gpu:t4:2`."""
    return sum(int(count or 1) for count in re.findall(r"\bgpu(?::[A-Za-z_][^:,(]*)?(?::(\d+))?", gres))


def refused(why: str) -> ConfigError:
    why = why.removeprefix("sbatch: ").removeprefix("error: ")
    return ConfigError(f"engine=slurm: {why}{' (engine.gpus=0: none)' if 'gres' in why else ''}")


def in_queue() -> dict[str, str] | None:
    """The user's jobs that wait, run or are about to end, each of an array by itself, and its state in SLURM's short
    form. None: SLURM does not answer."""
    code, out, err = command("squeue", "--noheader", "--array", "--me", "--format=%i %t")
    if code:
        log.debug("squeue: %s", err)
        return None
    return {number: state for number, _, state in (line.partition(" ") for line in out.split("\n")) if number}


def command(*words: str) -> tuple[int, str, str]:
    """Of SLURM. Returns the exit code, what it prints, what it complains of."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def last_of(lines: Iterable[str]) -> str:
    found = [line.strip() for line in lines if line.strip()]
    return found[-1].removeprefix("error: ") if found else "it said nothing"
