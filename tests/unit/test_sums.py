"""Checksums of files, which are read again only when they may have changed, and of JSON within itself."""

import contextlib
import json
import os

import pytest

from kdrun.core import hashing
from kdrun.core.files import atomic_path, write_text
from kdrun.core.hashing import file_sha256
from kdrun.core.sums import flaws, sealed, sum_of, sums_of, unsealed
from tests.damage import DAMAGE, OTHER_SIZE, SAME_SIZE

VALUE = {
    "files": {},
    "metrics": {"a/b": 0.1 + 0.2, "c": None, "10": 1e-300, "9": 2},
    "text": "Zürich",
    "list": [1, True],
}


def test_a_sealed_object_is_read_as_it_was_in_whatever_order_and_layout():
    written = sealed(VALUE)
    assert sealed(written) == written
    again = json.loads(json.dumps(dict(reversed(written.items())), indent=3, ensure_ascii=False))
    assert unsealed(again, "files") == VALUE


def test_keys_that_are_numbers_are_sealed_as_json_writes_them():
    assert unsealed(json.loads(json.dumps(sealed({10: 1, 9: 2}))), "files") == {"10": 1, "9": 2}


@pytest.mark.parametrize("at", range(0, len(json.dumps(sealed(VALUE), ensure_ascii=False).encode()), 3))
@pytest.mark.parametrize("bit", [1, 16])
def test_a_flip_anywhere_is_seen(at, bit):
    content = bytearray(json.dumps(sealed(VALUE), ensure_ascii=False).encode())
    content[at] ^= bit
    with contextlib.suppress(ValueError):
        assert unsealed(json.loads(bytes(content)), "files") == VALUE  # a space became another one


def test_one_from_before_there_were_checksums_is_taken_as_it_is():
    assert unsealed({"a": 1}, "files") == {"a": 1}
    with pytest.raises(ValueError, match="checksum differs"):
        unsealed({"a": 1, "files": {}}, "files")  # which has lost it


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_kind_of_damage_is_seen(tmp_path, damage):
    path = tmp_path / "deep" / "file"
    write_text(path, "what was written, and is long enough\n" * 9)
    known = sums_of(tmp_path, ["deep/file"])
    assert not flaws(tmp_path, known)
    damage(path)
    [(name, flaw)] = flaws(tmp_path, known).items()
    assert name == "deep/file"
    assert bool(flaws(tmp_path, known, content=False)) == (damage in OTHER_SIZE) == (damage not in SAME_SIZE)
    assert "\n" not in flaw


def test_a_file_is_hashed_again_only_where_it_may_have_changed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(hashing, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    path = tmp_path / "file"
    path.write_bytes(b"content")
    first = sum_of(path)
    assert sum_of(path) == first
    assert len(read) == 2  # so fresh that its time may not tell
    monkeypatch.setattr(hashing, "FRESH", -1)
    assert sum_of(path) == sum_of(path) == first
    assert len(read) == 3
    before = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sum_of(path) != first


def test_temporary_files_of_dead_processes_go_when_their_target_is_written(tmp_path):
    target = tmp_path / "file [1].json"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        mine = temporary.name
    machine, pid = mine.rpartition(".tmp-")[2].split("-")[:2]
    assert int(pid) == os.getpid()
    dead, alive, elsewhere, other = (
        tmp_path / f".{name}.tmp-{who}-7"
        for name, who in (
            (target.name, f"{machine}-999999999"), (target.name, f"{machine}-1"), (target.name, "0a0a0a0a-999999999"),
            ("file 1.json", f"{machine}-999999999"),
        )
    )  # fmt: skip
    for path in (dead, alive, elsewhere, other):
        path.touch()
    write_text(target, "newer")
    assert [path.exists() for path in (dead, alive, elsewhere, other)] == [False, True, True, True]
