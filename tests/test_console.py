from __future__ import annotations

import errno
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import pytest

from nnunet_ssp.console import (
    ERRORS,
    GOING_ON,
    IdOrName,
    NewName,
    Paced,
    Stopped,
    count_of,
    decimal,
    in_words,
    nearest,
    path,
    run_command,
    some,
    whole,
    writing_failed,
)


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, "the same command goes on where it stopped") for name in GOING_ON),
        *((name, "run it again") for name in ("evaluate", "inspect", "")),
    ],
)
def test_an_interruption_says_what_continues(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert run_command(lambda: fail(KeyboardInterrupt()), name) == 130
    assert capsys.readouterr().err == f"interrupted; {said}\n"


def test_other_errors_are_ours_and_show_where():
    with pytest.raises(KeyError):
        run_command(lambda: fail(KeyError("bug")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), "a.csv: no space left."),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left."),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            "/a: permission denied. Choose a place of your own, or have this one opened to you.",
        ),
        (OSError("a: our own words."), "a: our own words."),
        (FileNotFoundError("a: no such folder."), "a: no such folder."),
        (ValueError("a: wrong."), "a: wrong."),
    ],
)
def test_errors_of_the_system_name_the_file(error: Exception, words: str):
    assert in_words(error) == words


def test_the_end_of_a_training_is_one_line_below_any_command(capsys):
    """The traceback is whole in programs that catch nothing, in ours, and for callers that wait for errors."""
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


PROGRAM = """
import sys
from nnunet_ssp.console import end_in_words
from nnunet_ssp.files.names import must_be_plain
sys.argv[0] = {program!r}
end_in_words()
{failing}
"""


@pytest.mark.parametrize("program", ["/bin/nnUNetv2_train", "nnUNetv2_train.exe", "notebook"])
@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ("must_be_plain('../x', 'fold')", "`fold` (=../x) must be"),
        (
            "from nnunet_ssp.files.atomic import atomic_write\n"
            "with atomic_write('/proc/nowhere/x'): pass",
            "/proc/nowhere: ",
        ),
        ("must_be_plain()", None),  # a fault of the program's
        ("raise ValueError('of somebody else')", None),
    ],
)
def test_errors_of_ours_are_one_line_below_nnunets_commands(
    program: str, failing: str, words: str | None, monkeypatch: pytest.MonkeyPatch
):
    code = PROGRAM.format(program=program, failing=failing)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    if words is None or program == "notebook":
        assert done.stderr.startswith("Traceback (most recent call last)")
        return
    assert done.stderr.startswith(f"error: {words}")
    assert done.stderr.count("\n") == 1
    monkeypatch.setenv("NNUNET_SSP_TRACEBACK", "1")
    whole = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert whole.stderr.startswith("Traceback (most recent call last)")


def test_counts_agree_with_their_noun():
    assert [count_of(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [count_of(n, "hash", "hashes") for n in (1, 2)] == ["1 hash", "2 hashes"]


def test_long_lists_say_how_many_there_are():
    assert some("ab") == "a, b"
    assert some(list("abc"), limit=3) == "a, b, c"
    assert some(list("cab"), limit=2) == "c, a, ... (3 in all)"
    assert some([]) == ""


def test_sets_are_listed_in_order():
    assert some({"b", "c", "a"}, limit=2) == "a, b, ... (3 in all)"
    assert some({"b": 1, "a": 2}.keys()) == "a, b"


@pytest.mark.parametrize(
    ("word", "number", "name"),
    [("114", 114, "Cine"), ("Dataset114_My_Cine", 114, "My_Cine"), ("Dataset009_X", 9, "X")],
)
def test_a_new_dataset_is_named_by_its_id_or_in_full(word: str, number: int, name: str):
    parser = ArgumentParser()
    parser.add_argument("-d", dest="dataset_id", action=IdOrName)
    parser.add_argument("--name", action=NewName, default="Cine")
    parsed = parser.parse_args(["-d", word])
    assert (parsed.dataset_id, parsed.name) == (number, name)
    assert parser.parse_args(["-d", "114", "--name", "Other"]).name == "Other"
    assert parser.parse_args(["-d", word, "--name", name]).name == name


@pytest.mark.parametrize(
    "words",
    [
        *("-d Dataset114_A --name B", "--name B -d Dataset114_A"),
        *("-d Dataset114_A --name Cine", "--name Cine -d Dataset114_A"),  # the default, but typed
    ],
)
def test_a_new_dataset_has_one_name(words: str, capsys: pytest.CaptureFixture[str]):
    parser = ArgumentParser()
    parser.add_argument("-d", dest="dataset_id", action=IdOrName)
    parser.add_argument("--name", action=NewName, default="Cine")
    with pytest.raises(SystemExit):
        parser.parse_args(words.split())
    assert "the new dataset cannot be called both" in capsys.readouterr().err


def test_what_is_neither_id_nor_name_is_refused(capsys: pytest.CaptureFixture[str]):
    parser = ArgumentParser()
    parser.add_argument("-d", dest="dataset_id", action=IdOrName)
    with pytest.raises(SystemExit):
        parser.parse_args(["-d", "Dataset14_X"])
    assert "is no whole number such as 12, nor a name such as Dataset114" in capsys.readouterr().err


def test_a_tilde_that_the_shell_left_is_the_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert path("~/cine") == Path("/home/of/mine/cine")
    assert path("a/~b") == Path("a/~b")


def test_a_missing_right_is_not_called_a_full_disk():
    denied = writing_failed(Path("x"), PermissionError(errno.EACCES, "Permission denied", "y"))
    assert "You may not write there" in denied and "space" not in denied
    full = writing_failed(Path("x"), OSError(errno.ENOSPC, "No space left on device"))
    assert "Once there is space" in full
    for said in (denied, full):
        assert said.endswith("run the same command again: it continues where it stopped.")


def test_the_nearest_names_are_offered():
    assert nearest("5fold-1", ["5-fold-0", "paper", "5-fold-1"]).startswith(" Perhaps 5-fold-1")
    assert nearest("x", ["paper"]) == ""
    trainers = ["nnUNetTrainer", "nnUNetTrainerMIMPretrain", "nnUNetTrainerPCLPretrain"]
    assert nearest("nnUNetTrainerMIM", trainers) == " Perhaps nnUNetTrainerMIMPretrain?"
    assert nearest("mimpretrain", trainers) == " Perhaps nnUNetTrainerMIMPretrain?"
    assert nearest("", trainers) == ""


def test_a_long_work_says_how_far_it_is_every_15_seconds(capsys):
    now = [100.0]
    tell = Paced(clock=lambda: now[0])
    for second in range(46):
        now[0] = 100.0 + second
        tell(f"second {second}")
    assert capsys.readouterr().err == "second 15\nsecond 30\nsecond 45\n"
