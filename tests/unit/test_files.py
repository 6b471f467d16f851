"""Files written whole or not at all, and the log of metrics."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdrun
from kdrun.core.files import atomic_path, write_bytes, write_json, write_text
from kdrun.runs.metrics_log import MetricsLog

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from kdrun.core.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write_bytes(Path(sys.argv[1]), b"n" * 100_000)
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("old", [b"old content", None], ids=["replacing", "new"])
def test_write_that_fails_in_the_middle_changes_nothing(tmp_path, old):
    target = tmp_path / "record.json"
    if old is not None:
        target.write_bytes(old)
    root = str(Path(kdrun.__file__).parents[1])
    command = [sys.executable, "-c", FULL_DISK, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split()[0] == "OSError"
    assert names(tmp_path) == (["record.json"] if old is not None else [])
    assert old is None or target.read_bytes() == old


def test_old_content_is_there_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("ne")
        assert target.read_text() == "old"
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_error_in_the_writer_keeps_the_old_file(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_bytes(tmp_path / "a", b"content")
    assert calls[:2] == ["fsync", "replace"]


def test_directories_are_made(tmp_path):
    write_text(tmp_path / "deep" / "er" / "a.txt", "τ = 0.95\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "τ = 0.95\n".encode()


def test_json_round_trip(tmp_path):
    value = {"name": "Zürich", "values": [1, 0.1, None, True], "empty": {}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text.endswith("}\n")


def test_json_without_nan_or_the_old_file_stays(tmp_path):
    write_json(tmp_path / "a.json", {"top1": 0.5})
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", {"top1": bad})
    assert json.loads((tmp_path / "a.json").read_text()) == {"top1": 0.5}
    assert names(tmp_path) == ["a.json"]


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    for step in (10, 20, 20, 30):
        log.write(step, {"loss": step / 10})
    return log


def steps(log):
    return [json.loads(line)["step"] for line in log.path.read_text().splitlines()]


@pytest.mark.parametrize(("cut", "kept"), [(30, [10, 20, 20, 30]), (29, [10, 20, 20]), (20, [10, 20, 20]), (-1, [])])
def test_cut_drops_the_lines_after_a_step(log, cut, kept):
    log.cut(cut)
    assert steps(log) == kept
    assert [line["step"] for line in log.lines()] == kept
    assert log.path.read_text().count("\n") == len(kept)


@pytest.mark.parametrize("torn", ['{"step": 40, "lo', '{"step": 4', "{", "\0\0\0\0"])
def test_cut_drops_a_torn_last_line(log, torn):
    with log.path.open("a") as file:
        file.write(torn)
    assert [line["step"] for line in log.lines()] == [10, 20, 20, 30]
    log.cut(1000)
    log.write(50, {"loss": 5.0})
    assert steps(log) == [10, 20, 20, 30, 50]


def test_last_line_that_lacks_only_its_end_is_kept_whole(log):
    log.path.write_text(log.path.read_text().rstrip("\n"))
    log.cut(1000)
    log.write(40, {})
    assert steps(log) == [10, 20, 20, 30, 40]


def test_kept_lines_keep_their_numbers(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    values = {"train/loss/ce": 0.1 + 0.2, "train/lr": 1e-300, "test/student/top1": 1.0}
    log.write(1, values)
    log.cut(1)
    assert log.lines() == [{"step": 1, **values}]


def test_values_that_json_lacks_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"a": math.nan, "b": math.inf, "c": 2.0})
    assert log.lines() == [{"step": 1, "a": None, "b": None, "c": 2.0}]


def test_cut_of_a_log_that_is_not_there(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.cut(-1)
    assert log.lines() == []
    log.write(1, {"a": 1.0})
    assert steps(log) == [1]
