"""What the comments of the YAML files that a run picks say of it: where it deviates from its paper, what is ours.

`# deviates: ...` goes on in lines that begin with `#` and two spaces. What is ours is a value whose comment says
`proposed` or `ours`, or such a sentence among the comments above the first key.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from kdrun.config.resolvers import set_of_terms
from kdrun.core.paths import in_conf

DEVIATES = "deviates: "
MARK = re.compile(r"\b([Pp]roposed|[Pp]roposals?|[Oo]urs)\b")
COMMAND = re.compile(r"\bpython |^#   .*[\w/]=\S")
COMMAND_LINE = re.compile(r"# +(python|kdrun) ")
POINTER = re.compile(r"\bis marked\b")  # at the marks that stand beside the keys
SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z])")
KEY = re.compile(r"(?P<indent> *)(?P<key>[\w/@-]+):(?P<rest>(?:\s.*)?)$")
Picked = tuple[Path, str]
"""A YAML file and the package that its content goes to."""


def deviations_in(path: Path) -> list[str]:
    """The text behind each `# deviates:` of a YAML file."""
    return [text for deviates, text in _comments(path) if deviates]


def ours_in(picked: Sequence[Picked], composed: DictConfig) -> list[str]:
    """What is ours in these files and still as they have it in the composed configuration."""
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    terms = set_of_terms(composed)
    out = []
    for path, package in picked:
        text = path.read_text("utf-8") if path.is_file() else ""
        if MARK.search(text) is None:
            continue
        for deviates, comment in _comments(path):
            told = [part for part in SENTENCE.split(comment) if MARK.search(part) and not POINTER.search(part)]
            out += [] if deviates else [f"{in_conf(path)}: {part}" for part in told]
        content = _content(text)
        for keys, comment in _marked(text):
            whole = [*(package.split(".") if package else []), *keys]
            own, used = _at(content, keys), _at(plain, whole)
            if own is ... or own != used or (whole[0] == "coefficients" and whole[1:2] not in ([], [terms])):
                continue
            value = OmegaConf.select(composed, ".".join(whole)) if len(keys) else own
            shown = "" if isinstance(own, dict | list) else f" = {value}"
            out.append(f"{'.'.join(whole)}{shown} ({comment})")
    return list(dict.fromkeys(out))


@lru_cache(maxsize=256)
def _content(text: str) -> Any:
    return yaml.safe_load(text)


def _comments(path: Path) -> Iterator[tuple[bool, str]]:
    """(whether it is a deviation, text) of the comments that stand on lines of their own; commands are left out."""
    plain: list[str] = []
    note: list[str] | None = None
    for line in [*(path.read_text("utf-8").splitlines() if path.is_file() else []), ""]:
        comment = line.startswith("#")
        before, found, text = line.partition(DEVIATES)
        goes_on = note is not None and line.startswith("#   ") and not COMMAND_LINE.match(line)
        if note is not None and (found or not goes_on):
            yield True, " ".join(note)
            note = None
        if comment and found:
            plain += [before.lstrip("#").strip()]
            note = [text.strip()]
        elif goes_on and note is not None:
            note.append(line[1:].strip())
        elif comment and not line.startswith("# @package") and not COMMAND.search(line):
            plain.append(line[1:].strip())
        elif plain:
            yield False, " ".join(filter(None, plain))
            plain = []


def _marked(text: str) -> Iterator[tuple[list[str], str]]:
    """(key with those above it, comment) of the lines whose comment says that the value is ours."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        body, _, comment = line.partition(" #")
        match = KEY.match(body)
        if match is None or body.lstrip().startswith("#"):
            continue
        indent = len(match["indent"])
        above = [(depth, key) for depth, key in above if depth < indent] + [(indent, match["key"])]
        if MARK.search(comment):
            yield [key for _, key in above], " ".join(comment.strip("# ").split())


def _at(node: Any, keys: Sequence[str]) -> Any:
    """... where there is nothing."""
    for key in keys:
        node = node.get(key, ...) if isinstance(node, dict) else ...
    return node
