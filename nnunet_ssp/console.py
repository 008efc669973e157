"""How every command reads numbers and ends: an error that a user can mend is one line, an interruption is no error."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable

ERRORS = (ValueError, RuntimeError, OSError)  # what a user can do something about
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(SystemExit, RuntimeError):
    """The end of a training before its time, with the reason.

    Also below nnU-Net's own commands its message is one line without a traceback, and the exit status is 1.
    """


def whole(text: str) -> int:
    """Read a whole number of a command line; Python also reads 1_0 and the digits of other scripts."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number, as 12")
    return int(text)


def decimal(text: str) -> float:
    """Read a number of a command line, see `whole`."""
    if not re.fullmatch(
        r"[+-]?([0-9]{1,99}\.?[0-9]{0,99}|\.[0-9]{1,99})([eE][+-]?[0-9]{1,2})?", text
    ):
        raise argparse.ArgumentTypeError(f"{text} is no number, as 1.5")
    return float(text)


def in_words(error: BaseException) -> str:
    """Return the message of an error; of the system's own errors the file and the reason.

    Our errors say everything themselves. The system's say `[Errno 28] No space left on device`.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = "no space left" if error.errno in DISK_FULL else (error.strerror or str(error)).lower()
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def run_command(command: Callable[[], object]) -> int:
    """Run a command; errors of `ERRORS` are one line, without a traceback.

    Args:
        command: Returns an exit status, or anything else for success.

    Returns:
        The exit status: the command's, 1 for an error, 130 when interrupted.
    """
    try:
        status = command()
        return status if isinstance(status, int) else 0
    except ERRORS as error:
        if os.environ.get("NNUNET_SSP_TRACEBACK"):
            raise
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; convert, prepare and study go on where they stopped", file=sys.stderr)
        return 130
