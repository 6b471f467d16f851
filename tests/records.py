"""Records that are whole, written by hand."""

from typing import Any


def whole(key: str = "0123456789ab", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The least that a record.json is, with changes; a field that is `...` is left out."""
    record: dict[str, Any] = {
        "schema": 1, "status": "done", "key": key, "seed": seed, "dataset": "digits", "num_labels": 20,
        "method": "distill", "headline": "student", "metrics": {}, "nets": {}, "requires": {},
        "config": {"method": {"name": "distill"}, "dataset": {"name": "digits"}},
    }  # fmt: skip
    return {name: value for name, value in {**record, **changes}.items() if value is not ...}
