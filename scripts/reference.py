"""docs/reference: every key of every group with type, default and meaning, and what stands in conf/ to pick from.

python scripts/reference.py               write the pages
python scripts/reference.py check=true    write nothing; exit 1: one is not what schemas and conf/ make by now

Types, bounds and meanings are the schemas', defaults and the rest of the meanings conf/'s. A key is told once: where
the class stands that declares it, however many parts are made from that class.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import COMMANDS
from kdrun.cli.explain import idea_of
from kdrun.cli.search import SearchConfig
from kdrun.config.run import RunConfig
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import registered
from kdrun.core.schema import Schema, schema_of
from kdrun.results.plots.options import Sheet
from kdrun.results.spec import TableConfig
from scripts.generated import ROOT, table, write_or_check
from scripts.keys import Defaults, comments_of, first_sentence, key_rows, plain, shown, values_of

FOLDER = ROOT / "docs" / "reference"
PAGES = {
    "run": "What belongs to no group: `kdrun train <key>=...`.",
    "method": "The algorithm: `method=<name>`. Its keys are `method.<key>`. Papers and equations: "
    "[methods](../methods/index.md).",
    "dataset": "The images, and which of them have labels: `dataset=<name>`. Its keys are `dataset.<key>`.",
    "student": "The network that is trained: `student=<name>`, of [kdrun, timm](../networks.md) or a plug-in. Its\n"
    "keys are `student.<key>`; of one of several `students.<index>.<key>`.",
    "schedule": "Length, batch, optimizer, rates: `schedule=<name>`. Its keys are `schedule.<key>`.",
    "views": "What images are turned into: `views=<name>`. Its keys are `views.<key>`.",
    "teacher": "The frozen network: `teacher=<network>` trains one, `teacher=<name>` is one of the kinds below. Its\n"
    "keys are `teacher.<key>`.",
    "loss": "What is minimised: `loss=<name>`, a set of terms or a term. The keys of a term are `loss.<term>.<key>`.\n"
    "Papers and equations: [loss terms](../methods/index.md#loss-terms).",
    "tracker": "Where curves are shown beside the record: `tracker=<name>`. Its keys are `tracker.<key>`.",
    "engine": "What makes the runs of a [sweep](../sweeps.md): `engine=<name>`. Its keys are `engine.<key>`.",
    "search": "A search for hyper-parameters: `kdrun sweep search=<name>`. Its keys are `search.<key>`.",
    "experiment": "Picks and deltas that belong together: `experiment=<name>`. It has all keys that a run has.",
    "table": "What a file of `conf/table` says, and the files that are there: `kdrun table table=<name>`.",
    "commands": "All commands, and what each takes, as `kdrun <command> --help` tells it.",
}
"""Page -> what it is about. A class that belongs to several is told on the first of them."""
PARTS = {
    "method": ("method", "method"),
    "uncertainty": ("method", "method/uncertainty"),
    "dataset": ("dataset", "dataset"),
    "decay": ("schedule", "schedule/decay"),
    "teacher": ("teacher", "teacher"),
    "loss": ("loss", "loss/term"),
    "engine": ("engine", "engine"),
}
"""Kind of the registry -> its page, its group in conf/."""
MADE = "Made by `scripts/reference.py` from the schemas and `conf/`."
CONFS = {"execution": "config", "evaluate": "config", "tracker keys": "tracker/none", "student keys": "student/timm",
         "weights": "student/timm", "search keys": "search/optuna", "schedule keys": "schedule/base",
         "views keys": "views/standard", "views.weak": "views/standard", "views.strong": "views/standard"}  # fmt: skip
"""Heading -> the YAML whose comments say what the schema does not."""
SEED = "Of the networks, the order of images and, unless `dataset.split_seed` says otherwise, the labeled draw."
FEW = 8
"""Parts that a text names; more of them are counted."""


@dataclass
class Section:
    """The keys that one class declares, and the parts that have them."""

    schema: type[Schema]
    page: str
    heading: str
    group: str | None = None
    """Where the YAML of these parts lies."""
    users: list[str] = field(default_factory=list)

    @property
    def link(self) -> str:
        """From another page of the folder."""
        slug = "".join(sign for sign in self.heading.lower() if sign.isalnum() or sign in "_- ").replace(" ", "-")
        return f"{self.page}.md#{slug}"


class Book:
    """Every class, and where it is told."""

    def __init__(self) -> None:
        self.sections: dict[type[Any], Section] = {}
        for page in PAGES:
            for heading, schema in singles(page):
                self.add(page, heading, schema)
            for kind, (home, group) in PARTS.items():
                if home == page:
                    self.add_parts(kind, page, group)
        self.add_commands()
        for section in self.sections.copy().values():
            self.add_nested(section)

    def add(self, page: str, heading: str, schema: type[Schema]) -> None:
        for cls in declaring(schema):
            self.sections.setdefault(cls, Section(cls, page, heading if cls is schema else words(cls)))

    def add_parts(self, kind: str, page: str, group: str) -> None:
        """All that kdrun registers of a kind."""
        prefix = "" if kind == page else f"{kind}: "
        configs = {name: cls.Config for name, cls in ours(kind).items()}
        for name, schema in configs.items():
            for cls in declaring(schema):
                self.sections.setdefault(cls, Section(cls, page, "", group)).users.append(name)
        for cls, section in self.sections.items():
            own = [name for name in section.users if configs.get(name) is cls]
            if section.group == group and not section.heading:
                everyone = len(section.users) == len(configs)
                shared = f"Every {kind}" if everyone else f"Shared: {words(cls)}"
                section.heading = shared if everyone or len(own) != 1 else f"{prefix}{own[0]}"

    def add_nested(self, section: Section) -> None:
        """Nodes in a class that stand nowhere else."""
        for name in own_fields(section.schema):
            nested = schema_of(section.schema.model_fields[name].annotation)
            if nested is not None and not any(cls in self.sections for cls in declaring(nested)[-1:]):
                self.add(section.page, name if section.page == "run" else f"{section.page}.{name}", nested)
                self.add_nested(self.sections[nested])

    def add_commands(self) -> None:
        """What commands take; those of a picture or an analysis by its name."""
        for command in COMMANDS:
            module = importlib.import_module(f"kdrun.cli.{command}")
            kinds = {f"kdrun {command} {name}": cls for name, cls in getattr(module, "KINDS", {}).items()}
            kinds |= {"kdrun plot images": Sheet} if command == "plot" else {}
            own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
            kinds |= {f"kdrun {command}": cls for cls in own if issubclass(cls, Schema) and "Options" in cls.__name__}
            for heading, schema in kinds.items():
                self.add("commands", heading, schema)

    def text(self, page: str) -> str:
        parts = [f"# {page}", f"{PAGES[page]} {MADE}"]
        parts += usages() if page == "commands" else choices(page, self)
        for section in self.sections.values():
            if section.page == page:
                parts += self.section(section)
        return "\n\n".join(parts) + "\n"

    def section(self, section: Section) -> Iterator[str]:
        yield f"## {section.heading}"
        if vars(section.schema).get("__doc__") and section.page != "commands":
            yield plain(" ".join(inspect.cleandoc(str(section.schema.__doc__)).split()))
        if len(section.users) > 1 and not section.heading.startswith("Every "):
            few = ", ".join(f"`{name}`" for name in section.users[:FEW])
            yield f"Of {few}" + (f" and {len(section.users) - FEW} more." if len(section.users) > FEW else ".")
        bases = [self.sections[cls] for cls in declaring(section.schema)[:-1] if not section.group]
        if bases:
            yield (
                "Also the keys of "
                + ", ".join(f"[{base.heading}]({local(base, section.page)})" for base in bases)
                + "."
            )
        defaults = Defaults(section.group, section.users) if section.group else Defaults(CONFS.get(section.heading))
        yield table(key_rows(section.schema, list(own_fields(section.schema)), defaults, self.links(section.page)))

    def links(self, page: str) -> dict[type[Any], str]:
        """Class -> link from a page to where it is told."""
        return {cls: f"[{section.heading}]({local(section, page)})" for cls, section in self.sections.items()}


def local(section: Section, page: str) -> str:
    return section.link.removeprefix(f"{page}.md") if section.page == page else section.link


def singles(page: str) -> Iterator[tuple[str, type[Any]]]:
    """Heading and class of what a page tells that is no part."""
    if page == "run":
        for key in ("execution", "evaluate", "ramps"):
            yield key, node(key)
    elif page in ("search", "table"):
        yield f"{page} keys", SearchConfig if page == "search" else TableConfig
    elif page in ("student", "schedule", "views", "tracker"):
        yield f"{page} keys", node("students" if page == "student" else page)


def node(key: str) -> Any:
    """The class of a node of a run."""
    return schema_of(RunConfig.model_fields[key].annotation)


def declaring(schema: type[Any]) -> list[type[Schema]]:
    """The classes that it is made from and that declare keys, the most general first, and at last itself."""
    return [cls for cls in reversed(schema.__mro__) if issubclass(cls, Schema) and list(own_fields(cls))]


def own_fields(cls: type[Any]) -> Iterator[str]:
    """The keys that a class declares."""
    for name in vars(cls).get("__annotations__", {}):
        if name in cls.model_fields and not cls.model_fields[name].exclude:
            yield name


def ours(kind: str) -> dict[str, Any]:
    return {name: cls for name, cls in registered(kind).items() if cls.__module__.startswith("kdrun.")}


def words(cls: type[Any]) -> str:
    """`own training` of OwnTrainingConfig, `stage term` of StageTerm.Config."""
    name = re.sub(r"\W|_|Config$", "", cls.__qualname__.removesuffix(".Config"))
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()


def top_level() -> str:
    """Keys of conf/config.yaml that are no group's, and have no keys of their own."""
    values, comments = values_of("config"), comments_of("config")
    rows = []
    for key, value in values.items():
        if key not in ("hydra", "execution", "evaluate"):
            rows.append({"key": f"`{key}`", "default": shown(value), "what": plain(comments.get(key, SEED))})
    return table(rows)


