"""`python -m kdrun <command>`."""

import sys

from kdrun.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
