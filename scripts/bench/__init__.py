"""Speed: one file for each benchmark, or for a few that belong together; see `__main__`."""
