from __future__ import annotations

import subprocess
import sys

import pytest

from nnunet_ssp.study.lock import locked

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import sys
from pathlib import Path
from nnunet_ssp.study.lock import locked
with locked(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match="is in use by another process"),
        locked(tmp_path),
    ):
        raise AssertionError
    with locked(tmp_path) as held:
        assert held


def test_a_killed_process_gives_its_lock_back(tmp_path, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(RuntimeError), locked(tmp_path):
            raise AssertionError
        holder.kill()
        with locked(tmp_path, "waits"):  # at the most until the kill has come through
            pass
    assert capsys.readouterr().out in ("", "waits\n")


def test_who_waits_says_so(tmp_path, capsys, monkeypatch):
    calls = []

    def flock(stream, flags):
        calls.append(flags)
        if flags & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "waits for another"):
        assert capsys.readouterr().out == "waits for another\n"
    assert calls == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def flock(stream, flags):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as held:
        assert not held
