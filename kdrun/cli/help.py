"""`--help`, answered from the file names of conf/ alone (Hydra would walk and parse every group)."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from kdrun.config.networks import own_networks
from kdrun.core.paths import CONF_DIR, DOCS_DIR
from kdrun.core.version import __version__

HEAD = f"kdrun {__version__}: run, compare and reproduce knowledge distillation.\n\n"
TRAIN = """\
  kdrun [train] [group=option] [key=value] [+key=value] [-m for a sweep]

Groups and their options (conf/<group>/<option>.yaml):
{groups}

Examples:
  kdrun student=resnet8 teacher=resnet20 loss=wttm dataset.num_labels=100
  kdrun -m seed=0,1,2 loss=ce,kd,ttm,wttm dataset.num_labels=50,200
  kdrun table table=demo

  --cfg job             show the composed configuration and stop
  -m, --multirun        run all combinations of comma-separated values
  --config-dir DIR      more config groups of your own (see docs/extend/plugin.md)
  --hydra-help          Hydra's own flags; shell completion: eval "$(kdrun -sc install=bash)"

The pages that messages name as docs/... are files of {docs}
"""


def overview(commands: Mapping[str, str], arguments: Iterable[str]) -> str:
    """The text of `kdrun --help`.

    Args:
        commands: name -> what it does, in a sentence.
    """
    lines = [f"  {name:<10}{sentence}" for name, sentence in commands.items()]
    return f"{HEAD}  kdrun <command> [key=value]; more of each: kdrun <command> --help\n\n" + "\n".join(
        [*lines, "", "Training, which needs no word:\n", _of_train(arguments)]
    )


def show_help(arguments: Iterable[str]) -> str:
    """The text of `kdrun train --help`; options of a `--config-dir` on the command line are listed too."""
    return HEAD + _of_train(arguments)


def _of_train(arguments: Iterable[str]) -> str:
    given = list(arguments)
    folders = [CONF_DIR]
    if "--config-dir" in given[:-1]:
        folders.append(Path(given[given.index("--config-dir") + 1]))
    folders += [Path(argument.split("=", 1)[1]) for argument in given if argument.startswith("--config-dir=")]
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            relative = path.relative_to(folder)
            if len(relative.parts) > 1:
                groups.setdefault(relative.parent.as_posix(), set()).add(relative.stem)
    for group, names in (("student", own_networks()), ("teacher", own_networks()), ("loss", groups["loss/term"])):
        groups[group] |= set(names)  # without a file of their own
    shown = {name: options for name, options in sorted(groups.items()) if name not in ("table", "paper")}
    lines = [f"  {name + ':':<19} {', '.join(sorted(options))}" for name, options in shown.items()]
    return TRAIN.format(groups="\n".join(lines), docs=DOCS_DIR)
