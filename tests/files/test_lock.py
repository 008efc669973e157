from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nnunet_ssp.files import lock
from nnunet_ssp.files.lock import LOCK, holder_of, locked
from tests.holders import held, leave_lock

linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs Linux's /proc")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_loser_learns_who_holds_it(tmp_path):
    with held(tmp_path) as holder:
        since = json.loads((tmp_path / LOCK).read_text())["since"]
        said = (
            rf"{re.escape(str(tmp_path))} is in use by `-c {re.escape(str(tmp_path))}` \(process {holder.pid} on "
            rf"{re.escape(lock.socket.gethostname())}, since {since}, last sign of life \d s ago\)\. Run this again"
        )
        with pytest.raises(RuntimeError, match=said), locked(tmp_path):
            raise AssertionError
        holder.communicate()
    with locked(tmp_path) as taken:
        assert taken and names(tmp_path) == [LOCK]
    assert names(tmp_path) == []


@linux
@pytest.mark.parametrize("links", [True, False])
def test_a_killed_process_leaves_no_lock_behind(tmp_path, monkeypatch, links):
    if not links:
        forbid_links(monkeypatch)
    leave_lock(tmp_path)
    assert holder_of(tmp_path) is None
    with locked(tmp_path) as taken:
        assert taken
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")  # as on FAT

    monkeypatch.setattr(os, "link", link)


@linux
def test_a_machine_with_another_name_is_the_same(tmp_path, monkeypatch):
    boot, space = lock._machine()[1:]
    file = leave_lock(tmp_path, host="before", boot=boot)
    with locked(tmp_path) as taken:
        assert taken
    # Where the system does not tell, its name counts.
    monkeypatch.setattr(lock, "_machine", lambda: ("after", "", space))
    leave_lock(tmp_path, host="before", boot="", space=space)
    with pytest.raises(RuntimeError, match="nobody can tell"), locked(tmp_path):
        raise AssertionError
    assert file.is_file()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_permissions_has_locks(tmp_path, monkeypatch, number):
    def chmod(path: Path, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "chmod", chmod)
    with locked(tmp_path) as taken:
        assert taken and names(tmp_path) == [LOCK]


def test_a_folder_that_its_holder_removes_is_made_anew(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    with held(folder) as holder:

        def leave() -> None:
            holder.communicate()
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()

        threading.Timer(0.7, leave).start()
        with locked(folder, wait=60, create=True) as taken:
            assert taken and names(folder) == [LOCK]
    folder.rmdir()
    with pytest.raises(FileNotFoundError), locked(folder):
        raise AssertionError


@linux
def test_a_server_s_clock_counts_for_what_is_swept(tmp_path, monkeypatch):
    """Another process is just taking a lock; this machine's clock is an hour ahead."""
    taking = tmp_path / f"{LOCK}-{'e' * 16}"
    taking.write_text("{")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    with locked(tmp_path):
        assert taking.is_file()


@linux
def test_a_number_that_was_given_to_another_process_does_not_count(tmp_path):
    leave_lock(tmp_path, pid=os.getppid())
    with locked(tmp_path) as taken:
        assert taken


@linux
@pytest.mark.parametrize("error", [None, PermissionError, ProcessLookupError, OverflowError])
def test_a_process_that_proc_hides_is_not_dead(tmp_path, monkeypatch, error):
    """With `hidepid=2` there is nothing in /proc of other users' processes."""
    file = leave_lock(tmp_path)
    pid = json.loads(file.read_text())["pid"]

    def kill(number: int, signal: int) -> None:
        assert (number, signal) == (pid, 0)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    if error in (None, PermissionError):
        with pytest.raises(RuntimeError, match=f"process {pid} on"), locked(tmp_path):
            raise AssertionError
        assert file.is_file()
    else:
        with locked(tmp_path) as taken:
            assert taken


@linux
def test_a_process_that_nobody_has_waited_for_is_dead(tmp_path):
    with held(tmp_path) as holder:
        os.kill(holder.pid, 9)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # ended, still a zombie
        with locked(tmp_path) as taken:
            assert taken


@pytest.mark.parametrize(
    "place",
    [
        {"host": "node17"},
        {"host": "node17", "boot": "other"},
        {"space": "pid:[1]"},
        {"boot": "other"},  # beats after this machine was started: another machine of the same name
    ],
)
def test_a_process_of_another_machine_is_never_declared_dead(tmp_path, place):
    file = leave_lock(tmp_path, **place)
    os.utime(file, (time.time() - 3600, time.time() - 3600))
    if place.get("boot") and "host" not in place:
        file.touch()
    said = rf"nobody can tell whether a process there is alive.*delete {re.escape(str(file))}"
    with pytest.raises(RuntimeError, match=said), locked(tmp_path):
        raise AssertionError
    with pytest.raises(RuntimeError, match=said), locked(tmp_path, wait=0.1):
        raise AssertionError
    file.unlink()
    with locked(tmp_path) as taken:
        assert taken


@linux
def test_a_process_from_before_the_machine_was_started_is_dead(tmp_path):
    file = leave_lock(tmp_path, boot="the one before")
    os.utime(file, (lock._booted() - 60,) * 2)
    with locked(tmp_path) as taken:
        assert taken


def test_waiting_for_another_machine_ends_with_its_signs_of_life(tmp_path):
    file = leave_lock(tmp_path, host="node17")
    os.utime(file, (time.time() - 3600,) * 2)
    with (
        pytest.raises(RuntimeError, match="last sign of life 60 min ago"),
        locked(tmp_path, wait=1e9),
    ):
        raise AssertionError


def test_who_waits_says_so_once(tmp_path, capsys):
    with held(tmp_path) as holder:
        threading.Timer(0.7, holder.kill).start()
        with locked(tmp_path, wait=60, saying="waits for another") as taken:
            assert taken
    assert capsys.readouterr().out == "waits for another\n"


def test_a_holder_may_take_it_again(tmp_path):
    with locked(tmp_path), locked(tmp_path) as again:
        assert again
        assert (tmp_path / LOCK).is_file()
    assert names(tmp_path) == []


def test_a_holder_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.05)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_only_the_own_lock_is_given_back(tmp_path):
    """Somebody deleted it by hand, and another process has it now."""
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        file = leave_lock(tmp_path, host="node17")
    assert json.loads(file.read_text())["host"] == "node17"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 4}', "\xff"])
