"""Signals that end a command: what is under way unwinds, says one line, and leaves whole files and no lock.

INT, TERM, HUP, USR1 and USR2 are taken from the entry of a command (or of `runner.run`) to its end. They raise
`Interrupted` at once, but in training: there they are put off until the state is whole and a checkpoint is written,
and a second INT or TERM stops at once. What the parent ignores stays ignored (nohup's HUP, a background job's INT).
The exit code is 128 + the number of the signal.

Handlers that were there before (submitit's for USR2 requeues the job and exits) are called last of all, in the order
in which their signals came: the checkpoint is written and no lock is held by then, so the requeued job need not wait.
Python runs handlers in the main thread alone; in other threads nothing here has an effect.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 0.2
"""Seconds. What follows sooner is the same signal: timeout(1) and shells send it to a process and to its group."""
AGAIN_OF_RANKS = 5.0
"""Seconds, of a process that is one of several for a run: whoever launched them sends all a signal that one got."""
SOON = 0.05
"""Seconds until a signal that came while a module was loaded comes again."""
LINGER = 60.0
"""Seconds in which a scheduler that has sent TERM may send the signal upon which a host requeues its job."""
ON_STOP: set[Callable[[], None]] = set()
"""Called when a signal has ended a command: a second one may have broken off what was to do this."""
GO_ON = "run the same command again to go on"


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal. Stops a whole sweep, as Ctrl-C does.

    Args:
        text: what was stopped and how to go on; "": `during` or whoever prints it says so.
    """

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(number, text)  # both, for pickle
        self.number = number
        self.text = text

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    def __str__(self) -> str:
        return self.text or f"stopped by {self.name}; {GO_ON}"


class PutOff(Interrupted):
    """What `poll` raises in `put_off`: where it is asked, the state is whole."""


class _Taken:
    """What has come since the outermost `taken`."""

    def __init__(self) -> None:
        self.entered = False
        self.begin()

    def begin(self) -> None:
        self.received: list[signal.Signals] = []
        self.put_off = 0
        self.over = False
        self.again = AGAIN
        self._first = 0.0
        self._repeats = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self._repeats:
            again = self._repeats = False
        else:
            self.received.append(signal.Signals(number))
            again = len(self.received) > 1
            if not again:
                self._first = time.monotonic()
            elif number not in (signal.SIGINT, signal.SIGTERM) or time.monotonic() - self._first < self.again:
                return
        if self.over or (self.put_off and not again):
            return
        if _importing(frame) and not again:
            timer = threading.Timer(SOON, self._repeat, (number, self.received))
            timer.daemon = True
            timer.start()
            return
        raise Interrupted(self.received[0])

    def note(self, number: int) -> None:
        if not self.received:
            self.received.append(signal.Signals(number))
            self._first = time.monotonic()

    def _repeat(self, number: int, received: list[signal.Signals]) -> None:
        if self.entered and not self.over and received is self.received:  # else another `taken` has begun since
            self._repeats = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)


_TAKEN = _Taken()


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded. Interrupted there, C code (NumPy's, torch's) loses the exception and goes on
    with half a module."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Signals raise `Interrupted` inside this context; an inner one changes nothing.

    At the end of the outermost one the handlers that were there before are back, and those of the signals that came
    have been called. What they raise (submitit's SystemExit) goes on from here.
    """
    if _TAKEN.entered or not _in_main_thread():
        yield
        return
    _TAKEN.begin()
    _TAKEN.entered = True
    before: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}
    mine = [number for number in ENDING if before[number] not in (signal.SIG_IGN, None)]  # None: not set by Python
    try:
        for number in mine:
            signal.signal(number, _TAKEN.receive)
        yield
    finally:
        _TAKEN.over, _TAKEN.entered = True, False
        if _TAKEN.received:
            let_go()
        for number in mine:
            signal.signal(number, before[number])
        _hand_over(_TAKEN.received, before)


def _hand_over(received: list[signal.Signals], before: dict[int, Any]) -> None:
    """Call the handlers that a host had for the signals that came."""
    hosts = {number: handler for number, handler in before.items() if callable(handler)}
    if hosts.get(signal.SIGINT) is signal.default_int_handler:
        del hosts[signal.SIGINT]
    for number in dict.fromkeys(received):
        if number in hosts:
            hosts[number](number, None)
    # Schedulers that preempt send TERM first; submitit lets that pass and requeues on USR2 (others on USR1), which may
    # be seconds away. Ended by then, the job would be lost; and nothing is lost by waiting for the end in its stead.
    if signal.SIGTERM in received and signal.SIGTERM in hosts and {signal.SIGUSR1, signal.SIGUSR2} & set(hosts):
        time.sleep(LINGER)


def received() -> signal.Signals | None:
    """The first signal that came and has not ended the command yet."""
    return _TAKEN.received[0] if _TAKEN.entered and _TAKEN.received and _in_main_thread() else None


def seen() -> signal.Signals | None:
    """As `received`, for another thread."""
    return _TAKEN.received[0] if _TAKEN.entered and _TAKEN.received and not _TAKEN.over else None


def note(number: int) -> None:
    """Another process for the same run has received a signal: as if it had come to this one."""
    if _TAKEN.entered and _in_main_thread():
        _TAKEN.note(number)


def among_ranks() -> None:
    """This process is one of several for a run: see `AGAIN_OF_RANKS`."""
    _TAKEN.again = AGAIN_OF_RANKS


def ignore() -> None:
    """From now on no signal ends this command: it is ending anyhow, for another reason that is to be told."""
    _TAKEN.over = True


def let_go() -> None:
    """What a signal's end would do last: locks are released. For a process that ends at once."""
    for release in list(ON_STOP):
        release()


def poll() -> None:
    """Stop here, where a signal has been put off, or its exception was lost (in a finalizer, say)."""
    number = received()
    if number is not None and not _TAKEN.over:
        raise (PutOff if _TAKEN.put_off else Interrupted)(number)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """A signal waits in this context until the next `poll`, or its end; a second INT or TERM does not."""
    if not _in_main_thread():
        yield
        return
    with taken():
        _TAKEN.put_off += 1
        try:
            yield
        finally:
            _TAKEN.put_off -= 1
        if not _TAKEN.put_off:
            poll()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside `put_off`, signals are not put off in this context."""
    if not _in_main_thread():
        yield
        return
    before, _TAKEN.put_off = _TAKEN.put_off, 0
    try:
        poll()
        yield
    finally:
        _TAKEN.put_off = before


@contextlib.contextmanager
def during(what: str, remedy: str = GO_ON) -> Iterator[None]:
    """An interruption inside says that it was `while <what>`; the innermost context tells."""
    try:
        poll()
        yield
    except Interrupted as stop:
        if not stop.text:
            stop.text = f"stopped by {stop.name} while {what}; {remedy}"
        raise


def exit_code(command: Callable[[], int]) -> int:
    """That of a command, which a signal may end: then a line on stderr says what was stopped."""
    with taken():
        try:
            with during("starting up"):
                return command()
        except KeyboardInterrupt as stop:
            _TAKEN.over = True
            with contextlib.suppress(OSError, ValueError):  # the terminal may be what is gone
                print(f"interrupted: {stop if str(stop) else GO_ON}", file=sys.stderr, flush=True)
            return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)


def process(main: Callable[[], int]) -> int:
    """`exit_code` of the whole process: until Python itself is gone, a further Ctrl-C ends it without a traceback."""
    code = exit_code(main)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code
