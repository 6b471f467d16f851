"""pyarrow, of the extra `hf`, for whoever reads or writes Parquet."""

from typing import Any

from kdrun.core.errors import DataError


def pyarrow(asked: str) -> Any:
    """The package, its `parquet` loaded. Raises DataError, which begins with who asked, where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{asked} needs pyarrow, which is not installed: pip install 'kdrun[hf]'") from None
    return pyarrow
