"""One process at a time in a folder, on one machine or on several that share the folder.

A lock is a file that says who holds it. It appears as a whole or not at all: it is a hard link, which network file
systems make atomically. So it needs no locks of the system, which not every file system has. A dead holder on this
machine is recognised and replaced. A holder on another machine may be alive or not: it keeps its lock until somebody
removes the file by hand, as the message explains.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from nnunet_ssp.files.contents import read_json

LOCK = ".ssp-lock"  # nnU-Net takes no file of this name for a case
SECONDS_BETWEEN_BEATS = 15.0
SECONDS_WITHOUT_BEAT = 20 * SECONDS_BETWEEN_BEATS  # after which waiting for another machine ends
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_WAIT = 5.0  # for a command that is soon done
SECONDS_TO_WRITE = 5.0  # at most between the creation of a lock and its content
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: Name of its machine.
        boot: The machine's identity from one boot to the next; empty where the system has none.
        space: The namespace of its process id (a container has its own).
        pid: Its process id.
        started: Its start time, as the system tells; the id of a dead process may be given to another.
        since: Local time at which it took the lock.
        command: Its command line.
        token: Unique to each lock that was ever taken.
    """

    host: str
    boot: str
    space: str
    pid: int
    started: str
    since: str
    command: str
    token: str

    @property
    def is_here(self) -> bool:
        """Whether this process can see the holder, whose machine may have got another name since."""
        host, boot, space = _machine()
        return (self.boot, self.space) == (boot, space) and (
            bool(boot and space) or self.host == host
        )

    @property
    def is_this(self) -> bool:
        """Whether the holder is this process."""
        return self.is_here and (self.pid, self.started) == (os.getpid(), _started(os.getpid()))

    def has_died(self, last_beat: float) -> bool:
        """Whether the holder has certainly ended.

        Args:
            last_beat: Time of its last sign of life, in s since 1970.
        """
        if self.is_here:
            started = _started(self.pid)
            return started is not None and started != self.started
        host, boot, _ = _machine()
        if self.host == host and self.boot and boot and self.boot != boot:
            return last_beat < _booted()  # this machine, before it was started again
        return False


@contextmanager
def locked(
    folder: Path,
    *,
    wait: float = 0.0,
    saying: str = "",
    create: bool = False,
    watch: Callable[[], object] = lambda: None,
) -> Iterator[bool]:
    """Hold a folder's lock; a process that holds it already may take it again.

    Args:
        folder: The folder, which gets the file `.ssp-lock`.
        wait: Seconds to wait for another holder.
        saying: Text to print before waiting.
        create: Create a folder that is missing, and remove it again if it is still empty at the end.
        watch: Called while it waits; what it raises ends the waiting.

    Yields:
        Whether the lock is held. A folder that this process may not write to gets no lock, and needs none.

    Raises:
        RuntimeError: Another process holds the lock; says which, and what to do.
    """
    created = create and not folder.is_dir()
    if created:
        folder.mkdir(parents=True, exist_ok=True)
    present = holder_of(folder)
    if present is not None and present.is_this:
        yield True
        return
    file = folder / LOCK
    holder = _take(file, wait, saying, watch, create)
    if holder is None:
        yield False
        return
    stop = threading.Event()
    threading.Thread(target=_keep_alive, args=(file, holder, stop), daemon=True).start()
    try:
        _sweep(folder)
        yield True
    finally:
        stop.set()
        if holder.pid == os.getpid():  # not a fork of the holder
            _release(file, holder)
            if created:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def locked_dataset(*folders: Path, create: Path | None = None) -> Iterator[None]:
    """Hold the locks of those folders of a dataset that exist.

    Args:
        folders: Those in nnUNet_raw, then in nnUNet_preprocessed; otherwise two processes could wait for each other.
        create: The folder to create.

    Raises:
        RuntimeError: Another process holds one, and still does after some seconds.
    """
    with ExitStack() as stack:
        for folder in folders:
            if folder == create or folder.is_dir():
                saying = f"{folder} is in use, waiting for at most {SECONDS_TO_WAIT:.0f} s"
                held = locked(folder, wait=SECONDS_TO_WAIT, saying=saying, create=folder == create)
                stack.enter_context(held)
        yield


def holder_of(folder: Path) -> Holder | None:
    """Return the process that holds a folder's lock, alive or on another machine; None without one."""
    found = _read_lock(folder / LOCK)
    return None if found is None or found[0].has_died(found[1]) else found[0]


def in_use(folder: Path, holder: Holder, last_beat: float | None = None) -> str:
    """Say who holds a lock, and what to do."""
    beat = "" if last_beat is None else f", last sign of life {_ago(last_beat)}"
    who = f"process {holder.pid} on {holder.host}, since {holder.since}{beat}"
    said = f"{folder} is in use by `{holder.command}` ({who})."
    if holder.is_here:
        return f"{said} Run this again when it has ended."
    return (
        f"{said} From this machine nobody can tell whether a process there is alive: if it has ended, delete "
        f"{folder / LOCK} and run this again."
    )


# -- taking and giving back ------------------------------------------------------------------------


