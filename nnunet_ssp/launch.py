"""Launching nnU-Net's commands and ours: the folder of our trainers, the environment, the paths of commands."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import IO

from nnunet_ssp import guard
from nnunet_ssp.files.nnunet import names_of_plans
from nnunet_ssp.nnunet import NNUNET_FOLDERS
from nnunet_ssp.parallel import small_machine_environment
from nnunet_ssp.settings import ENVIRONMENT_VARIABLE, typed_before
from nnunet_ssp.warm import VARIABLE, WarmCommand, start_warm

NNUNET_PLANS = "nnUNetPlans"  # the name where none is given
# Of README's path without a GPU: patches of 128x128, or as small as the images.
SMALL_PLANS = "-gpu_memory_target 0.1 -overwrite_plans_name small"
SHELLS = ("sh", "fish", "powershell", "cmd")  # sh: also bash and zsh
TRAINERS_VARIABLE = "nnUNet_extTrainer"  # nnU-Net's spelling

# Not on Windows, which has no process groups.
GUARD = [sys.executable, "-I", guard.__file__] if hasattr(os, "killpg") else []
SECONDS_TO_END = 30  # after a signal: a training saves


def trainers_folder() -> Path:
    """Return the folder of our trainers, in an editable and in a regular install."""
    return Path(str(files("nnunet_ssp.trainers")))


def trainer_paths() -> list[str]:
    """Return the folders that `nnUNet_extTrainer` names."""
    value = os.environ.get(TRAINERS_VARIABLE, "")
    return [path for path in value.split(os.pathsep) if path.strip()]


def with_trainers() -> str:
    """Return the value of `nnUNet_extTrainer` with our trainers added."""
    ours = trainers_folder()
    others = [path for path in trainer_paths() if Path(path) != ours]
    return os.pathsep.join([str(ours), *others])


def trainers_line(shell: str) -> str:
    """Return the line that shows our trainers to nnU-Net's commands, for one of `SHELLS`."""
    value = with_trainers()
    if shell == "cmd":
        return f'set "{TRAINERS_VARIABLE}={value}"'
    if shell == "powershell":
        quoted = value.replace("'", "''")
        return f"$env:{TRAINERS_VARIABLE} = '{quoted}'"
    if shell == "fish":
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"set -gx {TRAINERS_VARIABLE} '{quoted}'"
    return f"export {TRAINERS_VARIABLE}={shlex.quote(value)}"


def command_environment(output: Path | None = None, here: bool = True) -> dict[str, str]:
    """Return the environment for commands: the user's, with our trainers and settings that suit the machine.

    Args:
        output: Folder for nnU-Net's three folders; None keeps the user's.
        here: Whether the commands run on this machine.
    """
    environment = {**os.environ, **(small_machine_environment(os.environ) if here else {})}
    for name in NNUNET_FOLDERS:  # absolute, as the commands may run in another folder
        if output is not None:
            environment[name] = str((output / name).resolve())
        elif environment.get(name):
            environment[name] = str(Path(environment[name]).resolve())
    environment[TRAINERS_VARIABLE] = with_trainers()
    environment["PYTHONUNBUFFERED"] = "1"  # logs can be followed
    environment.pop(ENVIRONMENT_VARIABLE, None)
    return environment


def environment_lines(output: Path) -> list[str]:
    """Return the shell lines that lead nnU-Net to the folders in `output` and to our trainers."""
    root = (
        shlex.quote(str(output)) if output.is_absolute() else f'"$PWD"/{shlex.quote(str(output))}'
    )
    return [
        *(f"export {name}={root}/{name}" for name in NNUNET_FOLDERS),
        'eval "$(nnunet-ssp env)"',
    ]


