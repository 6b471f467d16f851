"""Engines: where the runs of a sweep are made. One registered class a file."""
