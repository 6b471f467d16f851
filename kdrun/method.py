"""For plug-ins of before 0.2: `from kdrun import Method, Step, ...` is the way now."""

from kdrun import Context, Guesses, Method, Setup, Step, Teacher  # noqa: F401