def choose_device(device: str | None) -> str:
    """Return the device asked for, by default the GPU when there is one.

    Raises:
        ValueError: The device asked for is not available.
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


def device_flag() -> str:
    """Return the words that nnU-Net's commands need on this machine: ` -device cpu` where there is no NVIDIA driver.

    The driver is looked for in place of a GPU, since PyTorch takes seconds to import.
    """
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    return "" if driver else " -device cpu"


def small_plans_hint(number: int) -> str:
    """Return a line on small plans where there is no GPU, else nothing.

    Args:
        number: The dataset's id.
    """
    if not device_flag():
        return ""
    return (
        "Without a GPU, as here, nnU-Net's usual plans train for days. Small ones: "
        f"nnunet-ssp prepare {number} {SMALL_PLANS}\n"
    )


def preparing_command(dataset: int | str) -> str:
    """Return the command that prepares a dataset, where there is no GPU with small plans.

    Args:
        dataset: Its id or name.
    """
    return f"nnunet-ssp prepare {dataset}{f' {SMALL_PLANS}' if device_flag() else ''}"


def preparing_lines(number: int) -> str:
    """Return what follows a conversion: the command that prepares, where there is no GPU with small plans.

    Args:
        number: The dataset's id.
    """
    usual = f"nnunet-ssp prepare {number}"
    if not device_flag():
        return f"Next: {usual}"
    return (
        f"Next: {preparing_command(number)}\n"
        "These are small plans, as there is no GPU here, where nnU-Net's usual ones train for days. "
        f"For a machine with a GPU: {usual}"
    )


def planning_command(number: int, plans: str, how: str = "") -> str:
    """Return the command that makes plans of a name.

    Args:
        number: The dataset's id.
        plans: Their name.
        how: Arguments of `nnunet-ssp prepare` that make plans of this name; by default nnU-Net's way, or for the small
            plans that `small_plans_hint` names, theirs.
    """
    if not how and plans != NNUNET_PLANS:
        how = f"-overwrite_plans_name {shlex.quote(plans)}"
        how = SMALL_PLANS if SMALL_PLANS.endswith(f" {how}") else how
    return f"nnunet-ssp prepare {number} {how}".rstrip()


def moving_command(
    number: int | str, source: int, plans: str, configuration: str = "2d"
) -> tuple[str, str]:
    """Return the command that prepares a dataset under the plans of another one, and their name there, a new one.

    Args:
        number: The dataset's id.
        source: Id of the other one.
        plans: Name of the plans there.
        configuration: Of the plans.
    """
    own = f"{plans}_{source}"
    flags = "" if configuration == "2d" else f" -c {configuration}"
    flags += "" if plans == NNUNET_PLANS else f" -p {shlex.quote(plans)}"
    named = shlex.quote(own)
    command = (
        f"nnunet-ssp prepare {number} --plans-from {source}{flags} -overwrite_plans_name {named}"
    )
    return command, own


def training_command(
    prepared: Path, fold: int | str, trainer: str, plans: str = "", settings: str = ""
) -> str:
    """Return the command that trains on a fold, as it works on this machine.

    Args:
        prepared: The dataset's folder in nnUNet_preprocessed; where it does not exist, `prepare` comes first.
        fold: Number of the fold, or `all`.
        trainer: Name of the trainer.
        plans: Name of the plans; by default those that data are prepared with, among them nnU-Net's first.
        settings: Of `nnUNet_ssp_settings`, if any.
    """
    number = int(prepared.name[7:10])
    there = names_of_plans(prepared)
    if not plans:
        ready = [name for name in there if any(_files_of(prepared, name))] or there
        plans = NNUNET_PLANS if NNUNET_PLANS in ready or not ready else ready[0]
    flag = "" if plans == NNUNET_PLANS else f" -p {shlex.quote(plans)}"
    before = "" if there else f"nnunet-ssp prepare {number} && "
    given = typed_before(settings)
    return f"{before}{given}nnUNetv2_train {number} 2d {fold}{flag} -tr {trainer}{device_flag()}"


def predictions_folder(dataset: str, model: str, fold: int | str) -> str:
    """Return the folder for a model's predictions, its own: nnU-Net replaces masks of the same name without a word.

    Args:
        dataset: Name of the dataset that it was trained on.
        model: `TRAINER__PLANS__CONFIGURATION`.
        fold: Number of the fold, or `all`.
    """
    trainer, plans, configuration = model.split("__")
    own = [trainer, *([plans] if plans != NNUNET_PLANS else [])]
    own += [configuration] if configuration != "2d" else []
    return f"predictions/{dataset}/{'_'.join(own)}_fold_{fold}"


def predicting_command(
    dataset: str, model: str, fold: int | str, images: Path, device: str = "cuda"
) -> str:
    """Return the command by which a model predicts the images of a folder, into a folder of its own.

    Args:
        dataset: Name of the dataset that it was trained on.
        model: `TRAINER__PLANS__CONFIGURATION`.
        fold: Number of the fold, or `all`.
        images: Folder of the images.
        device: As in nnU-Net's `-device`.
    """
    trainer, plans, configuration = model.split("__")
    words = ["nnUNetv2_predict", "-d", str(int(dataset[7:10])), "-c", configuration]
    words += ["-f", str(fold), "-p", plans, "-tr", trainer, "-i", str(images)]
    words += ["-o", predictions_folder(dataset, model, fold)]
    words += ["-device", device] if device != "cuda" else []
    return shlex.join(words)


def validating_command(fold: Path) -> str:
    """Return the command that makes a fold's validation, as it works on this machine; empty for another folder.

    It goes on with a training that has not ended, at whose end nnU-Net validates.

    Args:
        fold: nnU-Net's `DATASET/TRAINER__PLANS__CONFIGURATION/fold_F`.
    """
    number = re.match(r"Dataset(\d{3})_", fold.parent.parent.name)
    if number is None or fold.parent.name.count("__") != 2 or not fold.name.startswith("fold_"):
        return ""
    trainer, plans, configuration = fold.parent.name.split("__")
    words = ["nnUNetv2_train", str(int(number[1])), configuration, fold.name.removeprefix("fold_")]
    words += ["-p", plans] if plans != NNUNET_PLANS else []
    ended = (fold / "checkpoint_final.pth").is_file()
    return f"{shlex.join([*words, '-tr', trainer])}{device_flag()} {'--val' if ended else '--c'}"


def _files_of(prepared: Path, plans: str) -> Iterator[Path]:
    """Yield what was prepared for the 2d configuration of plans: labelled cases, and the slice store."""
    for folder in prepared.glob(f"{glob.escape(plans)}_2d*"):
        yield from folder.glob("*")


def find_command(name: str) -> str:
    """Return the path of a command of this Python environment, activated or not.

    Raises:
        FileNotFoundError: The environment has no such command.
    """
    if name == "python":
        return sys.executable
    # Beside the interpreter as it was called: its link's target is outside a virtual environment.
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    if site.ENABLE_USER_SITE:
        folders.append(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise FileNotFoundError(f"The command {name} is not in {' or '.join(folders)}.")
    return found


def run_logged(
    command: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str],
    watch: Callable[[], int | None] = lambda: None,
) -> int:
    """Run a command to its end; it and its workers end with this process, however that ends.

    When this process is interrupted or exits, it first asks the command to end, so that a training saves.

    Args:
        command: Its words; the first is a command of this Python environment.
        log: File for its output.
        environment: Its environment variables.
        watch: Called twice a second while it runs; a signal that it returns is passed on to the command.

    Returns:
        Its exit status.

    Raises:
        FileNotFoundError: The environment has no such command.
    """
    words = [find_command(command[0]), *command[1:]]
    variables = {name: value for name, value in environment.items() if name != VARIABLE}
    process = start_warm(words, log, variables) or _start_cold(words, log, variables)
    try:
        while not _ended(process, seconds=0.5):
            number = watch()
            if number is not None and GUARD:
                process.send_signal(number)
    except (KeyboardInterrupt, SystemExit):
        if GUARD:
            process.send_signal(signal.SIGTERM)
            _ended(process, SECONDS_TO_END)
        raise
    finally:
        if isinstance(process, WarmCommand):
            process.close()
        else:
            assert process.stdin is not None
            process.stdin.close()
            if not GUARD:
                process.kill()
        process.wait()
    assert process.returncode is not None
    return process.returncode


def _start_cold(
    words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with _without_warnings() if GUARD else nullcontext():
        return subprocess.Popen(
            [*GUARD, *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Block SIGUSR1 for what is started within; it would end a process that has no handler yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def last_lines(log: Path, number: int) -> str:
    """Return the end of a log, to be shown when its command failed."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=number)).rstrip()


def _ended(process: subprocess.Popen[bytes] | WarmCommand, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