def test_a_damaged_lock_is_said_to_be_one(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "SECONDS_TO_WRITE", 0.0)
    (tmp_path / LOCK).write_bytes(content.encode("latin-1"))
    with (
        pytest.raises(RuntimeError, match=r"ssp-lock says that .* not by whom: it is damaged"),
        locked(tmp_path),
    ):
        raise AssertionError


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_is_read_only_has_no_lock(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with locked(tmp_path) as taken:
            assert not taken
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_used_unless_another_holds_it(
    tmp_path, monkeypatch, number
):
    file = leave_lock(tmp_path, host="node17")

    def refuse(file: Path, holder: lock.Holder) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_create", refuse)
    with pytest.raises(RuntimeError, match="node17"), locked(tmp_path):
        raise AssertionError
    file.unlink()
    with locked(tmp_path) as taken:
        assert not taken


def test_a_full_disk_is_not_taken_for_a_lock(tmp_path, monkeypatch):
    def write(path: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(OSError, match="No space left"), locked(tmp_path):
        raise AssertionError


def test_a_link_whose_success_the_server_failed_to_report_counts(tmp_path, monkeypatch):
    link = os.link

    def lossy(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", lossy)
    with locked(tmp_path) as taken:
        assert taken and names(tmp_path) == [LOCK]


def test_a_folder_made_for_its_lock_goes_with_it(tmp_path):
    with locked(tmp_path / "new" / "one", create=True) as taken:
        assert taken
    assert not (tmp_path / "new" / "one").exists()
    with locked(tmp_path / "new" / "two", create=True):
        (tmp_path / "new" / "two" / "file").touch()
    assert names(tmp_path / "new" / "two") == ["file"]


TAKE = """
import sys, time
from pathlib import Path
from nnunet_ssp.files.lock import locked
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
with locked(folder, wait=60):
    try:
        (folder / "inside").touch(exist_ok=False)
        time.sleep(0.02)
        (folder / "inside").unlink()
    except OSError:
        print("two at a time", flush=True)
"""


@linux
def test_of_many_that_find_a_dead_holder_one_at_a_time_takes_over(tmp_path):
    leave_lock(tmp_path)
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(len(takers)) as pool:
        said = list(pool.map(lambda taker: taker.communicate("go\n", timeout=100)[0], takers))
    assert said == [""] * len(takers)
    assert all(taker.returncode == 0 for taker in takers)
    assert names(tmp_path) == []


@linux
def test_what_a_process_left_that_was_killed_while_it_took_over_is_removed(tmp_path):
    dead = json.loads(leave_lock(tmp_path).read_text())
    heir = {**dead, "token": "f" * 16}
    (tmp_path / f"{LOCK}-{dead['token'][:8]}-dead").write_text(json.dumps(heir))
    (tmp_path / f"{LOCK}-{'e' * 16}").write_text("{")
    os.utime(tmp_path / f"{LOCK}-{'e' * 16}", (0, 0))
    with locked(tmp_path):
        assert names(tmp_path) == [LOCK]


def test_without_proc_the_system_is_asked_for_a_process(monkeypatch):
    """As on macOS."""
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda p: "/proc/" not in str(p) and real(p))
    said = {os.getpid(): "S    Mon Nov 30 10:00:00 2026\n", 7: "Z    Mon Nov 30 10:00:00 2026\n"}

    def ps(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert words[:3] == ["ps", "-o", "stat=,lstart="]
        return subprocess.CompletedProcess(words, 0, said.get(int(words[-1]), ""))

    monkeypatch.setattr(subprocess, "run", ps)
    assert lock._started(os.getpid()) == "Mon Nov 30 10:00:00 2026"
    assert lock._started(7) == lock._started(8) == ""
