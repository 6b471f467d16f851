"""Analyses of finished runs: what the numbers of a table do not tell. Each is a function of a run, by its name."""

from collections.abc import Callable, Sequence

from kdrun.errors import ConfigError, allowed
from kdrun.finished import FinishedRun


def main(arguments: Sequence[str]) -> str:
    """The text of `<analysis> run=<directory> [run=<directory> ...] [split=val|test]`.

    Raises:
        ConfigError: an unknown analysis or key, or no run.
        KdrunError: a directory that is no finished run, or a run that the analysis cannot be made of.
    """
    from kdrun.analysis.teacher import teacher

    analyses: dict[str, Callable[[FinishedRun, str], str]] = {"teacher": teacher}
    what, *rest = arguments or [""]
    if what not in analyses:
        raise ConfigError(f"{what or 'command line'}: not an analysis; {allowed(what, analyses)}")
    runs, split = [], "test"
    for argument in rest:
        key, _, value = argument.partition("=")
        if key == "run" and value:
            runs.append(value)
        elif key == "split" and value in ("val", "test"):
            split = value
        else:
            raise ConfigError(f"{argument}: expected run=<directory>, split=val or split=test")
    if not runs:
        raise ConfigError(f"run: missing; {what} run=<directory>")
    return "\n\n".join(analyses[what](FinishedRun.open(run), split) for run in runs)
