"""What a signal does in this very process: raised, put off, ignored, handed on to who had it before."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import kdrun
from kdrun.core import signals
from kdrun.core.lock import Lock
from kdrun.core.signals import ENDING, Interrupted

INT, TERM, HUP, USR1, USR2 = ENDING
CODES = {INT: 130, TERM: 143, HUP: 129, USR1: 138, USR2: 140}


def send(number=TERM):
    os.kill(os.getpid(), number)
    for _ in range(1000):  # Python calls the handler between two steps
        pass


@pytest.fixture(autouse=True)
def no_handler_is_left():
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING[1:]:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(INT, signal.default_int_handler)
    yield
    left = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not any(getattr(handler, "__name__", "") == "receive" for handler in left.values())


@pytest.fixture
def host():
    """Handlers that a host had before: they note what they are called with."""
    called = []
    for number in ENDING:
        signal.signal(number, lambda got, frame: called.append(signal.Signals(got)))
    return called


@pytest.mark.parametrize("number", ENDING)
def test_the_exit_code_and_the_line(number, capsys):
    assert signals.exit_code(lambda: send(number)) == CODES[number]
    name = signal.Signals(number).name
    assert capsys.readouterr().err == (
        f"interrupted: stopped by {name} while starting up; run the same command again to go on\n"
    )


def test_a_command_that_nothing_stops():
    assert signals.exit_code(lambda: 7) == 7


def test_a_keyboard_interrupt_that_is_no_signal(capsys):
    def command():
        raise KeyboardInterrupt

    assert signals.exit_code(command) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


def test_the_innermost_place_is_named(capsys):
    def command():
        with signals.during("sweeping"), signals.taken(), signals.during("planning", "begin again"):
            send()

    assert signals.exit_code(command) == 143
    assert capsys.readouterr().err == "interrupted: stopped by SIGTERM while planning; begin again\n"


def test_a_terminal_that_is_gone(monkeypatch):
    class Gone:
        def write(self, _):
            raise OSError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    assert signals.exit_code(lambda: send(HUP)) == 129


@pytest.mark.parametrize("number", [HUP, INT])
def test_what_the_parent_ignores_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    assert signals.exit_code(lambda: send(number) or 3) == 3
    assert signal.getsignal(number) == signal.SIG_IGN


def test_it_is_no_exception_that_a_broad_except_takes():
    def command():
        try:
            send()
        except Exception:
            return 0

    assert signals.exit_code(command) == 143


def test_an_interruption_that_was_lost_is_told_at_the_next_place():
    def command():
        try:
            send()
        except BaseException:  # as in a finalizer
            threading.get_ident()
        with signals.during("the next run"):
            return 0

    assert signals.exit_code(command) == 143


def test_it_survives_pickling():
    stop = pickle.loads(pickle.dumps(Interrupted(int(TERM), "text")))
    assert (stop.number, str(stop)) == (TERM, "text")


# ---------------------------------------------------------------------------------------------------------- put off


def interruption(context, *steps):
    """What ends the steps inside a context, and how many were done."""
    done = 0
    try:
        with context:
            for step in steps:
                step()
                done += 1
    except Interrupted as stop:
        return type(stop), stop.number, done
    return None, None, done


def later():
    time.sleep(1.2 * signals.AGAIN)


def test_put_off_until_it_is_asked_for():
    seen = []
    steps = [lambda: send(USR1), lambda: seen.append(signals.received()), signals.poll]
    assert interruption(signals.put_off(), *steps) == (signals.PutOff, USR1, 2)
    assert seen == [USR1]
    assert signals.received() is None


def test_put_off_until_the_end():
    def inner():
        with signals.put_off():
            send(USR2)

    assert interruption(signals.put_off(), inner) == (Interrupted, USR2, 1)


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_second_one_stops_at_once(number):
    assert interruption(signals.put_off(), lambda: send(USR1), later, lambda: send(number)) == (Interrupted, USR1, 2)


def test_a_signal_that_comes_twice_in_a_row_is_one():
    """timeout(1) sends it to the process, then to its group."""
    assert interruption(signals.put_off(), send, send, signals.poll) == (signals.PutOff, TERM, 2)


@pytest.mark.parametrize("number", [HUP, USR1, USR2])
def test_other_signals_do_not_stop_at_once(number):
    steps = [send, later, lambda: send(number), signals.poll]
    assert interruption(signals.put_off(), *steps) == (signals.PutOff, TERM, 3)


def test_at_once_inside_put_off():
    def inner():
        with signals.at_once():
            send()
        pytest.fail("not stopped")

    assert interruption(signals.put_off(), inner) == (Interrupted, TERM, 0)


def test_what_came_before_at_once_is_not_said_to_be_whole():
    def inner():
        with signals.at_once():
            pytest.fail("not stopped")

    assert interruption(signals.put_off(), send, inner) == (Interrupted, TERM, 1)


def test_a_module_is_loaded_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    steps = [lambda: importlib.import_module("slow_module"), lambda: time.sleep(5)]
    assert interruption(signals.taken(), *steps) == (Interrupted, TERM, 1)
    assert sys.modules["slow_module"].WHOLE


def test_a_module_that_hangs_is_left_by_a_second_one(tmp_path, monkeypatch):
    (tmp_path / "endless_module.py").write_text(
        "import os, signal, time\nfor _ in range(2):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.4)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    started = time.monotonic()
    steps = [lambda: importlib.import_module("endless_module")]
    assert interruption(signals.taken(), *steps) == (Interrupted, INT, 0)
    assert time.monotonic() - started < 5


# ------------------------------------------------------------------------------------------- who had them before


def test_handlers_of_a_host_are_called_when_all_has_unwound(host, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "LINGER", 0)
    path, held = tmp_path / "a.lock", []
    signal.signal(USR2, lambda *_: held.append(path.exists()))
    with pytest.raises(Interrupted), signals.taken(), Lock(path):
        send(USR2)
    assert held == [False]
    assert host == []
    send(USR2)
    assert held == [False, False]


def test_all_that_came_are_handed_on_in_their_order_and_once(host, monkeypatch):
    monkeypatch.setattr(signals, "LINGER", 0)
    interruption(signals.put_off(), lambda: send(USR1), lambda: send(USR2), lambda: send(USR1))
    assert host == [USR1, USR2]


def test_what_a_host_raises_goes_on(host):
    """As submitit's: it has requeued the job, then it exits."""

    def requeue(*_):
        sys.exit(-1)

    signal.signal(USR2, requeue)
    with pytest.raises(SystemExit), signals.taken():
        send(USR2)


