"""Downloads of torchvision's datasets that go on where they were interrupted: <file>.part until the file is whole."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PART = ".part"
CHUNK = 1 << 20  # bytes


@contextlib.contextmanager
def resumed_downloads() -> Iterator[None]:
    """Within it torchvision fetches files by `retrieve`; hashes are checked by torchvision, as ever."""
    from torchvision.datasets import utils

    plain = utils._urlretrieve
    utils._urlretrieve = retrieve
    try:
        yield
    finally:
        utils._urlretrieve = plain


def retrieve(url: str, filename: str | Path, *_: object) -> None:
    """Fetch a file whole, from where an earlier call broke off if the server can.

    Raises:
        OSError: no answer, or the connection broke off; what has come is kept.
    """
    from tqdm import tqdm

    part = Path(f"{filename}{PART}")
    done = part.stat().st_size if part.is_file() else 0
    try:
        response = _ask(url, done)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:  # 416: there is nothing beyond what has come, or the file is another by now
            raise
        done, response = 0, _ask(url, 0)
    with response:
        done = done if getattr(response, "status", None) == 206 else 0
        left = response.length
        whole = None if left is None else done + left
        with (
            part.open("ab" if done else "wb") as file,
            tqdm(total=whole, initial=done, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            got = file.tell()
    if whole is not None and got < whole:
        raise OSError(f"the connection broke off after {got:,} of {whole:,} bytes; run the same command again to go on")
    os.replace(part, filename)


def _ask(url: str, start: int) -> "urllib.request._UrlopenRet":
    headers = {"User-Agent": "kdrun"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers))