def _take(
    file: Path, wait: float, saying: str, watch: Callable[[], object], create: bool
) -> Holder | None:
    """Take a lock.

    Returns:
        This process as its holder; None where it may not write.

    Raises:
        RuntimeError: Another process holds the lock.
    """
    end = time.monotonic() + wait
    while True:
        me: Holder | None = _this_process()
        try:
            if me is not None and _create(file, me):
                return me
        except FileNotFoundError:
            if not create:
                raise
            # Its holder has removed the folder, which it had created.
            file.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            me = None
        found = _read_lock(file)
        if found is None or found[0].has_died(found[1]):
            if me is None:
                return None
            if found is not None:
                _bury(file, found[0])
            continue
        holder, beat = found
        lost = not holder.is_here and time.time() - beat > SECONDS_WITHOUT_BEAT
        if lost or time.monotonic() >= end:
            raise RuntimeError(in_use(file.parent, holder, beat))
        if saying:
            print(saying, flush=True)
            saying = ""
        watch()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _create(file: Path, holder: Holder) -> bool:
    """Create a lock unless there is one; return whether it was created."""
    content = json.dumps(asdict(holder), indent=2) + "\n"
    own = file.with_name(f"{LOCK}-{holder.token}")
    try:
        own.write_text(content, encoding="utf-8")
        with suppress(OSError):  # some file systems have no permissions
            own.chmod(0o644)  # others may see who refuses them, even where new files are private
        try:
            os.link(own, file)
        except FileExistsError:
            return False
        except OSError:
            # A network file system may report a failure although it made the link; others have no links.
            return own.stat().st_nlink == 2 or _create_exclusively(file, content)
        return True
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _create_exclusively(file: Path, content: str) -> bool:
    """Create a lock where the file system has no hard links."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return True


def _read_lock(file: Path) -> tuple[Holder, float] | None:
    """Return a lock's holder and the time of its last sign of life; None where there is no lock.

    Raises:
        RuntimeError: The file is no lock.
    """
    while True:
        try:
            return _parse_lock(file)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > SECONDS_TO_WRITE:
                    raise RuntimeError(
                        f"{file} says that {file.parent} is in use, but not by whom: it is damaged. If no other "
                        "nnunet-ssp or nnUNetv2_train works there, delete it and run this again."
                    ) from None
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _parse_lock(file: Path) -> tuple[Holder, float]:
    holder = Holder(**read_json(file, dict))
    texts = (value for name, value in asdict(holder).items() if name != "pid")
    if not isinstance(holder.pid, int) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{file}: no lock")
    return holder, file.stat().st_mtime


def _bury(file: Path, dead: Holder) -> None:
    """Remove the lock of a dead process, and nobody else's.

    Several processes may find it dead at the same time. The one that may remove it holds a second lock, which is named
    after the dead one's. Should its holder die, too, that lock is handled in the same way.
    """
    right = file.with_name(f"{LOCK}-{dead.token[:8]}-dead")
    while not _create(right, heir := _this_process()):
        found = _read_lock(right)
        if found is None:
            continue
        if found[0].has_died(found[1]):
            _bury(right, found[0])
        elif not found[0].is_here:
            raise RuntimeError(in_use(file.parent, *found).replace(str(file), str(right)))
        time.sleep(SECONDS_BETWEEN_LOOKS / 10)
    try:
        found = _read_lock(file)
        if found is not None and found[0].token == dead.token:
            file.unlink(missing_ok=True)
    finally:
        _release(right, heir)


def _release(file: Path, holder: Holder) -> None:
    """Give a lock back, unless somebody removed it by hand and another has taken it."""
    with suppress(OSError, RuntimeError):
        found = _read_lock(file)
        if found is not None and found[0].token == holder.token:
            file.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left while they took or buried a lock, which this one has just taken."""
    with suppress(OSError):
        now = (folder / LOCK).stat().st_mtime  # by the file system's clock, which a server may have
        for left in folder.glob(f"{LOCK}-*"):
            with suppress(OSError):
                outdated = now - left.stat().st_mtime > SECONDS_WITHOUT_BEAT
                with suppress(ValueError, TypeError, RecursionError):
                    holder, beat = _parse_lock(left)
                    outdated |= holder.has_died(beat)
                if outdated:
                    left.unlink()


def _keep_alive(file: Path, holder: Holder, stop: threading.Event) -> None:
    while not stop.wait(SECONDS_BETWEEN_BEATS):
        with suppress(OSError, RuntimeError):
            found = _read_lock(file)
            if found is not None and found[0].token == holder.token:
                os.utime(file)


# -- this process and its machine ------------------------------------------------------------------


def _this_process() -> Holder:
    host, boot, space = _machine()
    pid = os.getpid()
    return Holder(
        host,
        boot,
        space,
        pid,
        _started(pid) or "",
        datetime.now().isoformat(" ", "seconds"),
        _command_line(),
        secrets.token_hex(8),
    )


def _command_line() -> str:
    program, *arguments = getattr(sys, "argv", None) or ["python"]
    return shlex.join([Path(program).name or "python", *arguments])


@lru_cache(maxsize=1)
def _machine() -> tuple[str, str, str]:
    """Return this machine's name and boot, and the namespace of its process ids."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot, space


def _booted() -> float:
    """Return when this machine was started, in s since 1970; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0


def _started(pid: int) -> str | None:
    """Return when a process of this machine began, as the system writes it; empty for none, None if it is unknown."""
    if Path("/proc/self/stat").is_file():
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return "" if _is_gone(pid) else None  # hidepid=2 hides the processes of other users
        except OSError:
            return None
        # The name, in parentheses, may hold anything; state and starting time are fields 3 and 22.
        fields = text.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended
    if os.name != "posix":
        return None
    try:
        done = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
    except OSError:
        return None
    state, _, started = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _is_gone(pid: int) -> bool:
    """Whether there is certainly no process of this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _ago(moment: float) -> str:
    seconds = max(0, round(time.time() - moment))
    if seconds < 120:
        return f"{seconds} s ago"
    return f"{seconds // 60} min ago" if seconds < 7200 else f"{seconds // 3600} h ago"