def test_who_was_sent_term_waits_for_the_signal_to_requeue(host, monkeypatch):
    """submitit lets TERM pass, and requeues on USR2, which comes later."""
    monkeypatch.setattr(signals, "LINGER", 10)
    signal.signal(USR2, lambda *_: sys.exit(-1))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), USR2))
    timer.start()
    started = time.monotonic()
    with pytest.raises(SystemExit), signals.taken():
        send(TERM)
    assert host == [TERM]
    assert time.monotonic() - started < 5


def test_python_s_own_handler_is_no_host(monkeypatch):
    with pytest.raises(Interrupted), signals.taken():
        send(INT)


def test_a_host_that_nothing_is_sent_to(host):
    with signals.taken():
        pass
    assert host == []


def test_other_threads_take_no_signals_and_fail_not():
    done = []

    def work():
        with signals.taken(), signals.put_off(), signals.at_once(), signals.during("x"):
            signals.poll()
            done.append(signals.received())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [None]


# --------------------------------------------------------------------------------------------------------- processes


def test_locks_are_let_go_whatever_a_second_signal_broke_off(tmp_path):
    class Slow(Lock):
        def __exit__(self, *_):
            time.sleep(60)

    path = tmp_path / "a.lock"
    threading.Timer(0.5, os.kill, (os.getpid(), INT)).start()
    with pytest.raises(Interrupted), signals.taken(), Slow(path):
        send()
    assert not path.exists()
    assert not signals.ON_STOP


def test_the_module_is_light():
    script = "import sys, kdrun.core.signals; print(sorted({'logging', 'hydra', 'numpy', 'torch'} & set(sys.modules)))"
    root = str(Path(kdrun.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


AT_HYDRA = """
import os, signal, sys
signal.signal({number}, signal.SIG_DFL)
class Sender:
    def find_spec(self, name, path, target=None):
        if name == "hydra":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Sender())
sys.argv[1:] = ["status"]
import runpy
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["kdrun", "kdrun.train"])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_before_anything_is_loaded(module, number):
    done = subprocess.run(
        [sys.executable, "-c", AT_HYDRA.format(number=int(number), module=module)], capture_output=True, text=True,
        timeout=60, cwd=Path(kdrun.__file__).parents[1],
    )  # fmt: skip
    name = signal.Signals(number).name
    assert done.stderr == f"interrupted: stopped by {name} while starting up; run the same command again to go on\n"
    assert done.returncode == CODES[number]
