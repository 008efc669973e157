from __future__ import annotations

import errno
import subprocess
import sys
from argparse import ArgumentTypeError

import pytest

from nnunet_ssp.console import ERRORS, Stopped, decimal, in_words, run_command, whole


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3), ("a path", 0)])
def test_the_status_is_the_commands(result: object, status: int):
    assert run_command(lambda: result) == status


@pytest.mark.parametrize("text", ["\u0662", "1_0", "", " 1", "1.0", "0x1", "9" * 19, "-", "1\n"])
def test_whole_numbers_are_written_as_such(text: str):
    assert (whole("12"), whole("-3"), whole("007")) == (12, -3, 7)
    with pytest.raises(ArgumentTypeError, match="is no whole number"):
        whole(text)


@pytest.mark.parametrize("text", ["\u0662.5", "1_0.5", "nan", "inf", "", ".", "1e999", "0x1p3"])
def test_numbers_are_written_as_such(text: str):
    assert [decimal(t) for t in ("0.5", "1.", ".5", "2", "1e-3")] == [0.5, 1, 0.5, 2, 0.001]
    with pytest.raises(ArgumentTypeError, match="is no number"):
        decimal(text)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("NNUNET_SSP_TRACEBACK", raising=False)
    assert run_command(lambda: fail(error("x: wrong."))) == 1
    assert capsys.readouterr().err == "error: x: wrong.\n"
    monkeypatch.setenv("NNUNET_SSP_TRACEBACK", "1")
    with pytest.raises(error, match="x: wrong"):
        run_command(lambda: fail(error("x: wrong.")))


def test_an_interruption_says_what_continues(capsys: pytest.CaptureFixture[str]):
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert "convert, prepare and study go on where they stopped" in capsys.readouterr().err


def test_other_errors_are_ours_and_show_where():
    with pytest.raises(KeyError):
        run_command(lambda: fail(KeyError("bug")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), "a.csv: no space left."),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left."),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: permission denied."),
        (OSError("a: our own words."), "a: our own words."),
        (FileNotFoundError("a: no such folder."), "a: no such folder."),
        (ValueError("a: wrong."), "a: wrong."),
    ],
)
def test_errors_of_the_system_name_the_file(error: Exception, words: str):
    assert in_words(error) == words


def test_the_end_of_a_training_is_one_line_below_any_command(capsys):
    """Of a program that catches nothing, of ours, and for who waits for errors."""
    code = "from nnunet_ssp.console import Stopped; raise Stopped('no space left')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (1, "no space left\n")

    def stop() -> None:
        raise Stopped("no space left")

    assert run_command(stop) == 1
    assert capsys.readouterr().err == "error: no space left\n"
    with pytest.raises(RuntimeError, match="no space left"):
        stop()
