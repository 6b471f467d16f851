"""Weights & Biases: online where a key is configured, else in files that `wandb sync` uploads."""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdrun.config.nodes import dump
from kdrun.config.parts import TrackerConfig
from kdrun.core.registry import register
from kdrun.results.trackers.pictures import pictures
from kdrun.training.tracking import Outcome, Tracked, Tracker, brief, text_of

log = logging.getLogger(__name__)
INIT_TIMEOUT = 5  # seconds for the server's answer: with wandb-core started twice, a run is offline within 10
FINISH_TIMEOUT = 20  # seconds for what is not uploaded when a run ends
RETRY = 600  # seconds in which the next jobs of a sweep do not ask a server that failed
ROOM = 1 << 18  # bytes that must fit on the tracker's disk; a short run takes 80 KB


@register("tracker", "wandb")
class Wandb(Tracker):
    """A wandb run whose id is the run key, so that a resumed run continues its curve."""

    class Config(TrackerConfig):
        name: str = "wandb"
        project: str = "kdrun"
        entity: str | None = None
        tags: list[str] = Field(default_factory=list)
        mode: Literal["online", "offline"] | None = None
        """null: online where a key is configured, else offline (WANDB_MODE counts)."""

    modules = ("wandb",)

    def __init__(self, config: "Wandb.Config", run: Tracked) -> None:
        super().__init__(config, run)
        self._run: Any = None
        self._place = Path(os.environ.get("WANDB_DIR") or run.directory).expanduser().absolute()
        self._superseded: set[Path] = set()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.log(values, step=step)

    def finish(self, outcome: Outcome) -> None:
        if self._run is None:
            return
        with contextlib.suppress(OSError):  # a full disk is told of below, when the curves are in it
            require_room(self._place)
            self._show(outcome)
        self._run.summary.update(outcome.metrics)
        try:
            self._run.finish(exit_code=int(outcome.failed))
        except TimeoutError as error:
            _BROKEN_OFF.append(str(error))
        if _BROKEN_OFF:
            path = self._run.settings.sync_dir
            log.warning("wandb: the server did not take everything; later: wandb sync --include-online %s", path)
            return
        require_room(self._place)  # wandb-core keeps a full disk to itself
        for session in self._superseded:
            shutil.rmtree(session, ignore_errors=True)

    def abandon(self) -> None:
        self._run = None
        stop_service()  # the next job gets a new one

    def _show(self, outcome: Outcome) -> None:
        """The final table and pictures, with the values of the last step."""
        import wandb

        shown: dict[str, Any] = {name: wandb.Image(image) for name, image in pictures(outcome).items()}
        columns, rows = outcome.table
        if rows:  # not wandb.Table, an artifact: it asks the server once more, and leaves files in the home folder
            lines = ["".join(f"<td>{escape(text_of(v))}</td>" for v in line) for line in [columns, *rows]]
            shown["results"] = wandb.Html(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
        if shown:
            self._run.log(shown, step=max(outcome.step, self._run.starting_step))

    def start(self) -> None:
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # on a full disk its debug.log floods the terminal
        require_room(self._place)
        key, given = self.run.key, self.config
        settings = wandb.Settings(
            project=given.project, entity=given.entity, run_tags=tuple(given.tags) or None,
            run_id=key, run_name=self.run.name, run_group=self.run.group, run_job_type=self.run.role,
            resume="allow", reinit="finish_previous", root_dir=str(self._place),
            init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True,
            console="off", silent=True, x_disable_stats=True, x_disable_meta=True,
            x_transaction_log_flush_interval=1,  # seconds; a kill loses what is not flushed
        )  # fmt: skip
        _BROKEN_OFF.clear()
        mode = self._mode(given.mode)
        others, config = self._sessions(key), dump(self.run.config)
        if mode == "online":
            try:
                self._run = wandb.init(config=config, mode="online", settings=settings)
                log.info("wandb: %s", self._run.url)
            except Exception as error:  # offline may work, whatever it was
                stop_service()  # or the id would be in use
                for session in self._sessions(key) - others:
                    shutil.rmtree(session, ignore_errors=True)
                _LOST[:] = [(time.monotonic(), brief(error))]
                mode = self._offline(brief(error))
                start_service(self._place)
        if mode == "offline":
            self._run = wandb.init(config=config, mode="offline", settings=settings)
        # Online, we know which steps the server has; `wandb sync` would append them under other numbers. So values from
        # before a resume are logged again, unless an offline session follows one that the server may know.
        unsent = {path for path in others if path.name.startswith("offline") and not any(path.glob("*.synced"))}
        self.replays = mode == "online" or unsent == others
        self._superseded = unsent if self.replays else set()
        self.first = 0 if self._run is None else self._run.starting_step

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
