"""One law for many things, in one test: all are looked at, and those that break it are named."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each(argument: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`@each("name", NAMES)`: the test runs for every value, and fails with the errors of all that failed."""
    values = list(values)

    def decorated(law: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(law)
        def test(*own: Any, **fixtures: Any) -> None:
            assert values
            errors = []
            for value in values:
                try:
                    law(*own, **{argument: value}, **fixtures)
                except Exception as error:
                    error.add_note(f"{argument}={value}")
                    errors.append(error)
            if errors:
                broken = "; ".join(f"{error.__notes__[-1]}: {error}".splitlines()[0] for error in errors)
                raise ExceptionGroup(broken, errors)

        signature = inspect.signature(law)
        kept = [parameter for name, parameter in signature.parameters.items() if name != argument]
        test.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return test

    return decorated
