"""Which runs are meant: words `<key of the configuration>=<value>`, such as `method.name=distill`."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

from kdrun.config.values import leaves
from kdrun.core.errors import ConfigError, allowed
from kdrun.runs.record import Record


class Filters:
    """Runs that have all of these values.

    Args:
        wanted: key -> what it is to be, as text and as YAML has it: `null`, `true`, numbers.
    """

    def __init__(self, wanted: dict[str, tuple[str, Any]]) -> None:
        self.wanted = wanted
        self._known: set[str] = set()
        """Keys of the runs that were asked about."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Raises ConfigError: a key is given twice, or a word has no value."""
        import yaml

        wanted: dict[str, tuple[str, Any]] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not (key and equals):
                raise ConfigError(f"{word}: write <key>=<value>, such as method.name=distill")
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
            return cls.of([word for text in given for word in _words(text)])
        except ConfigError as error:
            raise ConfigError(*(f"where: {line}" for line in error.lines)) from None

    def take(self, record: Record) -> bool:
        """Whether it has them all."""
        if not self.wanted:
            return True
        flat = dict(leaves(record["config"]))
        self._known |= flat.keys()
        return all(str(flat.get(key)) == text or flat.get(key) == value for key, (text, value) in self.wanted.items())

    def refuse_unknown(self, key_before: str = "", also: Iterable[str] = ()) -> None:
        """Raises ConfigError for a key that none of the runs has which were asked about.

        Args:
            key_before: what the line begins with.
            also: further keys that are allowed there.
        """
        for key in self.wanted:
            if self._known and key not in self._known:
                raise ConfigError(f"{key_before}{key}: no run has this key{allowed(key, (*self._known, *also))}")

    def __str__(self) -> str:
        return ", ".join(f"{key}={text}" for key, (text, _) in self.wanted.items())


def _words(text: str) -> list[str]:
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
