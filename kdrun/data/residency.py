"""Where the images of a run are kept: on the training device, or on the host, from which batches are fetched."""

import logging
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kdrun.core.slot import slot
from kdrun.data.arrays import Arrays
from kdrun.data.streamed import num_workers
from kdrun.data.types import Images
from kdrun.data.views.view import Source

log = logging.getLogger(__name__)
SHARE = 0.5  # of a device's free memory that images may take; the rest is for networks


def place(
    arrays: Arrays, device: torch.device, wanted: bool | str, workers: int | str = "auto"
) -> tuple[Source, Source]:
    """Training and test images (N, H, W, C) uint8 as tensors, on the device or on the host; or as streamed files.

    On a CPU a packed file stays mapped: the system keeps in memory what fits.

    Args:
        wanted: `dataset.resident`.
        workers: `execution.workers`.
    """
    if arrays.files is not None:
        workers = num_workers(workers)
        log.info("%d image files, decoded for each batch by %d workers", sum(map(len, arrays.files)), workers)
        train_files, test_files = (replace(files, workers=workers) for files in arrays.files)
        return train_files, test_files
    both = (arrays.train_images, arrays.test_images)
    if device.type == "cpu":
        train, test = (_tensor(np.array(images) if wanted is True else images) for images in both)
        return train, test
    size = sum(images.nbytes for images in both)
    resident = size <= SHARE * slot().share * free_memory(device) if wanted == "auto" else bool(wanted)
    log.info("%.2f GB of images: %s", size / 1e9, f"resident on {device}" if resident else "fetched from the host")
    train, test = (_tensor(images).to(device) if resident else _tensor(images) for images in both)
    return train, test


def free_memory(device: torch.device) -> int:
    """Bytes of an accelerator that are free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())


def _tensor(images: Images) -> Tensor:
    """The same memory as a tensor; nothing is copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to images
        return torch.from_numpy(images)
