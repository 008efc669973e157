"""Terminal input and output: counts and lists in words, plain numbers, and the end of every command."""

from __future__ import annotations

import argparse
import difflib
import errno
import linecache
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

ERRORS = (ValueError, RuntimeError, OSError)  # errors that a user can fix
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
GOING_ON = ("convert", "prepare", "predict", "demo", "study")  # where they were interrupted
NOT_YOURS = "Choose a place of your own, or have this one opened to you."


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 file`, `2 files`; a plural that is not the noun and an s is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def some(names: Collection[str], limit: int = 10) -> str:
    """Return the first names, with the number of all if some are left out: `a, b, ... (12 in all)`.

    Sets are sorted first; the names of a sequence keep their order.
    """
    ordered = names if isinstance(names, Sequence) else sorted(names)
    more = [f"... ({len(names)} in all)"] if len(names) > limit else []
    return ", ".join([*ordered[:limit], *more])


def shape_in_words(shape: Iterable[int]) -> str:
    """Return a shape in words: `8 x 256 x 256`."""
    return " x ".join(map(str, shape))


class Paced:
    """Prints on stderr how far a long work is, at most once in some seconds.

    Args:
        seconds: Least time between two lines.
        clock: Returns the time in seconds.
    """

    def __init__(self, seconds: float = 15, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._said = clock()

    def __call__(self, text: str) -> None:
        """Print a line, unless the last one is too young."""
        if self._clock() - self._said >= self._seconds:
            print(text, file=sys.stderr, flush=True)
            self._said = self._clock()


class Stopped(SystemExit, RuntimeError):
    """The early end of a training, with the reason.

    Even under nnU-Net's own commands, the message is one line without a traceback and the exit status is 1.
    """


def whole(text: str) -> int:
    """Read a whole number of a command line; Python also reads 1_0 and the digits of other scripts."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number such as 12")
    return int(text)


def decimal(text: str) -> float:
    """Read a number of a command line, see `whole`."""
    if not re.fullmatch(
        r"[+-]?([0-9]{1,99}\.?[0-9]{0,99}|\.[0-9]{1,99})([eE][+-]?[0-9]{1,2})?", text
    ):
        raise argparse.ArgumentTypeError(f"{text} is no number such as 1.5")
    return float(text)


class IdOrName(argparse.Action):
    """Action of `-d`: an id, or `Dataset114_MNMs`, which names the dataset, too."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        full = re.fullmatch(r"Dataset([0-9]{3})_(.+)", str(values))
        try:
            namespace.dataset_id = whole(full[1] if full else str(values))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(
                self,
                f"{error}, nor a name such as Dataset114_MNMs: a new dataset needs a number from 1 to 999 that no "
                "other has",
            ) from None
        if full:
            NewName.give(self, parser, namespace, full[2])


class NewName(argparse.Action):
    """Action of `--name`, which may repeat what `-d Dataset114_MNMs` says but not say otherwise."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        self.give(self, parser, namespace, str(values))

    @staticmethod
    def give(
        action: argparse.Action,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        name: str,
    ) -> None:
        """Take a name; refuse a second one."""
        given = getattr(namespace, "name", None)
        typed = given is not parser.get_default("name")  # also one that is equal to the default
        if typed and given not in (None, name):
            raise argparse.ArgumentError(
                action, f"the new dataset cannot be called both {given} and {name}"
            )
        namespace.name = name


def path(text: str) -> Path:
    """Read a path of a command line; a shell leaves `~` as it is in quotes and after `=` or `:`."""
    return Path(os.path.expanduser(text))  # leaves the name of nobody as it is


def nearest(wrong: str, names: Collection[str], limit: int = 3) -> str:
    """Return the names that are most like a wrong one, as the end of a sentence; empty if none is.

    A piece of a name stands for the few names that hold it.

    >>> nearest("num_epoch", ["num_epochs", "seed"]), nearest("lr", ["seed", "initial_lr"])
    (' Perhaps num_epochs?', ' Perhaps initial_lr?')
    """
    holding = [name for name in names if wrong and wrong.lower() in name.lower()]
    found = holding if 0 < len(holding) <= limit else difflib.get_close_matches(wrong, names, limit)
    return f" Perhaps {' or '.join(found)}?" if found else ""


def nearest_first(wrong: str, names: Iterable[str]) -> list[str]:
    """Return names in order, those first that hold a wrong one or are most like it.

    >>> nearest_first("Cine", ["Dataset114_MNMs", "Dataset120_cine", "Dataset007_ACDC"])
    ['Dataset120_cine', 'Dataset007_ACDC', 'Dataset114_MNMs']
    """
    ordered = sorted(names)
    near = [name for name in ordered if wrong and wrong.lower() in name.lower()]
    near += difflib.get_close_matches(wrong, ordered, 3, cutoff=0.75)
    return list(dict.fromkeys([*near, *ordered]))


def in_words(error: BaseException) -> str:
    """Return the message of an error; for the system's errors, the file and the reason.

    The system's own text would be `[Errno 28] No space left on device`.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = "no space left" if error.errno in DISK_FULL else (error.strerror or str(error)).lower()
    said = f"{error.filename}: {reason}." if error.filename else f"{reason}."
    return f"{said} {NOT_YOURS}" if error.errno in NOT_ALLOWED and error.filename else said


def writing_failed(folder: Path, error: OSError) -> str:
    """Return what to do when a command that goes on where it stopped could not write."""
    advice = "Once there is space, or what else was missing, "
    if error.errno in NOT_ALLOWED:
        advice = (
            "You may not write there: choose a folder of your own, or have it opened to you. Then "
        )
    return f"{folder}: writing failed ({error}). {advice}run the same command again: it continues where it stopped."


def run_command(command: Callable[[], object], name: str = "") -> int:
    """Run a command; print errors of `ERRORS` as one line, without a traceback.

    Args:
        command: Returns an exit status, or anything else for success.
        name: The subcommand, which tells what an interruption leaves.

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
        goes_on = "the same command goes on where it stopped"
        print(f"interrupted; {goes_on if name in GOING_ON else 'run it again'}", file=sys.stderr)
        return 130


def end_in_words(advice: Callable[[BaseException], str] = lambda error: "") -> None:
    """Make a running nnU-Net command end with one line instead of a traceback for errors of ours.

    Errors without a message of ours keep their traceback, and so do all errors if NNUNET_SSP_TRACEBACK is set.

    Args:
        advice: Returns what to do about an error of nnU-Net's, to be the last line below its traceback; may be empty.
    """
    if Path(sys.argv[0]).name.startswith("nnUNetv2_") and sys.excepthook is sys.__excepthook__:
        sys.excepthook = partial(_end, advice=advice)


def _end(
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    advice: Callable[[BaseException], str],
) -> None:
    if not os.environ.get("NNUNET_SSP_TRACEBACK") and _is_in_words(error, trace):
        print(f"error: {in_words(error)}", file=sys.stderr)
        return
    sys.__excepthook__(kind, error, trace)
    if said := advice(error):
        print(f"\nerror: {said}", file=sys.stderr)


def _is_in_words(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether we raised the error, or the system did below a call of ours."""
    ours, raised = False, False
    while trace is not None:
        here = str(trace.tb_frame.f_globals.get("__name__", "")).startswith("nnunet_ssp.")
        line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        ours, raised = ours or here, here and line.lstrip().startswith("raise ")
        trace = trace.tb_next
    return isinstance(error, ERRORS) and (raised or (ours and isinstance(error, OSError)))
