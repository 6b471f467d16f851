"""Trackers of whole runs: wandb's offline sessions, read back with its own reader, and a server that we can break."""

import csv
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdrun.cli.train import main
from kdrun.results.trackers import wandb as mirror
from kdrun.runs.metrics_log import MetricsLog
from kdrun.runs.record import find_records
from kdrun.training import runner
from tests.conftest import FAST, ROOT, TEACHER

pytestmark = pytest.mark.slow

ON = [argument for argument in FAST if argument != "tracker=none"] + ["method=supervised"]
KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = {"id": "e", "name": "e"}
SHOWN = {"results": "html-file", "reliability": "image-file", "confusion": "image-file"}


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch, tmp_path):
    """No settings, key or running wandb-core from outside the test."""
    mirror.stop_service()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.setattr(mirror, "_LOST", [])
    monkeypatch.setattr(mirror, "_SAID", set())
    yield
    mirror.stop_service()


@pytest.fixture
def begins(monkeypatch):
    """Seconds that each tracker took to start."""
    seconds = []

    def timed(*arguments):
        began = time.perf_counter()
        tracker = make(*arguments)
        seconds.append(time.perf_counter() - began)
        return tracker

    make = runner.make_tracking
    monkeypatch.setattr(runner, "make_tracking", timed)
    return seconds


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as keeps the histories that wandb sends. `status` other than 200: it is out of order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs = {}
        self.status = 200
        self.after = {}  # operation: status from then on
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, path, body):
        operation, given = body.get("operationName"), body.get("variables") or {}
        if operation == "UpsertBucket":
            name = given["name"] or given["id"]
            run = self.runs.setdefault(name, {"name": name, "lines": []})
            run.update({key: value for key, value in given.items() if value is not None})
            return {"upsertBucket": {"bucket": self.bucket(name), "inserted": True}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": ENTITY, "bucket": self.bucket(given["name"])}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        if path.endswith("/file_stream"):
            run = self.runs[path.split("/")[-2]]
            sent = (body.get("files") or {}).get("wandb-history.jsonl") or {"offset": 0, "content": []}
            assert sent["offset"] in (0, len(run["lines"]))
            run["lines"] += sent["content"]
            run["exit"] = body.get("exitcode")
        return {}

    def bucket(self, name):
        if name not in self.runs:
            return None
        lines = self.runs[name]["lines"]
        return {
            "id": name, "name": name, "displayName": name, "config": "{}", "summaryMetrics": "{}", "eventsTail": "[]",
            "historyTail": json.dumps(lines[-1:]), "historyLineCount": len(lines), "logLineCount": 0,
            "eventsLineCount": 0, "wandbConfig": json.dumps({"t": 1}), "tags": [], "notes": "",
            "project": {"id": "p", "name": "p", "entity": ENTITY},
        }  # fmt: skip


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        status = server.status
        data = server.answer(self.path, body) if status == 200 else None
        server.status = server.after.pop(body.get("operationName"), status)
        text = json.dumps({"data": data, "errors": [] if data is not None else [{"message": "out of order"}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        return


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield made
    made.shutdown()
    made.server_close()


def sessions(directory, kind="offline-run"):
    return sorted((directory / "wandb").glob(f"{kind}-*"))


def read_back(session):
    """The run, the curve and the exit code of a session, from what `wandb leet inspect` calls (and needs 1.5 s for)."""
    from wandb.util import get_core_path

    (file,) = session.glob("*.wandb")
    inspect = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, session.parent]
    done = subprocess.run(inspect, capture_output=True, text=True, timeout=60, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    run = next(record["run"] for record in records if record["type"] == "run")
    exits = [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"]
    return run, curve([record["history"]["item"] for record in records if record["type"] == "history"]), exits


def curve(items):
    steps = [item["_step"] for item in items]
    assert steps == sorted(set(steps))
    shown = {}  # files, with the last step's values
    for name, kind in SHOWN.items():
        for item in items:
            told = {key: item.pop(key) for key in list(item) if key.partition(".")[0] == name}
            if told:
                assert item is items[-1]
                shown[name] = told[name]["_type"] if name in told else told[f"{name}._type"]
                assert shown[name] == kind
    assert not shown or shown == SHOWN
    return {item["_step"]: {k: v for k, v in item.items() if not k.startswith("_")} for item in items}


def expected(directory):
    """What metrics.jsonl has, by step."""
    out = {}
    for line in MetricsLog(directory / "metrics.jsonl").lines():
        out.setdefault(line["step"], {}).update({k: v for k, v in line.items() if k != "step"})
    assert out
    return out


def the_run(outputs):
    ((directory, record),) = find_records(outputs)
    return directory, record


def said(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb")]


def test_every_job_of_a_sweep_is_a_run_of_its_own(train, outputs, capsys, tmp_path):
    arguments = [*ON[:-1], *TEACHER, "loss=kd", "tracker.tags=[t1,t2]", "tracker.project=mine", "tracker.entity=us"]
    assert train("-m", *arguments, "seed=0,1") == 0
    found = dict(find_records(outputs))
    assert len(found) == 3
    for directory, record in found.items():
        (session,) = sessions(directory)
        run, values, exits = read_back(session)
        assert run["run_id"] == record["key"]
        assert session.name.endswith(record["key"])
        is_teacher = record["method"] == "supervised"
        assert run["job_type"] == ("teacher" if is_teacher else "train")
        name = "supervised-resnet8-digits" if is_teacher else "kd-resnet8-digits-50"
        assert re.fullmatch(rf"{name}-[0-9a-f]{{6}}", run["run_group"])
        assert (run["project"], run["entity"], run["tags"]) == ("mine", "us", ["t1", "t2"])
        assert run["display_name"] == ("teacher resnet8-digits s0" if is_teacher else f"{name} s{record['seed']}")
        assert run["config"]["update"]["seed"] == record["seed"]
        assert values == expected(directory)
        assert exits == [0]
    (line,) = said(capsys)
    assert "no API key is configured" in line
    assert list((tmp_path / "home").iterdir()) == []


NO_SERVER = {
    "refuses": "connection refused",
    "silent": "context deadline exceeded",
    "rejects the key": "401",
    "malformed key": "must have 40+ characters, has 3",
    "no key": "no API key is configured",
}


@pytest.mark.parametrize("fault", NO_SERVER)
def test_without_a_server_the_session_is_offline_within_ten_seconds(
    fault, server, train, outputs, monkeypatch, capsys, begins
):
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # accepts, and never answers
        if fault == "refuses":
            monkeypatch.setattr(mirror, "INIT_TIMEOUT", 1)  # what the other case waits for in full
            monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        elif fault == "silent":
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        elif fault == "rejects the key":
            server.status = 401
        elif fault == "malformed key":
            monkeypatch.setenv("WANDB_API_KEY", "abc")
        else:
            monkeypatch.delenv("WANDB_API_KEY")
        assert train(*ON, *(["tracker.mode=online"] if fault == "no key" else [])) == 0
    directory, record = the_run(outputs)
    (line,) = said(capsys)
    assert NO_SERVER[fault] in line
    assert f"wandb sync {directory}/wandb" in line
    (session,) = sessions(directory)
    assert not sessions(directory, "run")
    run, values, exits = read_back(session)
    assert run["run_id"] == record["key"]
    assert values == expected(directory)
    assert exits == [0]
    assert begins[0] < 10


@pytest.mark.parametrize(("first", "second"), list(itertools.product(["online", "offline"], repeat=2)))
def test_a_crashed_run_continues_its_curve(first, second, server, train, outputs, monkeypatch, capsys):
    """It logged steps after its checkpoint: these come again."""

    def crash(tracker, step, values):
        log(tracker, step, values)
        if step == 30 and "test/student/top1" in values:
            raise KeyboardInterrupt

    arguments = [*ON, "schedule.steps=60", "execution.checkpoint_every_steps=20"]
    log = mirror.Wandb.log
    with monkeypatch.context() as patch:
        patch.setattr(mirror.Wandb, "log", crash)
        assert train(*arguments, f"tracker.mode={first}") == 130
    assert train(*arguments, f"tracker.mode={second}") == 0
    assert "resumed at step 20" in capsys.readouterr().out
    directory, record = the_run(outputs)
    wanted = expected(directory)
    assert set(wanted) == set(range(5, 61, 5))
    assert len(sessions(directory)) == (second == "offline")
    if second == "online":
        (run,) = server.runs.values()
        assert (run["name"], run["exit"]) == (record["key"], 0)
        assert (run["groupName"].rpartition("-")[0], run["jobType"]) == ("supervised-resnet8-digits-50", "train")
        assert curve([json.loads(line) for line in run["lines"]]) == wanted
    else:  # what the server may have is not sent to it again
        run, values, exits = read_back(sessions(directory)[0])
        assert run["run_id"] == record["key"]
        assert values == {step: wanted[step] for step in wanted if step > 20 or first == "offline"}
        assert exits == [0]


def test_a_server_that_dies_in_mid_run_costs_no_value(server, train, outputs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(mirror, "FINISH_TIMEOUT", 2)
    monkeypatch.setattr(mirror, "INIT_TIMEOUT", 1)
    server.after["UpsertBucket"] = 503
    assert train("-m", *ON, "seed=0,1") == 0
    (_, first), (_, second) = sorted((r["seed"], (d, r)) for d, r in find_records(outputs))
    url, lost, offline = said(capsys)
    assert server.url in url
    (session,) = sessions(first[0], "run")
    assert lost.endswith(f"wandb sync --include-online {session}")
    assert "going on offline" in offline
    (other,) = sessions(second[0])
    assert read_back(other)[1] == expected(second[0])

    server.status = 200
    done = subprocess.run(
        [sys.executable, "-m", *lost.rpartition(": ")[2].split(), second[0] / "wandb"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for directory, record in (first, second):
        assert curve([json.loads(line) for line in server.runs[record["key"]]["lines"]]) == expected(directory)


def test_an_upload_that_the_server_refuses_is_said(server, train, outputs, capsys):
    server.after["UpsertBucket"] = 403
    assert train(*ON) == 0
    (session,) = sessions(the_run(outputs)[0], "run")
    url, refused = said(capsys)
    assert server.url in url
    assert refused.endswith(f"wandb sync --include-online {session}")
    assert read_back(session)[1] == expected(session.parents[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds wandb-core in /proc")
def test_a_wandb_core_that_dies_stops_neither_run_nor_sweep(train, outputs, monkeypatch, capsys):
    def kill_once(tracker, step, values):
        for path in Path("/proc").glob("[0-9]*/stat") if not killed else []:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and rest.split()[1] == str(os.getpid()):
                os.kill(int(path.parent.name), signal.SIGKILL)
                killed.append(path)
        return real(tracker, step, values)

    killed, real = [], mirror.Wandb.log
    monkeypatch.setattr(mirror.Wandb, "log", kill_once)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train("-m", *ON, "seed=0,1") == 0
    assert killed
    (line,) = said(capsys)
    assert re.match(r"wandb switched off: .*; metrics.jsonl has all values", line)
    second = next(d for d, r in find_records(outputs) if r["seed"] == 1)
    assert read_back(sessions(second)[0])[1] == expected(second)


@pytest.mark.parametrize(
    ("environment", "arguments", "offline", "line"),
    [
        ("disabled", [], 0, None),
        ("disabled", ["tracker.mode=offline"], 1, None),
        ("dryrun", [], 1, None),
        ("on", [], 0, "wandb switched off: .* mode Input should be 'online'"),
        ("offline", ["tracker.project=a/b"], 0, "wandb switched off: .*Invalid project name 'a/b'"),
    ],
)
def test_modes_and_mistakes(environment, arguments, offline, line, train, outputs, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", environment)
    assert train(*ON, *arguments) == 0
    directory, _ = the_run(outputs)
    assert len(sessions(directory)) == offline
    lines = said(capsys)
    assert len(lines) == (line is not None)
    assert all(re.match(line, found) for found in lines)


def test_without_the_package_it_is_refused_and_tracker_none_needs_none(train, outputs, monkeypatch, capsys):
    code = "import sys, kdrun.results.trackers.wandb; assert 'wandb' not in sys.modules"  # later timm imports it
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(*ON, "tracker=none") == 0
    assert said(capsys) == []
    assert train(*ON, "seed=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == "error: tracker: wandb needs wandb, which is not installed; pip install 'wandb', or choose tracker=none"
    )


ELSEWHERE = """
import json, os, signal, subprocess, sys
from pathlib import Path
import kdrun.results.trackers.wandb
from kdrun.train import main
from kdrun.training.checkpoint import Checkpoint

tmp, disks, *given = sys.argv[1:]
log, calls = kdrun.results.trackers.wandb.Wandb.log, []

def disk(name, size):
    path = Path(tmp, name)
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    return path

def fill(path, but=0):
    with open(path / "filling", "wb", buffering=0) as file:
        while os.statvfs(path).f_bavail * os.statvfs(path).f_frsize > but:
            file.write(bytes(4096))

def fill_at_second_call(tracker, step, values):
    calls.append(step)
    if len(calls) == 2:
        fill(another)
    log(tracker, step, values)

def killed_at_90(tracker, step, values):
    log(tracker, step, values)
    if step == 90:
        os.kill(os.getpid(), signal.SIGKILL)

def run(*arguments):
    print("rc", main([*given, f"execution.outputs={tmp}/outputs", *arguments]), flush=True)

if disks == "disks":
    print("# tracker's disk full from the start")
    small = disk("small", "1m")
    os.environ["WANDB_DIR"] = str(small)
    fill(small)
    run("seed=1")

    print("# tracker's disk full in mid-run")
    another = disk("another", "1m")
    os.environ["WANDB_DIR"] = str(another)
    kdrun.results.trackers.wandb.Wandb.log = fill_at_second_call
    run("seed=2")
    del os.environ["WANDB_DIR"]
    kdrun.results.trackers.wandb.Wandb.log = log

    print("# outputs' disk full")
    full = disk("full", "2m")
    arguments = [f"execution.outputs={full}", "execution.checkpoint_every_steps=2"]
    fill(full, but=250_000)
    run(*arguments)
    (path,) = full.rglob("last.pt")
    print("checkpoint of step", Checkpoint.read(path)["progress"]["step"])
    (path,) = full.rglob("record.json")
    print("record", json.loads(path.read_text())["status"])
    (full / "filling").unlink()
    run(*arguments)

print("# killed", flush=True)
kdrun.results.trackers.wandb.Wandb.log = killed_at_90
run("schedule.steps=150", "execution.checkpoint_every_steps=60")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What needs a process of its own (one for all, it takes seconds to start): its directory and its output."""
    tmp = tmp_path_factory.mktemp("elsewhere")
    disks = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    command = [
        *(["unshare", "-rm"] if disks else []),
        sys.executable,
        "-c",
        ELSEWHERE,
        str(tmp),
        "disks" if disks else "",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment.update(HOME=str(tmp), WANDB_MODE="offline")
    done = subprocess.run(
        [*command, *ON], cwd=ROOT, env=environment, text=True, timeout=200, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout
    return tmp, done.stdout


def test_a_killed_run_continues_its_curve(elsewhere, capsys):
    outputs = elsewhere[0] / "outputs"
    (directory,) = outputs.glob("runs/supervised/digits/n50/s0-*[0-9a-f]")
    (first,) = sessions(directory)
    arguments = [*ON, "schedule.steps=150", "execution.checkpoint_every_steps=60"]
    assert main([*arguments, f"execution.outputs={outputs}", "tracker.mode=offline"]) == 0
    assert "resumed at step 60" in capsys.readouterr().out
    (session,) = sessions(directory)
    assert session != first
    run, values, exits = read_back(session)
    assert directory.name.endswith(run["run_id"])
    assert set(values) == set(range(5, 151, 5))
    assert values == expected(directory)
    assert exits == [0]


def test_full_disks(elsewhere):
    tmp, out = elsewhere
    assert "Traceback" not in out
    phases = out.split("# ")
    if len(phases) < 4:
        pytest.skip("this machine lets no user mount a small disk (unshare -rm)")
    _, before, during, outputs, _ = phases
    for text, place in ((before, "small"), (during, "another")):
        lines = text.splitlines()[1:]
        assert [line for line in lines if "No space" in line] == [
            f"wandb switched off: [Errno 28] No space left on device: '{tmp / place}'; metrics.jsonl has all values"
        ]
        assert lines[-1] == "rc 0"
    full, again = outputs.split("record failed\n")
    (line,) = [line for line in full.splitlines() if line.startswith("failed: ")]
    assert "No space left on device" in line
    step = re.search(r"rc 1\ncheckpoint of step (\d+)\n", full)[1]
    assert f"resumed at step {step} of 20" in again
    assert again.endswith("rc 0\n")


def test_several_trackers_have_the_same_curve_and_the_pictures_of_the_end(train, outputs):
    """TensorBoard and CSV, read back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [*ON[:-1], *TEACHER, "loss=kd", "tracker=tensorboard", "tracker.also=[csv]"]
    assert train(*arguments) == 0
    (directory,) = [directory for directory, record in find_records(outputs) if record["method"] == "distill"]
    wanted = expected(directory)

    (folder,) = outputs.glob(f"tensorboard/kd-resnet8-digits-50-*/{directory.name}")
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    by_step = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            by_step.setdefault(event.step, {})[name] = event.value
    assert by_step == {step: pytest.approx(values, rel=1e-6) for step, values in wanted.items()}
    assert sorted(events.Tags()["images"]) == ["confusion", "reliability"]

    with (directory / "metrics.csv").open() as file:
        table = {int(row.pop("step")): {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)}
    assert table == wanted
