"""What a command of a page finds where it is run: its page's own files, tiny photos, runs of earlier commands."""

import contextlib
import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdrun.cli.command import main

CLASSES, IMAGES, SIDES = ("cat", "dog", "owl"), 8, (14, 12)


def printed(words: Sequence[str]) -> str:
    """What `kdrun <words>` prints. Raises AssertionError: its exit code is not 0; with its last lines."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(list(words))
    text = out.getvalue()
    lines = " / ".join(text.splitlines()[-3:])
    assert code == 0, f"exit code {code} of kdrun {shlex.join(words)}: {lines}"
    return text


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(path: Path) -> None:
    """A folder of classes, a list or arrays, by the ending, of 24 tiny images; nothing where there is one already."""
    if path.exists():
        return
    draws = np.random.default_rng(0).integers(0, 256, (len(CLASSES), IMAGES, *SIDES, 3), np.uint8)
    if path.suffix == ".npz":
        flat, labels = draws.reshape(-1, *SIDES, 3), np.repeat(range(len(CLASSES)), IMAGES)
        np.savez(path, train_images=flat, train_labels=labels, test_images=flat, test_labels=labels)
        return
    folder = path.parent / "listed" if path.suffix else path
    rows = ["path,label"]
    for name, images in zip(CLASSES, draws, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
            rows.append(f"{os.path.relpath(folder / name / f'{k}.png', path.parent)},{name}")
    if path.suffix:
        path.write_text("\n".join(rows) + "\n")
