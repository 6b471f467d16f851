"""tests/gpu as an item: as many of its tests as fit, the five systems first, compiled ones last."""

import importlib.util
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.item import OVER, Given

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ("distill", "kd_fixmatch", "dho", "peer_distill", "mixup_distill", "fixmatch", "supervised")
"""TTM, KD-FixMatch, DHO, two students, mixup; then what they stand on."""
WORKERS = 8
PARTS = ("test_near_the_cpu", "test_nothing_waits", "test_captured_steps", "test_stopped_and_resumed")
"""Of a method's tests, in this order."""


def rank(name: str) -> tuple[int, int, int]:
    """Of a test `test_x[method-...]`: its place."""
    words = name.partition("[")[2].rstrip("]").split("-")
    compiled = "compiled" in words
    system = next((k for k, method in enumerate(SYSTEMS) if method in words), len(SYSTEMS))
    part = next((k for k, known in enumerate(PARTS) if name.startswith(known)), len(PARTS))
    return int(compiled), part if system == len(SYSTEMS) else 0, system


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As this module is a plugin of pytest (`-p scripts.bench.checks`), in each of its workers."""
    items.sort(key=lambda item: rank(item.name))


class Watcher:
    """Is told what pytest does, and tells it as it comes."""

    def __init__(self, given: Given) -> None:
        self.given, self.started = given, time.time()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.running: dict[str, float] = {}
        self.why: Counter[str] = Counter()
        self.all = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self.all = max(self.all, len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.all = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running[nodeid] = time.time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.failed and report.when != "call" and not report.skipped:
            return
        name = report.nodeid.rpartition("::")[2]
        self.running.pop(report.nodeid, None)
        self.outcomes[name.partition("[")[0], report.outcome] += 1
        self.seconds[name.partition("[")[0]] += report.duration
        if report.failed:
            line = next((line for line in str(report.longrepr).splitlines() if line.startswith("E ")), "")
            self.given.fail(f"{name}: {line[2:].strip()[:160] or report.when}")
        elif report.skipped:
            self.why[str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"] += 1

    def pytest_keyboard_interrupt(self) -> None:
        """The time is over: nothing waits for workers that are in the middle of a test."""
        left = self.all - sum(self.outcomes.values())
        self.given.note(f"{left} of {self.all} tests were not reached; running then: "
                        + (", ".join(sorted(name.rpartition("::")[2] for name in self.running)) or "none"))  # fmt: skip
        self.tell()
        os._exit(OVER)

    def tell(self) -> None:
        tests = dict.fromkeys(test for test, _ in self.outcomes)
        for test in tests:
            figures = {
                outcome: ([float(self.outcomes[test, outcome])], "") for outcome in ("passed", "failed", "skipped")
                if self.outcomes[test, outcome]
            }  # fmt: skip
            self.given.tell(test, {**figures, "in all": ([self.seconds[test]], "s")})
        for why, count in self.why.items():
            self.given.note(f"{count} skipped: {why}")


def check(given: Given) -> None:
    """Without CUDA all tests are skipped, and it is said."""
    os.chdir(ROOT)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each worker would start as many as there are cores
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as deterministic algorithms need it from the start on
    several = not given.tiny and importlib.util.find_spec("xdist") is not None
    # not on the command line, where workers would be given them, too
    words = ["tests/gpu", "-p", "scripts.bench.checks", "-p", "no:cacheprovider", "-q", "--tb=short", "-m", "gpu",
             f"--basetemp={given.folder}/pytest"]  # fmt: skip
    if several:
        words += ["-n", str(WORKERS), "--dist", "load", "--maxschedchunk", "1"]
    else:
        words += ["-p", "no:xdist"]
    watcher = Watcher(given)
    given.begin("tests/gpu")
    code = pytest.main(words, plugins=[watcher])
    watcher.tell()
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
