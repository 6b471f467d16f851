"""Trackers: where else a run is shown. One registered class a file; `kdrun.training.tracking` tells them."""
