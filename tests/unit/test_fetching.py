"""Downloads that were interrupted go on, from a real server that breaks off."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from torchvision.datasets import utils

from kdrun.core.errors import DataError
from kdrun.data.download import ensure_files, resumed_downloads, retrieve

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Sends `most` bytes of each answer and breaks off; with `ranges` it starts where it is asked to."""

    most, ranges = len(CONTENT), True
    asked: ClassVar[list] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.most])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    class Own(Server):
        asked: ClassVar[list] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        Own.url = f"http://127.0.0.1:{http.server_port}/archive.bin"
        yield Own
        http.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_where_it_broke_off(server, tmp_path, ranges):
    server.ranges, server.most = ranges, 100_000
    place = tmp_path / "archive.bin"
    with pytest.raises(OSError, match=r"broke off after 100,000 of 300,000 bytes; run the same command again to go on"):
        retrieve(server.url, place)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.bin.part"]
    server.most = len(CONTENT)
    retrieve(server.url, place)
    assert server.asked == [None, "bytes=100000-"]
    assert place.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["archive.bin"]


def test_a_part_that_the_server_does_not_know_is_fetched_anew(server, tmp_path):
    (tmp_path / "archive.bin.part").write_bytes(bytes(len(CONTENT)))
    retrieve(server.url, tmp_path / "archive.bin")
    assert (tmp_path / "archive.bin").read_bytes() == CONTENT


def test_torchvision_s_own_downloads_go_on_and_check_the_hash(server, tmp_path):
    folder = tmp_path / "data" / "own"

    def fetch(md5=MD5):
        utils.download_url(server.url, str(folder), "archive.bin", md5)

    plain, needed = utils._urlretrieve, folder / "archive.bin"
    server.most = 50_000
    for _ in range(2):  # the second time the folder is there, and nobody takes it for the user's
        with pytest.raises(
            DataError, match=r"cannot be downloaded \(the connection broke off after [15]0*,000 of 300,000"
        ):
            ensure_files(tmp_path / "data", [needed], fetch, "it", True, own=folder)
    assert [path.name for path in folder.iterdir()] == ["archive.bin.part"]
    server.most = len(CONTENT)
    ensure_files(tmp_path / "data", [needed], fetch, "it", True, own=folder)
    assert needed.read_bytes() == CONTENT
    needed.unlink()
    with resumed_downloads(), pytest.raises(RuntimeError, match="corrupted"):
        fetch("0" * 32)
    assert utils._urlretrieve is plain
