"""How every command ends: an error that a user can mend is one line, an interruption is no error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

ERRORS = (ValueError, RuntimeError, OSError)  # what a user can do something about


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
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; convert, prepare and study go on where they stopped", file=sys.stderr)
        return 130
