"""What composing has found out, kept in `<outputs>/.cache/tables` for as long as all that it follows from stays."""

import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrun.core.files import write_text
from kdrun.core.paths import HERE, conf_folders

log = logging.getLogger(__name__)


def kept(path: Path, digest: str) -> Any:
    """What `keep` wrote there under this digest; None: it is gone, of another digest, or not whole."""
    try:
        head, _, content = path.read_text("utf-8").rstrip("\n").partition("\n")
        return json.loads(content) if head == f"{digest} {_sha(content.encode())}" else None
    except (OSError, ValueError) as error:
        log.debug("%s: %s", path, error)
        return None


def keep(path: Path, digest: str, value: Any) -> None:
    content = json.dumps(value, ensure_ascii=False)
    try:
        write_text(path, f"{digest} {_sha(content.encode())}\n{content}\n")
    except OSError as error:
        log.info("%s: the plan is not kept (%s)", path, error.strerror)


def digest_of(asked: str) -> str:
    """Of what is asked, and of all that says what comes of it, but the files that it names itself."""
    whole = hashlib.sha256(asked.encode())
    for folder, pattern in (*((conf, "*.yaml") for conf in conf_folders()), (HERE, "*.py")):
        for path in sorted(folder.rglob(pattern)):
            content = path.read_bytes()
            whole.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    for package in ("hydra-core", "omegaconf", "pydantic", "timm"):
        whole.update(metadata.version(package).encode() + b"\0")
    return whole.hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
