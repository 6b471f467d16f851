"""For plug-ins of before 0.2: `from kdrun import register` is the way now."""

from kdrun import register  # noqa: F401
