"""Which runs are meant: words `<key of the configuration>=<value>`, such as `method.name=distill`.

A group counts by what it chose, `method=distill`, `loss=kd`; `seed=[0,1]` is any of these values.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from kdrun.config.names import telling_terms
from kdrun.config.values import leaves
from kdrun.core.errors import ConfigError, allowed
from kdrun.runs.record import Record


class Filters:
    """Runs that have all of these values.

    Args:
        wanted: key -> what it is to be, as text and as YAML has it: `null`, `true`, numbers, a list of any of these.
    """

    def __init__(self, wanted: dict[str, tuple[str, Any]]) -> None:
        self.wanted = wanted
        self._known: set[str] = set()
        """Keys of the runs that were asked about."""
        self._values: dict[str, set[str]] = {key: set() for key in wanted}
        """Key that is wanted -> what these runs have."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Raises ConfigError: a key is given twice, or a word has no value."""
        import yaml

        wanted: dict[str, tuple[str, Any]] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not (key and equals):
                raise ConfigError(f"{word}: write <key>=<value>, such as loss=kd; several values as seed=[0,1]")
            if key in wanted:
                raise ConfigError(f"{key}: given twice, {wanted[key][0]} and {text}; leave one out")
            try:
                wanted[key] = text, yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError):
                wanted[key] = text, text  # it is a value as it stands
        return cls(wanted)

    @classmethod
    def where(cls, given: Sequence[str]) -> Self:
        """Of `where=[method.name=distill,dataset.name=digits]`, which may be given several times."""
        try:
            return cls.of([word for text in given for word in words_of(text)])
        except ConfigError as error:
            raise ConfigError(*(f"where: {line}" for line in error.lines)) from None

    def take(self, record: Record) -> bool:
        """Whether it has them all."""
        if not self.wanted:
            return True
        flat = _asked(record["config"])
        self._known |= flat.keys()
        for key in self.wanted.keys() & flat.keys():
            self._values[key].add(str(flat[key]))
        return all(_is(flat.get(key), text, value) for key, (text, value) in self.wanted.items())

    def refuse_unknown(self, key_before: str = "", also: Iterable[str] = ()) -> None:
        """Raises ConfigError for a key that none of the runs has which were asked about.

        Args:
            key_before: what the line begins with.
            also: further keys that are allowed there.
        """
        for key in self.wanted:
            if self._known and key not in self._known:
                below = [name for name in self._known if name.startswith(f"{key}.")]
                if below:
                    raise ConfigError(f"{key_before}{key}: stands for several keys; ask for one{allowed(key, below)}")
                raise ConfigError(f"{key_before}{key}: no run has this key{allowed(key, (*self._known, *also))}")

    @property
    def lacking(self) -> str:
        """`; loss: none is kdd; nearest: kd (allowed: ce, kd)` of a value that no run has; "": there is none."""
        for key, (text, value) in self.wanted.items():
            found = self._values[key]
            if found and not any(_is(one, text, value) for one in found):
                return f"; {key}: none is {text}{allowed(text, found)}"
        return ""

    def __str__(self) -> str:
        return ", ".join(f"{key}={text}" for key, (text, _) in self.wanted.items())


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, and what groups chose: `method`, `loss` (`ce` where it is alone), `student`, `teacher`."""
    flat = dict(leaves(config))
    chosen = {group: node["name"] for group, node in config.items() if isinstance(node, dict) and "name" in node}
    chosen["loss"] = "+".join(telling_terms(config.get("loss") or {}))
    students, teacher = config.get("students") or [], config.get("teacher") or {}
    if len(students) == 1:  # as the words of a command line have it
        flat |= {f"student.{key}": value for key, value in leaves(students[0])}
        chosen["student"] = students[0].get("name")
    model = teacher.get("model")
    chosen["teacher"] = model.get("name") if isinstance(model, dict) else teacher.get("source")
    return flat | {key: value for key, value in chosen.items() if value}


def _is(value: Any, text: str, wanted: Any) -> bool:
    """Whether it is what was given, or one of a list."""
    among = wanted if isinstance(wanted, list) else [wanted]
    return str(value) == text or value in among or str(value) in map(str, among)


def words_of(text: str) -> list[str]:
    """What stands between commas, but for those inside brackets or quotes."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    words, depth, quote = [""], 0, ""
    for sign in inner:
        quote = "" if sign == quote else quote or (sign if sign in "'\"" else "")
        depth += 0 if quote else (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += sign
    return [word.strip() for word in words if word.strip()]
