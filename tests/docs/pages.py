"""README and docs as tests read them: fenced blocks, links, headings, and the commands of `sh` blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in page.parts),
]
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
"""The first line of a block that is a file."""
ENDS = {"&&", "||", ";", "&", "|"}
"""Between two commands of a line."""


def told(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page where the text begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is; None: it is none."""
        match = FILE.match(self.text) if self.language in ("python", "yaml") else None
        return match[1] if match else None


@dataclass(frozen=True)
class Command:
    """The words of one command, without what sets its environment, and where it stands."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{told(self.page)}:{self.line}: {shlex.join(self.words)}"


@cache
def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(text: str) -> list[Block]:
    found = [token for token in tokens(text) if token.type == "fence"]
    return [Block((token.info.split() or [""])[0], token.content, (token.map or [0])[0] + 2) for token in found]


def files(text: str) -> dict[str, str]:
    """Path -> content of the blocks that begin with `# <path>`."""
    return {block.file: block.text for block in blocks(text) if block.file}


def in_package(text: str) -> dict[str, str]:
    """Those of the package and of conf/, which tests/e2e/test_extend.py puts there."""
    return {name: content for name, content in files(text).items() if name.startswith(("kdrun/", "conf/"))}


def links(text: str) -> Iterator[str]:
    """Targets of links and pictures, as they are written."""
    for token in tokens(text):
        for part in token.children or ():
            target = part.attrs.get("href") or part.attrs.get("src")
            if target:
                yield str(target)


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub and the site name them."""
    heads = [after for before, after in pairwise(tokens(text)) if before.type == "heading_open"]
    plain = ["".join(part.content for part in head.children or ()) for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in plain}


def commands(page: Path) -> list[Command]:
    """In the order of the page."""
    return [Command(page, line, words) for line, words in commands_in(page.read_text("utf-8"))]


def commands_in(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and words of the commands of `sh` blocks."""
    for block in blocks(text):
        line = block.line
        for row in re.split(r"(?<!\\)\n", block.text) if block.language == "sh" else ():
            yield from ((line, words) for words in split(row.replace("\\\n", " ")))
            line += row.count("\n") + 1


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of a shell, without redirections, loops and settings of the environment."""
    plain = re.sub(r"\$\(\([^)]*\)\)|\$\([^)]*\)", "0", line)
    words: list[str] = []
    for word in [*shlex.split(plain, comments=True), ";"]:
        if word not in ENDS:
            words.append(word.removesuffix(";"))
        if word in ENDS or word.endswith(";"):
            while words and (words[0] in ("do", "time", "sudo") or re.match(r"[A-Z_]+=", words[0])):
                words = words[1:]
            if words:
                yield tuple(words)
            words = []
