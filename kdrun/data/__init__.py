"""Datasets, splits, views and streams."""

from kdrun.data import digits, npz  # noqa: F401  (each registers its dataset)
