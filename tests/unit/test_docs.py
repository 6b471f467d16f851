"""What docs and CONTRIBUTING name exists."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"])


def definitions(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, their members, assignments."""
    found: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    walk(ast.parse(path.read_text()).body, "")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_and_paths_in_docs_exist(page):
    text = page.read_text()
    wrong = []
    for path, name in re.findall(r"`((?:kdrun|tests|conf|scripts|docs)/[\w./-]*\w)(?::([\w.]+))?`", text):
        target = ROOT / path
        if not target.exists():
            wrong.append(path)
        elif name and name not in definitions(target):
            wrong.append(f"{path}:{name}")
    links = re.findall(r"\]\(([\w./-]+\.md)\)", text)
    wrong += [link for link in links if not (page.parent / link).exists()]
    assert not wrong


def test_the_page_of_the_architecture_fits_two_screens():
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 100


def test_published_tables_stand_on_pages():
    shown = {name for page in PAGES for name in re.findall(r"<!-- table (\w+) -->", page.read_text())}
    published = {path.parent.name for path in (ROOT / "outputs" / "published").glob("*/published.json")}
    assert shown == published
