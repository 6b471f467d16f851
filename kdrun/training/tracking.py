"""Mirrors of the curves: wandb, or nothing. The record on disk is the source of truth and never depends on them."""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdrun.config.key import run_key
from kdrun.config.nodes import dump
from kdrun.config.run import RunConfig
from kdrun.runs.metrics_log import MetricsLog
from kdrun.runs.record import finite

log = logging.getLogger(__name__)
INIT_TIMEOUT = 5  # seconds for the server's answer: with wandb-core started twice, a run is offline within 10
FINISH_TIMEOUT = 20  # seconds for what is not uploaded when a run ends
RETRY = 600  # seconds in which the next jobs of a sweep do not ask a server that failed
ROOM = 1 << 18  # bytes that must fit on the tracker's disk; a short run takes 80 KB


class Tracker:
    """Takes the values that metrics.jsonl takes. This one drops them."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step."""

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """End of the run."""


class Wandb(Tracker):
    """A wandb run named by the run key, so that a resumed run continues its curve.

    Whatever fails here (a lost server, a full disk) is said in one line and never stops training.
    """

    def __init__(self, config: RunConfig, directory: Path, job_type: str) -> None:
        self._run: Any = None
        self._place = Path(os.environ.get("WANDB_DIR") or directory).expanduser().absolute()
        self._metrics = MetricsLog(directory / "metrics.jsonl")
        self._whole = True
        """Whether this session gets all values of the run, also those before a resume."""
        self._superseded: set[Path] = set()
        with self._guarded():
            self._start(config, directory, job_type)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with self._guarded():
            if self._run is not None:
                self._catch_up(step)
                self._send(step, values)

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        with self._guarded():
            if self._run is None:
                return
            self._catch_up(None)
            self._run.summary.update(finite(summary))
            try:
                self._run.finish(exit_code=int(failed))
            except TimeoutError as error:
                _BROKEN_OFF.append(str(error))
            if _BROKEN_OFF:
                path = self._run.settings.sync_dir
                log.warning("wandb: the server did not take everything; later: wandb sync --include-online %s", path)
                return
            require_room(self._place)  # wandb-core keeps a full disk to itself
            for session in self._superseded:
                shutil.rmtree(session, ignore_errors=True)

    def _start(self, config: RunConfig, directory: Path, job_type: str) -> None:
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # on a full disk its debug.log floods the terminal
        require_room(self._place)
        key = run_key(config)
        settings = wandb.Settings(
            project=config.tracker.project, entity=config.tracker.entity, run_tags=tuple(config.tracker.tags) or None,
            run_id=key, run_name=directory.name, run_group="/".join(directory.parts[-4:-1]), run_job_type=job_type,
            resume="allow", reinit="finish_previous", root_dir=str(self._place),
            init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True,
            console="off", silent=True, x_disable_stats=True, x_disable_meta=True,
            x_transaction_log_flush_interval=1,  # seconds; a kill loses what is not flushed
        )  # fmt: skip
        _BROKEN_OFF.clear()
        mode = self._mode(config.tracker.mode)
        others = self._sessions(key)
        if mode == "online":
            try:
                self._run = wandb.init(config=dump(config), mode="online", settings=settings)
                log.info("wandb: %s", self._run.url)
            except Exception as error:  # offline may work, whatever it was
                stop_service()  # or the id would be in use
                for session in self._sessions(key) - others:
                    shutil.rmtree(session, ignore_errors=True)
                _LOST[:] = [(time.monotonic(), brief(error))]
                mode = self._offline(brief(error))
                start_service(self._place)
        if mode == "offline":
            self._run = wandb.init(config=dump(config), mode="offline", settings=settings)
        # Online, we know which steps the server has; `wandb sync` would append them under other numbers. So values from
        # before a resume are logged again, unless an offline session follows one that the server may know.
        unsent = {path for path in others if path.name.startswith("offline") and not any(path.glob("*.synced"))}
        self._whole = mode == "online" or unsent == others
        self._superseded = unsent if self._whole else set()

    def _mode(self, given: str | None) -> str:
        """online, offline or disabled: what the config says, else WANDB_MODE or wandb's files; online needs a key."""
        import wandb

        mode = start_service(self._place, **({"mode": given} if given else {}))
        if mode in ("offline", "dryrun", "disabled"):
            return mode.replace("dryrun", "offline")
        for failed_at, reason in _LOST:
            if time.monotonic() - failed_at < RETRY:
                return self._offline(f"not tried again after {reason}")
        try:
            if wandb.login(prompt=False, verify=False):
                return "online"
        except wandb.Error as error:  # a malformed key
            return self._offline(brief(error))
        reason = "no API key is configured (wandb login)"
        if given or reason not in _SAID:  # once for a sweep
            _SAID.add(reason)
            self._offline(reason)
        return "offline"

    def _offline(self, reason: str) -> str:
        log.warning("wandb: %s; going on offline, upload it later: wandb sync %s", reason, self._place / "wandb")
        return "offline"

    def _sessions(self, key: str) -> set[Path]:
        """Directories that wandb made for this run, one each time it was started."""
        found = (self._place / "wandb").glob(f"*run-*-{key}*")
        return {path for path in found if path.is_dir() and not path.is_symlink()}

    def _catch_up(self, step: int | None) -> None:
        """Log what metrics.jsonl has from before a resume (before `step`, at the first call)."""
        lines, self._whole = self._metrics.lines() if self._whole else [], False
        for line in lines:
            if step is None or line["step"] < step:
                self._send(line.pop("step"), line)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.starting_step:  # the server has those before
            self._run.log(finite(values), step=step)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever wandb raises; the run must go on
            log.warning("wandb switched off: %s; metrics.jsonl has all values", brief(error))
            self._run = None
            stop_service()  # the next job gets a new one


