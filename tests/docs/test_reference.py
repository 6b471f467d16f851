"""docs/reference is what the schemas and conf/ make."""

import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from kdrun.config.run import RunConfig
from kdrun.core.registry import registered
from kdrun.core.schema import OutsideKey, Schema
from kdrun.results.spec import TableConfig
from scripts import generated, keys, reference


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return {page.stem: text for page, text in reference.pages().items()}


def rows(text: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_pages_are_as_schemas_and_conf_make_them(made):
    stand = {page.stem: page.read_text("utf-8") for page in reference.FOLDER.glob("*.md")}
    stale = sorted({name for name in {*stand, *made} if stand.get(name) != made.get(name)})
    assert not stale, "run python scripts/reference.py"


def test_every_key_of_every_part_is_told_and_of_each_class_once(made):
    book = reference.Book()
    schemas = [cls.Config for kind in reference.PARTS for cls in reference.ours(kind).values()]
    schemas += [
        TableConfig,
        *(reference.node(key) for key in ("students", "schedule", "views", "tracker", "execution")),
    ]
    told = set()
    for cls in (cls for schema in schemas for cls in reference.declaring(schema)):
        section = book.sections[cls]
        part = made[section.page].split(f"\n## {section.heading}\n")
        assert len(part) == 2, section
        told |= {(cls, key) for key in rows(part[1].partition("\n## ")[0])}
    assert told >= {
        (cls, key) for schema in schemas for cls in reference.declaring(schema) for key in reference.own_fields(cls)
    }
    assert {name for name in RunConfig.model_fields if name in ("seed", "plugins")} <= set(rows(made["run"]))


def test_every_choice_is_listed(made):
    for kind, (page, _) in reference.PARTS.items():
        assert set(reference.ours(kind)) <= set(rows(made[page])), kind
    assert "`experiment=ttm/resnet56_resnet20`" in made["experiment"]
    assert len(registered("loss")) > 40


class Node(Schema):
    """A node."""

    mode: Literal["on", "off"] = "on"
    rate: Annotated[float, OutsideKey()] = Field(0.5, ge=0, lt=1)
    """How *fast*, of [0, 1)."""
    size: int | None = Field(None, gt=0)
    names: list[str]


def test_a_row_tells_type_bounds_default_and_meaning():
    told = {row["key"]: row for row in keys.key_rows(Node, list(Node.model_fields), keys.Defaults(None), {})}
    assert told["`mode`"]["type"] == "`on`, `off`"
    assert told["`rate`"] == {
        "key": "`rate`", "type": "float >= 0 and < 1", "default": "`0.5`",
        "what": r"How \*fast\*, of \[0, 1). Not in the run key.",
    }  # fmt: skip
    assert told["`size`"]["type"] == "int > 0 or `null`"
    assert told["`names`"] == {"key": "`names`", "type": "list of str", "default": "required", "what": "-"}


def test_defaults_are_those_of_the_files_of_parts():
    schema = registered("method")["fixmatch"].Config
    defaults = keys.Defaults("method", ["fixmatch", "dash"])
    assert defaults.of("unlabeled_ratio", schema.model_fields["unlabeled_ratio"]) == "`7`"
    assert keys.fallback("${setting:dho.ce_share,0.4}") == 0.4
    assert keys.values_of("loss/term/dkd")["beta"] == 8.0
    assert keys.comments_of("method/fixmatch")["threshold"] == "tau"


def test_a_stale_page_is_told_and_made_anew(tmp_path, capsys):
    page = tmp_path / "docs" / "x.md"

    def made():
        return {page: "new\n"}

    assert generated.write_or_check(["check=true"], made, "scripts/x.py", tmp_path) == 1
    assert capsys.readouterr().err == "error: docs/x.md: is stale; run python scripts/x.py\n"
    assert not page.exists()
    assert generated.write_or_check([], made, "scripts/x.py", tmp_path) == 0
    assert page.read_text() == "new\n"
    assert generated.write_or_check(["chek=true"], made, "scripts/x.py", tmp_path) == 2
