"""`python -m kdrun <command>`, and the console script. Takes signals before anything that loads for long."""

import sys

from kdrun.core.signals import process


def main() -> int:
    return process(_command)


def _command() -> int:
    from kdrun.cli.command import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
