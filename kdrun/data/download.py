"""Downloads of torchvision's datasets that go on where they were interrupted: <file>.part until the file is whole."""

import contextlib
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from kdrun.core.errors import DataError
from kdrun.core.progress import Meter

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
        with part.open("ab" if done else "wb") as file, Meter(part.stem, whole, "B", done) as meter:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                meter.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            got = file.tell()
    if whole is not None and got < whole:
        raise OSError(f"the connection broke off after {got:,} of {whole:,} bytes; run the same command again to go on")
    os.replace(part, filename)


def _ask(url: str, start: int) -> "urllib.request._UrlopenRet":
    headers = {"User-Agent": "kdrun"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers))


CONNECT_TIMEOUT = 20  # seconds without an answer until a server counts as out of reach


def fetch_file(url: str, path: Path, key: str) -> None:
    """Fetch one file whole, and the folders above it. DataError: it cannot be had; `key` asked for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        retrieve(url, path)
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DataError(f"{key}: {url} cannot be downloaded ({why}); put the file at {path} by hand") from None
    finally:
        socket.setdefaulttimeout(before)


def root_folder(path: str) -> Path:
    """`dataset.root` as a path. Raises DataError for the home of a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"dataset.root: {path}: no such home directory; write the path out") from None


def ensure_files(
    root: Path,
    needed: Sequence[Path],
    fetch: Callable[[], object] | None,
    source: str,
    download: bool,
    own: Path | None = None,
) -> None:
    """Make sure that `needed` (below root) exist, downloading them with `fetch` where allowed.

    Args:
        fetch: None where there is no download.
        source: what a user can put below root instead, in words.
        own: a folder that may be the user's own: once it is there, nothing is downloaded over it.

    Raises:
        DataError: absent and not to be had; says which files to put where. Then no empty folder is left behind either.
    """
    missing = [path for path in needed if not os.path.exists(path)]  # Path.exists raises where it may not look
    if not missing:
        return
    where, remedy = f"dataset.root: {missing[0]} is not there", f"put {source} below {root}"
    if fetch is None:
        raise DataError(f"{where}; {remedy}")
    if not download:
        raise DataError(f"{where}; {remedy}, or allow dataset.download")
    if own is not None and own.exists() and not _interrupted(own):
        raise DataError(f"{where}, and a download would write over {own}; {remedy}, or delete that folder first")
    inner = root if own is None else own
    made = [folder for folder in (inner, *inner.parents) if not folder.exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with resumed_downloads():
            fetch()
    except (OSError, RuntimeError, ImportError, HTTPException) as error:
        below = [Path(folder) for folder, _, _ in os.walk(inner, topdown=False)] if inner in made else []
        for folder in [*below, *made]:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DataError(f"{where} and cannot be downloaded ({why}); {remedy}") from None
    finally:
        socket.setdefaulttimeout(before)
    still = [path for path in missing if not path.exists()]
    if still:
        raise DataError(f"dataset.root: {still[0]} is still not there after the download; {remedy}")


def _interrupted(folder: Path) -> bool:
    """Whether there is nothing in a folder but what an interrupted download has left."""
    files = [name for _, _, names in os.walk(folder) for name in names]
    return bool(files) and all(name.endswith(PART) for name in files)


def verify(checks: Iterable[tuple[Path, str]]) -> None:
    """Compare md5 sums. Raises DataError for the first file that differs or cannot be read."""
    from torchvision.datasets.utils import check_integrity

    for path, md5 in checks:
        try:
            published = check_integrity(str(path), md5)
        except OSError as error:
            raise DataError(f"dataset.root: {path}: cannot be read ({error.strerror})") from None
        if not published:
            raise DataError(
                f"dataset.root: {path} is damaged or not the published file (md5 differs); "
                "delete it to download it again, or set dataset.verify_md5=false for a re-packed copy"
            )
