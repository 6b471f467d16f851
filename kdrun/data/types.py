"""Images and labels as arrays."""

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # (N, H, W, C)
Labels = npt.NDArray[np.int64]  # (N,)


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
    counts = np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))
    return tuple(round(float(m), 6) for m in mean), tuple(round(max(float(s), 1e-3), 6) for s in std)
