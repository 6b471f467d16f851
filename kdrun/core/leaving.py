"""The end of a command: without taking every loaded module apart, which with torch takes more than a second."""

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code, once its threads have ended and what is registered for the end was called.

    Output that cannot be written any more, as the disk is full, is told of; the code is 1 then.
    """
    if sys.gettrace() is None and sys.getprofile() is None:  # these write what they found when Python ends
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        try:
            with contextlib.suppress(BrokenPipeError, ValueError):  # nobody reads on; or it is closed
                sys.stdout.flush()
        except OSError as error:
            code = code or 1
            print(f"error: stdout: {error.strerror or error}", file=sys.stderr)
        with contextlib.suppress(OSError, ValueError):  # nobody can be told
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
