"""The lock between real processes: waiting, dead owners, owners elsewhere, races, loss."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import kdrun
from kdrun.core import lock as lock_module
from kdrun.core.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
import kdrun.core.lock as module
module.PATIENCE = 0
for item in sys.argv[2:]:
    name, value = item.split("=")
    setattr(module, name, float(value))
with module.Lock(Path(sys.argv[1])) as lock:
    print("in", flush=True)
    sys.stdin.readline()
    deadline = time.monotonic() + module.PATIENCE
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    print("lost" if lock.lost else "kept", flush=True)
print("out", flush=True)
"""

RACE = """
import os, sys, time
from pathlib import Path
import kdrun.core.lock as module
module.POLL = 0.005
path, journal, go = map(Path, sys.argv[1:4])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
for _ in range(3):
    with module.Lock(path):
        with journal.open("a") as file:
            file.write(f"{os.getpid()} in\\n")
        time.sleep(0.004)
        with journal.open("a") as file:
            file.write(f"{os.getpid()} out\\n")
"""

ELSEWHERE = {"host": "elsewhere", "pid": os.getpid(), "boot_id": "other", "token": "00"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "one.lock"


def says(process):
    return process.stdout.readline().strip()


def release(process):
    process.stdin.write("\n")
    process.stdin.flush()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def dead_owner(start, path):
    owner = start(HOLD, path)
    assert says(owner) == "in"
    kill(owner)
    assert path.exists()


def eventually(condition):
    deadline = time.monotonic() + 3
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def acquired_by(thread_lock):
    """An event that is set when `thread_lock` is held; the holder lets go on the second event."""
    held, leave = threading.Event(), threading.Event()

    def hold():
        with thread_lock:
            held.set()
            leave.wait(10)

    threading.Thread(target=hold, daemon=True).start()
    return held, leave


def test_second_process_waits_for_the_first(start, path):
    first = start(HOLD, path, "POLL=0.02")
    assert says(first) == "in"
    second = start(HOLD, path, "POLL=0.02")
    seen = []
    reader = threading.Thread(target=lambda: seen.append(says(second)))
    reader.start()
    reader.join(0.6)
    assert seen == []
    release(first)
    reader.join(5)
    assert seen == ["in"]
    assert [says(first), says(first)] == ["kept", "out"]
    release(second)
    assert [says(second), says(second)] == ["kept", "out"]
    assert list(path.parent.iterdir()) == []


def test_two_locks_of_one_process_exclude_each_other(path, monkeypatch):
    monkeypatch.setattr(lock_module, "POLL", 0.01)
    with Lock(path):
        held, leave = acquired_by(Lock(path))
        assert not held.wait(0.2)
    assert held.wait(2)
    leave.set()


def test_killed_owner_is_replaced_at_once(start, path):
    dead_owner(start, path)
    started = time.monotonic()
    with Lock(path) as taken:
        assert json.loads(path.read_text()) == taken.owner
    assert time.monotonic() - started < 2
    assert list(path.parent.iterdir()) == []


def test_owner_elsewhere_is_replaced_only_when_its_heartbeat_stops(path, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 0.8)
    monkeypatch.setattr(lock_module, "POLL", 0.02)
    path.parent.mkdir()
    path.write_text(json.dumps(ELSEWHERE))
    held, leave = acquired_by(Lock(path))
    for beat in range(12):
        os.utime(path, (1000 + beat, 1000 + beat))  # a clock far behind ours
        assert not held.wait(0.1)
    stopped = time.monotonic()
    assert held.wait(3)
    assert time.monotonic() - stopped > 0.5
    leave.set()


def test_dead_process_id_counts_on_its_own_machine_only(start, path, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 0.4)
    monkeypatch.setattr(lock_module, "POLL", 0.02)
    dead_owner(start, path)
    owner = json.loads(path.read_text())
    for change in ({"host": "elsewhere"}, {"boot_id": "other"}):
        path.write_text(json.dumps({**owner, **change}))
        started = time.monotonic()
        with Lock(path):
            assert time.monotonic() - started > 0.35


def test_heartbeat_keeps_other_machines_out_until_the_owner_dies(start, path, monkeypatch):
    owner = start(HOLD, path, "HEARTBEAT=0.05")
    assert says(owner) == "in"
    monkeypatch.setattr(lock_module, "STALE", 0.8)
    monkeypatch.setattr(lock_module, "POLL", 0.02)
    monkeypatch.setattr(lock_module.socket, "gethostname", lambda: "elsewhere")
    held, leave = acquired_by(Lock(path))
    assert not held.wait(1.2)
    kill(owner)
    assert held.wait(3)
    leave.set()


@pytest.mark.parametrize("function", ["os.utime", "pathlib.Path.read_text"])
def test_heartbeat_survives_a_hiccup_of_the_file_system(path, monkeypatch, function):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.02)
    with Lock(path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(function, lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "input/output error")))
            time.sleep(0.1)
        before = path.stat().st_mtime_ns
        assert eventually(lambda: path.stat().st_mtime_ns > before)
        assert not lock.lost


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_damaged_lock_file_is_replaced_after_a_while(path, monkeypatch, content):
    monkeypatch.setattr(lock_module, "STALE", 0.3)
    monkeypatch.setattr(lock_module, "POLL", 0.02)
    path.parent.mkdir()
    path.write_text(content)
    started = time.monotonic()
    with Lock(path) as taken:
        assert time.monotonic() - started > 0.25
        assert json.loads(path.read_text()) == taken.owner


