"""The end of a command: without taking every loaded module apart, which with torch takes more than a second."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from kdrun.core.files import reason


def leave(code: int) -> NoReturn:
    """End this process with an exit code, once its threads have ended and what is registered for the end was called.

    Output that cannot be written any more, as the disk is full, is told of; the code is 1 then.
    """
    if sys.gettrace() is None and sys.getprofile() is None:  # these write what they found when Python ends
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except (BrokenPipeError, ValueError):  # nobody reads on; or it is closed
            pass
        except OSError as error:
            code = code or 1
            print(f"error: stdout: {reason(error)}", file=sys.stderr)
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            code = code or 1
        os._exit(code)
    sys.exit(code)
