"""The documentation site: `make docs` builds docs/_build/index.html, and fails at a warning, such as a dead link."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun import __version__

project = "kdrun"
author = "the kdrun authors"
version = release = __version__
extensions = ["mathml", "scripts.gallery", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "outputs", ".ipynb_checkpoints"]

html_theme = "furo"
html_title = f"kdrun {__version__}"
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as GitHub names them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False


def setup(app: Any) -> None:
    app.connect("source-read", _files_are_files)
    app.connect("html-page-context", _open_files)
    app.connect("autodoc-process-docstring", _as_they_are, priority=400)  # before napoleon


# A plain link to a file of the repository, `../conf/table/demo.yaml`, works on GitHub and here: MyST copies the file
# into the site and fails where there is none. A folder has no page: link to a file in it.


def _files_are_files(app: Any, page: str, source: list[str]) -> None:
    """A Markdown file outside of docs, `../CONTRIBUTING.md`, is copied too, and no page that MyST misses."""
    outside = re.escape("../" * (page.count("/") + 1))
    source[0] = re.sub(rf"\]\((?={outside}[^)]*\.md\))", "](path:", source[0])


def _open_files(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Browsers open what is linked, such as a report, instead of saving it."""
    if "body" in context:
        context["body"] = context["body"].replace(' download=""', "")


def _as_they_are(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: no other sign in them means anything to Sphinx."""
    for k, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[k] = "".join(f"`{part}`" if part[:1] == "`" else re.sub(r"([|*])", r"\\\1", part) for part in parts)
