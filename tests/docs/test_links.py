"""What README, docs and CONTRIBUTING name is there: files, headings, code, public names."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

import kdrun
from tests.conftest import ROOT
from tests.docs.pages import PAGES, anchors, links, told

each_page = pytest.mark.parametrize("page", PAGES, ids=told)


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


def fault(page: Path, link: str) -> str | None:
    """Why a link within the repository leads nowhere, on GitHub or on the site; None: it does not, or leads outside."""
    if re.match(r"[a-z]+:", link):
        return None
    name, _, anchor = unquote(link).partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return f"{link}: no such file"
    if ROOT not in (target, *target.parents):
        return f"{link}: leaves the repository"
    if target.is_dir() and "docs" in page.relative_to(ROOT).parts:
        return f"{link}: the site has no page of a folder; link to a file in it"
    if anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
        return f"{link}: no such heading"
    return None


@each_page
def test_links_lead_somewhere(page):
    assert not list(filter(None, (fault(page, link) for link in links(page.read_text()))))


@each_page
def test_names_and_paths_exist(page):
    wrong = []
    for path, name in re.findall(r"`((?:kdrun|tests|conf|scripts|docs)/[\w./-]*\w)(?::([\w.]+))?`", page.read_text()):
        target = ROOT / path
        if not target.exists():
            wrong.append(path)
        elif name and name not in definitions(target):
            wrong.append(f"{path}:{name}")
    assert not wrong


def test_a_dead_link_is_found():
    page = ROOT / "docs" / "index.md"
    assert fault(page, "install.md") is None
    assert fault(page, "https://nowhere.invalid/x") is None
    assert fault(page, "nothing.md") == "nothing.md: no such file"
    assert fault(page, "api.md#nothing") == "api.md#nothing: no such heading"
    assert fault(page, "../conf/table/demo.yaml") is None
    assert fault(page, "../conf/table") == "../conf/table: the site has no page of a folder; link to a file in it"


def test_published_tables_stand_on_pages():
    shown = {name for page in PAGES for name in re.findall(r"<!-- table (\w+) -->", page.read_text())}
    published = {path.parent.name for path in (ROOT / "outputs" / "published").glob("*/published.json")}
    assert shown == published


def test_the_page_of_the_architecture_fits_two_screens():
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 100


def test_the_page_of_the_api_has_every_public_name():
    named = re.findall(r"auto\w+:: kdrun\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted([*kdrun._PUBLIC, "load", "metrics"])
