"""`python -m kdrun <command>`, and the console script. Takes signals before anything that loads for long."""

from typing import NoReturn

from kdrun.core.leaving import leave
from kdrun.core.signals import process


def main() -> NoReturn:
    leave(process(_command))


def _command() -> int:
    from kdrun.cli.command import main as command

    return command()


if __name__ == "__main__":
    main()
