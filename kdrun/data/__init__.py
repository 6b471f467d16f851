"""Datasets, splits, views and streams."""

from kdrun.data import cifar, digits, folders, hf, npz, published, svhn  # noqa: F401  (each registers its datasets)