def choices(page: str, book: Book) -> Iterator[str]:
    """Tables of the files of a group and of the groups in it: what each is, and where its keys stand."""
    if page == "run":
        yield "## top level"
        yield top_level()
        return
    kinds = {group: kind for kind, (_, group) in PARTS.items()}
    for folder in sorted({path.parent for path in (CONF_DIR / page).rglob("*.yaml")}):
        group = folder.relative_to(CONF_DIR).as_posix()
        parts = ours(kinds[group]) if group in kinds else {}
        files = {path.stem: first_sentence(path.read_text("utf-8")) for path in sorted(folder.glob("*.yaml"))}
        names = files | {name: plain(idea_of(cls)) for name, cls in parts.items() if name not in files}
        rows = []
        for name, what in sorted(names.items()):
            row = {"name": f"`{picked(page, group, name)}`", "what": what}
            if parts:
                row["keys"] = ", ".join(links_of(parts[name].Config, book, page)) if name in parts else "-"
            rows.append(row)
        yield f"## Choices of {group}" if group in kinds else f"## Choices: {group}"
        yield table(rows)


def picked(page: str, group: str, name: str) -> str:
    """What picks it on a command line."""
    if page in ("experiment", "table"):
        return f"{page}={group.removeprefix(page).strip('/')}/{name}".replace("=/", "=")
    return name


def links_of(schema: type[Any], book: Book, page: str) -> list[str]:
    """Its own keys first."""
    sections = [book.sections[cls] for cls in reversed(declaring(schema))]
    told = [section for section in sections if not section.heading.startswith("Every ")]
    return [f"[{section.heading.removeprefix('Shared: ')}]({local(section, page)})" for section in told] or ["-"]


def usages() -> Iterator[str]:
    for command in COMMANDS:
        yield f"## {command}"
        yield f"```text\n{inspect.cleandoc(str(importlib.import_module(f'kdrun.cli.{command}').__doc__))}\n```"


def pages() -> dict[Path, str]:
    book = Book()
    return {FOLDER / f"{page}.md": book.text(page) for page in PAGES}


if __name__ == "__main__":
    sys.exit(write_or_check(sys.argv[1:], pages, "scripts/reference.py"))
