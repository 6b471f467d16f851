"""`kdrun doctor`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
