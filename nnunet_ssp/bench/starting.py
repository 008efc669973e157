"""Commands from their start to their end: warm beside cold, and `prepare` beside nnU-Net's.

These run once or a few times, since a start takes seconds and its core-seconds vary little.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_ssp.bench.files import DATASET, clinical_matrix
from nnunet_ssp.bench.place import Bench
from nnunet_ssp.bench.predicting import parents
from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.launch import command_environment, last_lines, run_logged
from nnunet_ssp.nnunet import NNUNET_FOLDERS, environment, quiet
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.warm import warm_runner

STARTS = ("nnUNetv2_train", "-h")  # imports what a training does, and ends
WARM_STARTS = 3
START_NAMES = ("start_cold_over_warm", "start_cold_s", "start_warm_s", "start_runner_s")
LABELLED = 2  # subjects that are prepared, each at ED and ES


def warm_over_cold() -> dict[str, Any]:
    """Compare the core-seconds of a command that only starts, by itself and in a fork of the warm runner.

    Returns:
        `start_cold_over_warm`, and the core-seconds of one of each, `start_cold_s` and `start_warm_s`, and of the
        runner's imports, `start_runner_s`. All are None where there is no warm runner, or it has ended.
    """
    words = list(STARTS)
    here = command_environment()
    began = _core_seconds()
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-start-") as folder:
        log = Path(folder, "log.txt")
        with warm_runner(here) as is_warm:
            for _ in range(WARM_STARTS if is_warm else 0):
                run(words, log, here)
            imports = seconds_of_runner()
        if imports is None:
            return dict.fromkeys(START_NAMES)
        # The runner has ended, so that its commands count, too
        warm = (_core_seconds() - began - imports) / WARM_STARTS
        if warm <= 0:  # it has not ended in time
            return dict.fromkeys(START_NAMES)
        began = _core_seconds()
        run(words, log, here)
        cold = _core_seconds() - began
    return dict(zip(START_NAMES, (cold / warm, cold, warm, imports), strict=True))


def prepare_over_nnunet(bench: Bench) -> dict[str, Any]:
    """Compare the core-seconds of both commands that prepare the same labelled cases, each with one process.

    Returns:
        `prepare_over_nnunet`, ours over nnU-Net's, and `prepare_cases`, of which it is.
    """
    _, slices = bench.workload.study
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-prepare-") as folder:
        base = Path(folder)
        size = {"matrix": clinical_matrix(bench.workload.side), "frames": 2, "slices": slices}
        raw = {name: str(base / name) for name in NNUNET_FOLDERS}
        for path in raw.values():
            Path(path).mkdir()
        with environment(**raw), contextlib.redirect_stderr(io.StringIO()), quiet():
            source = write_mnms(base / "source", labelled=LABELLED, unlabelled=0, testing=0, **size)
            mnms.convert(source, DATASET, "Files", workers=1)
        theirs = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET), "-c", "2d"]
        theirs += ["-np", "1", "-npfp", "1"]
        ours = ["nnunet-ssp", "prepare", str(DATASET), "-np", "1"]
        took = []
        for number, words in enumerate((theirs, ours)):  # each into a folder of its own
            prepared = base / f"prepared{number}"
            prepared.mkdir()
            with environment(**raw | {"nnUNet_preprocessed": str(prepared)}):
                began = _core_seconds()
                run(words, base / "log.txt", command_environment())
                took.append(_core_seconds() - began)
        cases = len(list((base / "nnUNet_raw").glob("*/labelsTr/*.nii.gz")))
    return {"prepare_over_nnunet": took[1] / took[0], "prepare_cases": cases}


def run(words: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    with open(log, "wb") as stream:
        status = run_logged(words, stream, variables)
    if status:
        raise RuntimeError(f"{words[0]} failed (status {status}):\n{last_lines(log, 20)}")


def seconds_of_runner() -> float | None:
    """Return the core-seconds of this process's warm runner, without its commands; None where there is none."""
    for pid, parent in parents():
        with suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if parent == os.getpid() and any(b"nnunet_ssp.warm" in word for word in words):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def _core_seconds() -> float:
    """Read the core-seconds, user and system, of the processes below this one that have ended."""
    used = os.times()
    return used.children_user + used.children_system
