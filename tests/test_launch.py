from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from nnunet_ssp.launch import (
    TRAINERS_VARIABLE,
    choose_device,
    device_flag,
    find_command,
    last_lines,
    run_logged,
    trainers_line,
    training_command,
    validating_command,
    with_trainers,
)

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="looks processes up in /proc"
)


def test_device(monkeypatch):
    for cuda in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert choose_device(None) == ("cuda" if cuda else "cpu")
        assert choose_device("cpu") == "cpu"
    with pytest.raises(
        ValueError, match=r"`--device` \(=cuda\) must be one PyTorch finds here: cpu"
    ):
        choose_device("cuda")


def test_commands_are_those_of_this_environment(monkeypatch, tmp_path):
    assert find_command("python") == sys.executable
    assert Path(find_command("nnUNetv2_train")).parent == Path(sys.executable).parent
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(FileNotFoundError, match=r"The command nnUNetv2_train is not in "):
        find_command("nnUNetv2_train")


def test_commands_of_an_installation_for_one_user_are_found(monkeypatch):
    folder = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    monkeypatch.setattr(shutil, "which", lambda name, path: path)
    for enabled in (True, False):
        monkeypatch.setattr(site, "ENABLE_USER_SITE", enabled)
        assert (folder in find_command("nnUNetv2_train").split(os.pathsep)) == enabled


def test_what_a_command_says_goes_to_its_log(tmp_path):
    code = "import os, sys; print(os.environ['GREETING']); print('to you', file=sys.stderr); sys.exit(3)"
    calls = []
    with open(tmp_path / "log", "wb", buffering=0) as log:
        log.write(b"$ python\n")
        command = ("python", "-uc", f"import time; time.sleep(1.2); {code}")
        status = run_logged(command, log, {"GREETING": "hello"}, lambda: calls.append(1))
    assert status == 3
    assert len(calls) >= 1
    assert last_lines(tmp_path / "log", 9) == "$ python\nhello\nto you"
    assert last_lines(tmp_path / "log", 1) == "to you"


def _processes_with(word: str) -> list[str]:
    """Command lines of running processes that contain a word."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # has ended meanwhile
    return [line for line in lines if word in line]


WORKER = """
import sys, time
with open(sys.argv[1], "w", 1) as pipe:
    print("started", file=pipe)
    time.sleep(600)
"""
PROGRAM = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}, sys.argv[1]])"


def wait_until_gone(word: str) -> None:
    deadline = time.monotonic() + 20  # a killed process may still be going on a busy machine
    while _processes_with(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes_with(word)


@needs_proc
def test_an_interruption_ends_the_command_and_its_workers(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def interrupt() -> None:
        with open(pipe) as end:
            assert end.readline() == "started\n"
        assert len(_processes_with(str(pipe))) == 3  # with the guard
        raise KeyboardInterrupt

    with open(tmp_path / "log", "wb") as log, pytest.raises(KeyboardInterrupt):
        run_logged(("python", "-c", PROGRAM, str(pipe)), log, os.environ, interrupt)
    wait_until_gone(str(pipe))


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_the_command_and_its_workers_end_when_their_parent_is_killed(tmp_path, number):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = "import os, signal, sys; from nnunet_ssp.launch import run_logged; "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # which nohup sets otherwise
    code += "run_logged(sys.argv[1:], open(os.devnull, 'wb'), os.environ)"
    command = [sys.executable, "-c", code, "python", "-c", PROGRAM, str(pipe)]
    with subprocess.Popen(command) as parent:
        with open(pipe) as end:
            assert end.readline() == "started\n"
        parent.send_signal(number)
    wait_until_gone(str(pipe))


SAVES = """
import os, signal, sys, time
def note(number, frame):
    with open(sys.argv[1], "a") as file:
        print(int(number), file=file)
    if number == signal.SIGTERM:
        sys.exit(143)
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGUSR1, note)
open(sys.argv[1] + ".begun", "w").close()
while True:
    time.sleep(0.05)
"""


@needs_proc
def test_a_command_is_asked_to_end_first_and_signals_are_passed_on(tmp_path):
    file = tmp_path / "noted"

    def watch() -> int | None:
        if file.is_file():
            raise SystemExit(143)
        return signal.SIGUSR1 if file.with_name("noted.begun").is_file() else None

    with open(tmp_path / "log", "wb") as log, pytest.raises(SystemExit):
        run_logged(("python", "-c", SAVES, str(file)), log, os.environ, watch)
    noted = file.read_text().split()
    assert noted[0] == str(int(signal.SIGUSR1)) and noted[-1] == str(int(signal.SIGTERM))
    wait_until_gone(str(file))


def test_a_command_that_a_signal_ends_has_failed():
    code = "import os; os.kill(os.getpid(), 9)"
    with open(os.devnull, "wb") as log:
        assert run_logged(("python", "-c", code), log, os.environ) == 128 + 9


def test_the_line_for_each_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Quotes in a folder's name survive; what a shell is there is asked."""
    monkeypatch.setenv(TRAINERS_VARIABLE, "/it's/mine")
    value = with_trainers()
    assert value.endswith("/it's/mine")
    assert trainers_line("powershell") == (
        f"$env:{TRAINERS_VARIABLE} = '{value.replace(chr(39), 2 * chr(39))}'"
    )
    assert trainers_line("cmd") == f'set "{TRAINERS_VARIABLE}={value}"'
    for shell in ("sh", "bash", "zsh", "fish"):
        if shutil.which(shell) is None:
            continue
        line = trainers_line("fish" if shell == "fish" else "sh")
        said = subprocess.run(
            [shell, "-c", f'{line}\nprintf "%s" "${TRAINERS_VARIABLE}"'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == value


def test_a_training_command_names_plans_that_are_there(tmp_path: Path):
    folder = tmp_path / "Dataset007_Heart"
    end = f"nnUNetv2_train 7 2d 3 {{}}-tr nnUNetTrainerScratch{device_flag()}"
    command = training_command(folder, 3, "nnUNetTrainerScratch")
    assert command == f"nnunet-ssp prepare 7 && {end.format('')}"
    folder.mkdir()
    (folder / "small.json").write_text('{"configurations": {}}')
    (folder / "dataset.json").write_text("{}")
    (folder / "splits_final.json").write_text("[]")
    assert training_command(folder, 3, "nnUNetTrainerScratch") == end.format("-p small ")
    (folder / "wide.json").write_text('{"configurations": {}}')
    assert training_command(folder, 3, "nnUNetTrainerScratch") == end.format("-p small ")
    (folder / "nnUNetPlans.json").write_text('{"configurations": {}}')
    assert training_command(folder, 3, "nnUNetTrainerScratch") == end.format("")
    (folder / "nnUNetPlans_2d").mkdir()  # an interrupted prepare
    (folder / "wide_2d_slices").mkdir()
    (folder / "wide_2d_slices" / "index.json").write_text("{}")
    assert training_command(folder, 3, "nnUNetTrainerScratch") == end.format("-p wide ")
    (folder / "nnUNetPlans_2d" / "case.pkl").touch()
    assert training_command(folder, 3, "nnUNetTrainerScratch") == end.format("")


def test_no_training_is_looked_for_above_the_root_of_all_folders():
    """A container's predictions may lie in `/data/validation`."""
    assert [validating_command(Path(folder)) for folder in ("/", "/data", "/fold_0")] == [""] * 3
