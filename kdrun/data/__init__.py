"""Datasets, splits, views and streams."""
