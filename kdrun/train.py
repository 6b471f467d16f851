"""The face of `kdrun.cli.train`: `python -m kdrun.train`."""

import sys

from kdrun.cli.command import print_anything
from kdrun.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    print_anything()
    sys.exit(main())
