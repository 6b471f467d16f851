"""A trained student as a file for others."""

SPEC = "kdrun.json"
"""The JSON of a folder; that of a file is <file>.json."""
