"""Quantities as people read them."""


def duration(seconds: float | None) -> str:
    """Seconds with a unit that suits them; None: not known."""
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def readable(size: float) -> str:
    """Bytes with a unit."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
