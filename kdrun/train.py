"""The face of `kdrun.cli.train`: `python -m kdrun.train`. Takes signals before anything that loads for long."""

from kdrun.core.leaving import leave
from kdrun.core.signals import process


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    from kdrun.cli.command import print_anything
    from kdrun.cli.train import main as train

    print_anything()
    return train(argv)


__all__ = ["main"]

if __name__ == "__main__":
    leave(process(main))