def test_waiter_that_comes_late_does_not_replace_the_one_who_took_over(path, monkeypatch):
    monkeypatch.setattr(lock_module, "POLL", 0.01)
    path.parent.mkdir()
    path.write_text(json.dumps(ELSEWHERE))
    waiter, winner = Lock(path), path.with_name("winner")
    winner.write_text(json.dumps({**ELSEWHERE, "token": "01"}))

    def dead(other, silent):
        if other["token"] == "00":
            os.replace(winner, path)
        return other["token"] == "00"

    monkeypatch.setattr(waiter, "_dead", dead)
    held, leave = acquired_by(waiter)
    assert not held.wait(0.3)
    assert json.loads(path.read_text())["token"] == "01"
    path.unlink()
    assert held.wait(3)
    leave.set()


def test_a_suspended_owner_of_this_machine_is_not_replaced(path, monkeypatch):
    monkeypatch.setattr(lock_module, "POLL", 0.01)
    monkeypatch.setattr(lock_module, "STALE", 0.05)
    with Lock(path) as owner:
        owner._stop.set()  # no more heartbeats
        held, leave = acquired_by(Lock(path))
        assert not held.wait(0.5)
        assert not owner.lost
    assert held.wait(3)
    leave.set()


def test_a_process_number_given_to_another_process_is_a_dead_owner(path, monkeypatch):
    monkeypatch.setattr(lock_module, "POLL", 0.01)
    path.parent.mkdir()
    path.write_text(json.dumps({**Lock(path).owner, "token": "00", "started": "1"}))
    with Lock(path) as lock:
        assert not lock.lost


@pytest.mark.parametrize("dead", [True, False], ids=["over a dead lock", "over no lock"])
def test_one_of_many_racing_processes_holds_the_lock(start, path, tmp_path, dead):
    if dead:
        dead_owner(start, path)
    journal, go = tmp_path / "journal", tmp_path / "go"
    racers = [start(RACE, path, journal, go) for _ in range(8)]
    assert [says(racer) for racer in racers] == ["ready"] * 8
    go.touch()
    assert [racer.wait(20) for racer in racers] == [0] * 8
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert len(lines) == 2 * 3 * 8
    for (first, entered), (second, left) in zip(lines[::2], lines[1::2], strict=True):
        assert (first, entered, left) == (second, "in", "out")
    assert list(path.parent.iterdir()) == []


def test_suspended_owner_notices_that_its_lock_was_taken(start, path, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 0.4)
    monkeypatch.setattr(lock_module, "POLL", 0.02)
    monkeypatch.setattr(lock_module.socket, "gethostname", lambda: "elsewhere")
    owner = start(HOLD, path, "HEARTBEAT=0.05", "PATIENCE=5")
    assert says(owner) == "in"
    owner.send_signal(signal.SIGSTOP)
    with Lock(path) as taken:
        owner.send_signal(signal.SIGCONT)
        release(owner)
        assert [says(owner), says(owner)] == ["lost", "out"]
        assert json.loads(path.read_text()) == taken.owner
    assert not path.exists()


def test_owner_notices_that_its_lock_is_gone(path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.02)
    with Lock(path) as lock:
        time.sleep(0.1)
        assert not lock.lost
        path.unlink()
        assert eventually(lambda: lock.lost)


def test_lock_is_released_after_an_error(path):
    with pytest.raises(ValueError, match="inside"), Lock(path):
        raise ValueError("inside")
    assert list(path.parent.iterdir()) == []


def test_module_is_light():
    script = "import sys, kdrun.core.lock; print(sorted({'torch', 'timm', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    root = str(Path(kdrun.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