_LOST: list[tuple[float, str]] = []  # when and why the server failed last in this process
_SAID: set[str] = set()
_BROKEN_OFF: list[str] = []  # what wandb said of the present run's upload that it gave up


def _tells(record: logging.LogRecord) -> bool:
    """Whether a warning of wandb is shown as it is; `finish` tells of an upload that broke off, with what to do."""
    text = record.getMessage()
    if broken_off := "Fatal error while uploading" in text or "Timed out finishing" in text:
        _BROKEN_OFF.append(text)
    return not broken_off


_WARNINGS = log.getChild("wandb")  # takes what wandb would print
_WARNINGS.setLevel(logging.WARNING)
_WARNINGS.addFilter(_tells)


def start_service(place: Path, **settings: Any) -> str:
    """Start wandb-core, quietly and with its log below `place`. Returns the mode that wandb's settings ask for."""
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry holds up the exit when the server is gone
    own = "WANDB_CACHE_DIR" not in os.environ
    if own:
        os.environ["WANDB_CACHE_DIR"] = str(place)
    try:
        mode = str(wandb.setup(wandb.Settings(silent=True, **settings)).settings.mode)
    finally:
        if own:
            del os.environ["WANDB_CACHE_DIR"]
    wandb.termsetup(wandb.Settings(silent=True), _WARNINGS)
    return mode


def stop_service() -> None:
    """End wandb-core, whatever state it is in."""
    with contextlib.suppress(Exception, SystemExit):  # SystemExit: wandb-core had crashed
        import wandb

        wandb.teardown()


def require_room(place: Path) -> None:
    """Raises OSError if the tracker's disk cannot take a session: wandb-core tells its own log only."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None


def brief(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()).partition(" [type=")[0]  # pydantic goes on with a link
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def make_tracker(config: RunConfig, directory: Path, job_type: str = "train") -> Tracker:
    """The tracker that `tracker.name` names."""
    return Wandb(config, directory, job_type) if config.tracker.name == "wandb" else Tracker()
