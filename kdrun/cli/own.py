"""`--config-dir DIR` for commands that take tables: a user's own configs beside those of conf/."""

from collections.abc import Callable, Sequence
from functools import wraps

from kdrun.config.compose import existing
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_FLAG, with_conf


def own_conf(main: Callable[[Sequence[str]], str]) -> Callable[[Sequence[str]], str]:
    """`main` without the flag among its arguments: while it runs, tables and configs are looked for there too."""

    @wraps(main)
    def with_folder(arguments: Sequence[str]) -> str:
        words, given = list(arguments), None
        for k, word in enumerate(arguments):
            if word == CONF_FLAG or word.startswith(f"{CONF_FLAG}="):
                _, equals, given = word.partition("=")
                if not equals and k + 1 == len(arguments):
                    raise ConfigError(f"{CONF_FLAG}: give a folder of your own configs")
                given = given if equals else arguments[k + 1]
                words = [*arguments[:k], *arguments[k + (1 if equals else 2) :]]
                break
        if given is None:
            return main(words)
        with with_conf(existing(given)):
            return main(words)

    return with_folder
