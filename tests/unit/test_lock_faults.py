"""Locks where owners die badly and file systems lack, lose or refuse something; and all orders of two take-overs."""

import errno
import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from kdrun.core import lock as lock_module
from kdrun.core.errors import KdrunError
from kdrun.core.lock import Lock, held

DEAD = {"host": "elsewhere", "pid": 1, "boot_id": "other", "token": "0123456789abcdef"}

HOLD = """
import sys
from pathlib import Path
from kdrun.core.lock import Lock
with Lock(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.readline()
"""

LEADERLESS = """
import ctypes, sys, threading
from pathlib import Path
from kdrun.core.lock import Lock
Lock(Path(sys.argv[1])).__enter__()
threading.Thread(target=lambda: (print("in", flush=True), sys.stdin.readline())).start()
ctypes.CDLL(None).pthread_exit(None)
"""

WORK = """
import errno, os, sys, time
from pathlib import Path
import kdrun.core.lock as module
module.POLL, module.STALE = 0.005, 0.5
path, journal, until, linked = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
if linked == "no links":
    def link(*_):
        raise OSError(errno.EPERM, "no links")
    os.link = link

def note(what):
    with journal.open("a") as file:
        file.write(f"{os.getpid()} {what}\\n")

while time.time() < until:
    with module.Lock(path):
        note("in")
        time.sleep(0.003)
        note("out")
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "one.lock"


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock_module, "POLL", 0.01)
    monkeypatch.setattr(lock_module, "STALE", 0.3)


def failing(number, after=None):
    """A function that fails as the system does; what it was to do is done before, where an answer is lost."""

    def function(*arguments):
        if after is not None:
            after(*arguments)
        raise OSError(number, os.strerror(number))

    return function


def taken_and_left(path):
    """Seconds that it took to get the lock; nothing is left of it."""
    started = time.monotonic()
    with Lock(path) as lock:
        seconds = time.monotonic() - started
        assert json.loads(path.read_text()) == lock.owner
        assert os.listdir(path.parent) == [path.name]
    assert os.listdir(path.parent) == []
    return seconds


# ------------------------------------------------------------------------------------------------------ dead owners


def test_a_zombie_is_dead(start, path):
    owner = start(HOLD, path)
    assert owner.stdout.readline() == "in\n"
    owner.send_signal(signal.SIGKILL)  # nobody asks for its exit code
    while Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert taken_and_left(path) < 2


def test_a_process_whose_first_thread_has_ended_lives_while_another_works(start, path, fast):
    owner = start(LEADERLESS, path)
    assert owner.stdout.readline() == "in\n"
    while Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert held(path)
    owner.send_signal(signal.SIGKILL)
    assert taken_and_left(path) < 2


def test_the_number_of_a_dead_owner_that_another_user_has_now(path, monkeypatch):
    path.write_text(json.dumps({**Lock(path).owner, "token": "0" * 16, "started": "1"}))
    monkeypatch.setattr(os, "kill", failing(errno.EPERM))
    taken_and_left(path)


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, 1 << 70, "x", None, True])
def test_a_process_number_that_is_none(path, fast, pid):
    path.write_text(json.dumps({**Lock(path).owner, "token": "0" * 16, "pid": pid}))
    assert taken_and_left(path) < 2


@pytest.mark.parametrize("content", [b"", b"[" * 5000, b"\xff\xfe", b"{}", b'{"token": "../../x"}', b"x" * 100_000])
def test_a_file_that_no_owner_wrote_whole_is_young_until_it_is_stale(path, fast, content):
    path.write_bytes(content)
    assert held(path)
    assert 0.25 < taken_and_left(path) < 3


def test_a_clock_that_jumped(path, fast):
    """A heartbeat from the future says nothing: what counts is that it moves."""
    path.write_text(json.dumps(DEAD))
    os.utime(path, (4e9, 4e9))
    assert not held(path)
    assert 0.25 < taken_and_left(path) < 3


def test_temporary_files_of_the_dead_are_removed_and_no_others(path):
    for name in (f".one.lock.{'a' * 16}", f".one.lock.{'b' * 16}"):
        (path.parent / name).write_text("{}")
    others = {".one.lock.txt", f".two.lock.{'a' * 16}", f"one.lock.{'a' * 16}", f".one.lock.{'a' * 15}"}
    for name in others:
        (path.parent / name).write_text("")
    with Lock(path):
        assert set(os.listdir(path.parent)) == {path.name, *others}


# --------------------------------------------------------------------------------------------------- file systems


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ENOENT, errno.ESTALE])
def test_the_answer_of_a_link_that_was_made_is_lost(path, fast, monkeypatch, number):
    monkeypatch.setattr(os, "link", failing(number, after=os.link))
    assert taken_and_left(path) < 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_the_answer_of_a_take_over_is_lost(path, fast, monkeypatch, number):
    path.write_text(json.dumps(DEAD))
    monkeypatch.setattr(os, "replace", failing(number, after=os.replace))
    assert taken_and_left(path) < 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES])
def test_a_file_system_without_hard_links(path, fast, monkeypatch, number):
    monkeypatch.setattr(os, "link", failing(number))
    taken_and_left(path)
    with Lock(path):
        waiter = threading.Thread(target=taken_and_left, args=(path,))
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
    waiter.join(5)
    assert not waiter.is_alive()
    path.write_text(json.dumps(DEAD))
    taken_and_left(path)


def test_flock_is_not_used():
    """Lustre may be mounted without it."""
    assert "fcntl" not in vars(lock_module)


@pytest.mark.parametrize("kind", ["dangling", "circle", "link", "folder", "pipe"])
def test_what_stands_in_place_of_a_lock_is_refused_in_one_line(path, tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        if kind == "link":
            target.write_text(json.dumps(DEAD))
        path.symlink_to(path if kind == "circle" else target)
    assert not held(path)
    started = time.monotonic()
    with pytest.raises(KdrunError, match=re.escape(str(path)) + ".*remove it$"), Lock(path):
        pass
    assert time.monotonic() - started < 1
    assert os.listdir(path.parent) == [path.name]
    assert target.exists() == (kind == "link")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_place_where_no_lock_can_be_made(path, monkeypatch, number):
    monkeypatch.setattr(Path, "write_text", failing(number))
    with pytest.raises(KdrunError, match=f"no lock can be made there .{os.strerror(number)}"), Lock(path):
        pass
    assert os.listdir(path.parent) == []


def test_a_dead_lock_that_cannot_be_replaced_is_named(path, fast, monkeypatch):
    path.write_text(json.dumps(DEAD))
    monkeypatch.setattr(os, "replace", failing(errno.EACCES))
    with pytest.raises(
        KdrunError, match=r"process 1 on elsewhere, is gone, but the file cannot be replaced.*delete it"
    ):
        Lock(path).__enter__()
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_lock_that_may_not_be_read_is_its_owners(path, fast):
    path.write_text(json.dumps(DEAD))
    path.chmod(0)
    assert 0.25 < taken_and_left(path) < 3


@pytest.mark.parametrize("what", ["unlink", "read_text"])
def test_a_lock_that_cannot_be_released_is_said(path, fast, monkeypatch, caplog, what):
    with Lock(path), monkeypatch.context():
        monkeypatch.setattr(Path, what, failing(errno.EIO))
        monkeypatch.setattr(lock_module, "HEARTBEAT", 100)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: could not be released (Input/output error); delete it"
    ]


def test_a_hiccup_while_it_is_released(path, fast, monkeypatch, caplog):
    plain, calls = Path.unlink, []

    def unlink(self, missing_ok=False):
        calls.append(self)
        if len(calls) == 1:
            raise OSError(errno.EIO, "hiccup")
        plain(self, missing_ok)

    with Lock(path):
        monkeypatch.setattr(Path, "unlink", unlink)
    assert not path.exists()
    assert not caplog.records


def test_a_copy_of_a_lock_in_a_forked_process_releases_nothing(path):
    with Lock(path) as lock:
        child = os.fork()
        if not child:
            lock._release()
            os._exit(0)
        os.waitpid(child, 0)
        assert not lock.lost


def test_a_waiter_only_looks_and_ever_more_seldom(path, monkeypatch):
    """By a clock of its own."""
    now, slept, calls = [0.0], [], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds
        if now[0] > 600:
            path.unlink()

    for name in ("link", "replace", "listdir"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, plain=plain, name=name: calls.append(name) or plain(*a))
    with Lock(path) as owner:
        monkeypatch.setattr(lock_module.time, "sleep", sleep)
        monkeypatch.setattr(lock_module.time, "monotonic", lambda: now[0])
        calls.clear()
        with Lock(path):
            assert owner.lost
    assert calls == ["link", "listdir"]
    assert slept[0] == 0.2
    assert max(slept) == 5.0
    assert slept == sorted(slept)
    assert len(slept) < 200  # of 600 s; five a second would be 3,000


# ---------------------------------------------------------------------------------------------- who wins, and once


class Turns:
    """Lets threads do one operation on files at a time, in an order that is drawn."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.lock = threading.Condition()
        self.waiting, self.running, self.turn = set(), 0, None

    def take(self):
        with self.lock:
            me = threading.get_ident()
            self.waiting.add(me)
            self.running -= 1
            self._next()
            self.lock.wait_for(lambda: self.turn == me)
            self.turn = None
            self.waiting.discard(me)
            self.running += 1

    def leave(self):
        with self.lock:
            self.running -= 1
            self._next()

    def _next(self):
        if not self.running and self.turn is None and self.waiting:
            self.turn = self.draw.choice(sorted(self.waiting))
            self.lock.notify_all()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_in_every_order_one_waiter_at_a_time_holds_the_lock(tmp_path, monkeypatch, links):
    """Three waiters over a dead lock, each operation on files a turn of its own: two held it together in none of the
    orders; each got it once."""
    owned = threading.local()
    turns: list[Turns] = []

    def in_turn(plain):
        def function(*arguments, **options):
            if getattr(owned, "by", None) is not None:
                turns[-1].take()
            return plain(*arguments, **options)

        return function

    if not links:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    for place, name in [(os, "open"), (os, "link"), (os, "replace"), (os, "listdir"), (os, "write"), (os, "read"),
                        (Path, "unlink"), (Path, "write_text"), (Path, "read_text"), (lock_module.time, "sleep")]:  # fmt: skip
        plain = (lambda *_: None) if name == "sleep" else getattr(place, name)
        monkeypatch.setattr(place, name, in_turn(plain))
    monkeypatch.setattr(lock_module.Lock, "_beat", lambda self: None)
    monkeypatch.setattr(lock_module.Lock, "_dead", lambda self, other, silent: other == DEAD)

    def work(path, holding, together, got):
        owned.by = path
        try:
            with Lock(path):
                holding.add(threading.get_ident())
                together.append(len(holding))
                turns[-1].take()
                got.append(path)
                holding.discard(threading.get_ident())
        finally:
            owned.by = None
            turns[-1].leave()

    for seed in range(150):
        path = tmp_path / str(seed) / "one.lock"
        path.parent.mkdir()
        path.write_bytes(json.dumps(DEAD).encode())
        holding, together, got = set(), [], []
        turns.append(Turns(seed))
        turns[-1].running = 3
        threads = [threading.Thread(target=work, args=(path, holding, together, got)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert together == [1, 1, 1], seed
        assert len(got) == 3
        assert os.listdir(path.parent) == []


def test_a_waiter_that_was_suspended_before_it_took_over_removes_nobodys_lock(path, fast, monkeypatch):
    path.write_text(json.dumps(DEAD))
    slow, quick, plain = Lock(path), Lock(path), os.replace

    def replace(source, target):
        if slow.owner["token"] in str(source) and not held_by:
            held_by.append(quick.__enter__())
        return plain(source, target)

    held_by: list[Lock] = []
    monkeypatch.setattr(os, "replace", replace)
    while not held_by:
        assert not slow._got()
    assert not slow._got()
    assert not quick.lost
    quick.__exit__(None, None, None)
    assert slow._got()
    slow._release()


@pytest.mark.parametrize("links", ["links", "no links"])
def test_eight_processes_and_kills(start, path, tmp_path, links):
    journal, until, killed = tmp_path / "journal", time.time() + 4, set()
    draw = random.Random(1)
    workers = [start(WORK, path, journal, until, links) for _ in range(8)]
    while time.time() < until - 0.5:
        time.sleep(0.1)
        place = draw.randrange(8)
        if workers[place].poll() is None:
            workers[place].kill()
            killed.add(workers[place].pid)
            if draw.random() < 0.5:
                workers[place].wait()  # the others stay zombies
            workers[place] = start(WORK, path, journal, until, links)
    for worker in workers:
        assert worker.wait(30) == 0
    inside, entered = None, 0
    for line in journal.read_text().splitlines():
        pid, what = int(line.split()[0]), line.split()[1]
        if what == "in":
            assert inside is None or inside in killed
            inside, entered = pid, entered + 1
        else:
            assert pid == inside
            inside = None
    assert len(killed) > 10
    assert entered > 50
    with Lock(path):
        assert os.listdir(path.parent) == [path.name]
