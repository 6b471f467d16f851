"""The failures that a light module may raise: those of `kdrun.core.errors` for a configuration load Hydra."""


class KdrunError(Exception):
    """A failure with a message for the user; shown without a traceback."""


class LockLost(KdrunError):
    """Another process took a run over while this one stood still; this one must not write any more."""


class Held(KdrunError):
    """Another process is at work on it, and it was not to be waited for."""
