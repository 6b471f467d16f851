"""Pages that a script makes: written, or held against what stands there."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdrun.core.paths import HERE

ROOT = HERE.parent


def write_or_check(
    arguments: Sequence[str], made: Callable[[], Mapping[Path, str]], script: str, root: Path = ROOT
) -> int:
    """Write the pages; with `check=true` write nothing and give exit code 1 where one is stale.

    Args:
        made: gives page -> text.
        script: what makes them, for messages.
        root: what their paths are told from.
    """
    if list(arguments) not in ([], ["check=true"]):
        print(f"error: {' '.join(arguments)}: not understood; give check=true or nothing", file=sys.stderr)
        return 2
    stale = False
    for page, text in made().items():
        name = page.relative_to(root)
        if page.is_file() and page.read_text("utf-8") == text:
            print(f"{name}: up to date")
        elif arguments:
            print(f"error: {name}: is stale; run python {script}", file=sys.stderr)
            stale = True
        else:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, "utf-8")
            print(f"wrote {name}")
    return int(stale)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of column -> cell as a table of Markdown."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head].replace("|", "\\|") for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
