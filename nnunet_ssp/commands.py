"""How nnU-Net's commands and ours are run: the folder of our trainers, the environment, where the commands are."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import IO

from nnunet_ssp.cases import NNUNET_FOLDERS
from nnunet_ssp.parallel import small_machine_environment

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
TRAINERS_VARIABLE = "nnUNet_extTrainer"  # nnU-Net's spelling


def trainers_folder() -> Path:
    """The folder of our trainers, in an editable and in a regular install."""
    return Path(str(files("nnunet_ssp.trainers")))


def trainer_paths() -> list[str]:
    """The folders that `nnUNet_extTrainer` names."""
    value = os.environ.get(TRAINERS_VARIABLE, "")
    return [path for path in value.split(os.pathsep) if path.strip()]


def with_trainers() -> str:
    """The value of `nnUNet_extTrainer` with our trainers, besides those that it names."""
    ours = trainers_folder()
    others = [path for path in trainer_paths() if Path(path) != ours]
    return os.pathsep.join([str(ours), *others])


def command_environment(output: Path | None = None, here: bool = True) -> dict[str, str]:
    """The environment for many commands: the user's, with our trainers and what suits the machine.

    Args:
        output: Folder for nnU-Net's three folders; None keeps the user's.
        here: The commands run on this machine.
    """
    environment = {**os.environ, **(small_machine_environment(os.environ) if here else {})}
    for name in NNUNET_FOLDERS:  # absolute, as the commands may run in another folder
        if output is not None:
            environment[name] = str((output / name).resolve())
        elif environment.get(name):
            environment[name] = str(Path(environment[name]).resolve())
    environment[TRAINERS_VARIABLE] = with_trainers()
    environment["PYTHONUNBUFFERED"] = "1"  # logs can be followed
    environment.pop("nnUNet_ssp_settings", None)
    return environment


def environment_lines(output: Path) -> list[str]:
    """The shell lines that lead nnU-Net to the folders in `output` and to our trainers."""
    root = (
        shlex.quote(str(output)) if output.is_absolute() else f'"$PWD"/{shlex.quote(str(output))}'
    )
    return [
        *(f"export {name}={root}/{name}" for name in NNUNET_FOLDERS),
        'eval "$(nnunet-ssp env)"',
    ]


def choose_device(device: str | None) -> str:
    """The device asked for, or the GPU when there is one.

    Raises:
        ValueError: The device asked for is not there.
    """
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device is None:
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(device):
        found = ", ".join(name for name, available in there.items() if available)
        raise ValueError(f"`--device` (={device}) must be one PyTorch finds here: {found}.")
    return device


def find_command(name: str) -> str:
    """Path of a command of this Python environment, whether or not it is activated.

    Raises:
        FileNotFoundError: The environment has no such command.
    """
    if name == "python":
        return sys.executable
    # Beside the interpreter as it was called: its link's target is outside a virtual environment.
    user = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    folders = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"), user)
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise FileNotFoundError(f"The command {name} is not in {' or '.join(folders)}.")
    return found


def run_logged(
    command: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str],
    watch: Callable[[], object] = lambda: None,
) -> int:
    """Run a command to its end; whatever ends this process before ends the command and its workers, too.

    Args:
        command: Its words; the first is a command of this Python environment.
        log: Takes what it says.
        environment: Its environment variables.
        watch: Called twice a second while it runs.

    Returns:
        Its exit status.

    Raises:
        FileNotFoundError: The environment has no such command.
    """
    process = subprocess.Popen(
        [find_command(command[0]), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,  # so that its workers can be ended with it
        preexec_fn=_end_with_parent(),
    )
    try:
        while not _ended(process, seconds=0.5):
            watch()
    except BaseException:
        _end(process)
        raise
    return process.returncode


def last_lines(log: Path, number: int) -> str:
    """The end of a log, to be shown when its command failed."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=number)).rstrip()


def _end_with_parent() -> Callable[[], object] | None:
    """What a command calls before it begins, so that Linux ends it when this process is killed."""
    if sys.platform != "linux":
        return None
    system = ctypes.CDLL(None)
    return lambda: system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the workers that it started; nnU-Net's would go on alone."""
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
