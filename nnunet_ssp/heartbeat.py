"""Signs of life: while a command has said nothing for a while, a thread of its own says that it is still at work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

SECONDS = 15.0  # of silence; with `LOOKS` nothing is silent for more than 20 s
LOOKS = 4.0  # seconds from one look at the clock to the next
# Commands that show their own progress, or whose output a shell or nnU-Net reads.
WITH_THEIR_OWN = ("env", "train", "demo")

_works: list[str] = []
_pauses: list[object] = []


@contextmanager
def work(what: str) -> Iterator[None]:
    """Name a piece of work that may take long, for signs of life; a gerund such as `loading PyTorch`."""
    _works.append(what)
    try:
        yield
    finally:
        _works.remove(what)


@contextmanager
def paused() -> Iterator[None]:
    """Give no signs of life meanwhile: other processes write to the terminal."""
    mark = object()
    _pauses.append(mark)
    try:
        yield
    finally:
        _pauses.remove(mark)


class Heartbeat:
    """Say that the work goes on whenever nothing was said for a while.

    Args:
        say: Writes a line.
        what: Returns what is being done, a gerund; empty if the last line says it.
        seconds: Longest silence.
        clock: Returns the time in seconds.

    Attributes:
        seconds: Longest silence.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        what: Callable[[], str] = lambda: _works[-1] if _works else "",
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._say, self._what, self._clock = say, what, clock
        # Times of the last line of others, and of the last line of anybody.
        self._heard = self._said = clock()
        self._speaking = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def heard(self) -> None:
        """Note that something else was said."""
        if not self._speaking:
            self._heard = self._said = self._clock()

    def beat(self) -> None:
        """Say that the work goes on, unless something was said lately."""
        now = self._clock()
        if _pauses:
            self.heard()
        elif now - self._said >= self.seconds:
            self._said, what = now, self._what()
            line = f"Still {what or 'at work'} ({now - self._heard:.0f} s)"
            self._speaking = True
            with suppress(OSError, ValueError):  # nobody reads any more
                self._say(line)
            self._speaking = False

    def _run(self) -> None:
        while not self._stop.wait(min(LOOKS, self.seconds)):
            self.beat()

    def __enter__(self) -> Heartbeat:
        self.heard()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(1)


class Overheard:
    """A stream that tells when something is written to it; in all else it is the stream.

    Args:
        stream: The stream.
        heard: Called before each writing.
    """

    def __init__(self, stream: Any, heard: Callable[[], None]) -> None:
        self._stream, self._tell = stream, heard

    def write(self, text: str) -> int:
        """Write to the stream, and tell it."""
        self._tell()
        return int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def signs_of_life(command: str) -> AbstractContextManager[object]:
    """Return the context in which a command of ours runs, with signs of life on stderr.

    Args:
        command: Its name; empty for none.
    """
    return nullcontext() if command in WITH_THEIR_OWN else _overhearing()


@contextmanager
def _overhearing() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        heartbeat = Heartbeat(lambda line: _above_bars(line, err))
        out, err = (Overheard(stream, heartbeat.heard) for stream in before)
        stack.callback(_restore, out, err, *before)
        sys.stdout, sys.stderr = out, err
        stack.enter_context(heartbeat)
        yield


def _restore(out: object, err: object, stdout: Any, stderr: Any) -> None:
    """Put the streams back, unless somebody else has replaced ours."""
    if sys.stdout is out:
        sys.stdout = stdout
    if sys.stderr is err:
        sys.stderr = stderr


def _above_bars(line: str, stream: Any) -> None:
    """Write a line above the bars of tqdm, if there are any."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None:
        print(line, file=stream, flush=True)
    else:
        tqdm.write(line, file=stream)
        stream.flush()
