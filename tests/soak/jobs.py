"""Tiny real jobs: their commands, their inputs, and the results that no interruption may change."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ssp.launch import trainers_folder

NUMBER, NAME = "901", "Dataset901_Soak"
MIM, FINETUNE = "nnUNetTrainerMIMPretrain", "nnUNetTrainerFinetune"
FEATURES = [4, 8, 16, 16, 16]
FOLDERS = ("source", "raw", "preprocessed", "results", "pretrained", "predictions", "out")
PRETRAINING = "num_epochs=4 iterations_per_epoch=10 batch_size=4 seed=1"
FINETUNING = (
    "num_epochs=4 iterations_per_epoch=6 val_iterations_per_epoch=2 final_validation=no seed=1"
)
STUDY = """\
title: Soak
dataset: 901
plans: tiny
folds: {all: 4-fold-0}
seeds: [0]
evaluate: test
predict: --disable_tta
environment: {nnUNet_n_proc_DA: 0, nnUNet_compile: f}
settings:
  pretraining: {num_epochs: 2, iterations_per_epoch: 3, batch_size: 4}
  finetuning: {num_epochs: 2, iterations_per_epoch: 3, val_iterations_per_epoch: 1, final_validation: false}
pretraining: {MIM: {trainer: MIM, fold: all}}
models:
  scratch: {trainer: Scratch}
  MIM: {trainer: Finetune, pretraining: MIM}
baseline: scratch
tables: [{title: Table, rows: folds, columns: models}]
"""


@dataclass(frozen=True)
class Site:
    """Folder with nnU-Net's three folders and our inputs."""

    root: Path

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "NNUNET"))}
        return {
            **kept,
            **{
                f"nnUNet_{name}": str(self.path(name))
                for name in ("raw", "preprocessed", "results")
            },
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",
            "nnUNet_npp": "1",
            "nnUNet_nps": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    def fold(self, trainer: str, fold: str = "0") -> Path:
        return self.path("results", NAME, f"{trainer}__tiny__2d", f"fold_{fold}")

    def take(self, base: Path, names: Sequence[str]) -> Site:
        """Copy folders of the base, with times of modification."""
        for name in ("raw", "preprocessed", "results"):
            self.path(name).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copytree(base / name, self.path(name), dirs_exist_ok=True)
        return self


@dataclass(frozen=True)
class Job:
    """A command and its result.

    Attributes:
        name: Name of the job.
        needs: Folders of the base that it needs.
        command: Returns the words of the command, or of the one that continues.
        result: Returns digests, by name, of everything that must be equal.
        finished: Pattern, relative to the site, of the files that stand for finished work.
        unit: Noun for one of these files.
        settings: Value of `nnUNet_ssp_settings`.
        more: Further environment variables.
    """

    name: str
    needs: tuple[str, ...]
    command: Callable[[Site], list[str]]
    result: Callable[[Site], dict[str, str]]
    finished: str
    unit: str
    settings: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def environment(self, site: Site) -> dict[str, str]:
        settings = {"nnUNet_ssp_settings": self.settings} if self.settings else {}
        return site.environment(**settings, **self.more)


# -- the commands ----------------------------------------------------------------------------------


def convert(site: Site) -> list[str]:
    words = ["nnunet-ssp", "convert", "mnms", "-i", str(site.path("source")), "-d", NUMBER]
    return [*words, "--name", "Soak", "-np", "1"]


def prepare(site: Site) -> list[str]:
    return ["nnunet-ssp", "prepare", NUMBER, "-gpu_memory_target", "0.1", "-np", "1"]


def train(trainer: str, *more: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        words = [
            "nnUNetv2_train",
            NUMBER,
            "2d",
            "0",
            "-p",
            "tiny",
            "-tr",
            trainer,
            "-device",
            "cpu",
        ]
        names = ("checkpoint_latest.pth", "checkpoint_final.pth", "checkpoint_best.pth")
        if any((site.fold(trainer) / name).is_file() for name in names):
            return [*words, "--c"]  # nnU-Net takes no weights then
        return [*words, *(word.replace("SITE", str(site.root)) for word in more)]

    return command


def study(site: Site) -> list[str]:
    (site.root / "study.yaml").write_text(STUDY)
    return [
        *("nnunet-ssp", "study", str(site.root / "study.yaml"), "-o", str(site.path("out"))),
        *("--device", "cpu"),
    ]


def evaluate(site: Site) -> list[str]:
    words = ["nnunet-ssp", "evaluate", NUMBER, str(site.path("predictions"))]
    return [*words, "-o", str(site.path("out")), "-np", "1"]


def folds(site: Site) -> list[str]:
    words = ["nnunet-ssp", "folds", NUMBER, "--subsets", "1", "2", "--seeds", "0", "1", "2"]
    return [*words, "--of", "0"]


# -- what must be equal ----------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def files(*patterns: str) -> Callable[[Site], dict[str, str]]:
    """Return a function that digests the files of these patterns, compressed ones by their content."""

    def result(site: Site) -> dict[str, str]:
        found = {}
        for pattern in patterns:
            for file in sorted(site.root.glob(pattern)):
                content = file.read_bytes()
                if file.suffix == ".gz":
                    content = gzip.decompress(content)
                if file.suffix == ".b2nd":
                    import blosc2

                    content = blosc2.open(str(file), mode="r")[:].tobytes()
                if file.name == "index.json":
                    content = without_times(content)
                found[str(file.relative_to(site.root))] = digest(content)
        return found

    return result


def without_times(index: bytes) -> bytes:
    """Return the store's index without the times at which its files and their sources were written."""
    cases = json.loads(index)["cases"]
    for entry in cases.values():
        entry["source"] = None
        entry["stored"] = [(name, size) for name, size, _ in entry["stored"]]
    return json.dumps(cases, sort_keys=True).encode()


def weights(trainer: str) -> Callable[[Site], dict[str, str]]:
    """Return a function that digests the weights and losses of a finished training, bit for bit."""

    def result(site: Site) -> dict[str, str]:
        import torch

        content = torch.load(
            site.fold(trainer) / "checkpoint_final.pth", map_location="cpu", weights_only=False
        )
        found = {}
        for name, tensor in content["network_weights"].items():
            found[name] = digest(tensor.contiguous().numpy().tobytes())
        for name in ("train_losses", "val_losses"):
            found[name] = digest(repr(content["logging"][name]).encode())
        return found

    return result


JOBS = {
    job.name: job
    for job in (
        Job(
            "convert",
            ("source",),
            convert,
            files(
                "raw/*/*/*.nii.gz", "raw/*/*.csv", "raw/*/splits_final.json", "raw/*/dataset.json"
            ),
            "raw/*/*/*.nii.gz",
            "file",
        ),
        Job(
            "prepare",
            ("raw",),
            prepare,
            files(
                *("preprocessed/*/*/*.npy", "preprocessed/*/*/*.b2nd", "preprocessed/*/*.csv"),
                *("preprocessed/*/nnUNetPlans.json", "preprocessed/*/splits_final.json"),
                *("preprocessed/*/*/index.json", "preprocessed/*/gt_segmentations/*.nii.gz"),
            ),
            "preprocessed/*/*/*.npy",
            "case",
        ),
        Job(
            "pretraining",
            ("preprocessed",),
            train(MIM),
            weights(MIM),
            "",
            "epoch",
            PRETRAINING,
        ),
        Job(
            "fine-tuning",
            ("preprocessed", "pretrained"),
            train(FINETUNE, "-pretrained_weights", "SITE/pretrained/checkpoint_final.pth"),
            weights(FINETUNE),
            "",
            "epoch",
            FINETUNING,
        ),
        Job(
            "study",
            ("raw", "preprocessed"),
            study,
            files("out/runs/*/*/*/evaluation/metrics.csv"),
            "out/*/**/checkpoint_final.pth",
            "run",
        ),
        Job(
            "evaluate",
            ("raw", "predictions"),
            evaluate,
            files("out/*.csv"),
            "out/*",
            "file",
        ),
        Job(
            "folds",
            ("raw", "preprocessed"),
            folds,
            files("raw/*/splits_final.json", "preprocessed/*/splits_final.json", "raw/*/folds.csv"),
            "",
            "fold",
        ),
    )
}


# -- running ---------------------------------------------------------------------------------------


@dataclass
class Ended:
    """End of a command, by itself or by a signal."""

    # Negative: the signal that killed it.
    status: int
    output: str
    seconds: float

    @property
    def said(self) -> str:
        """The last lines of its output."""
        return self.output[-1500:]

    @property
    def in_words(self) -> bool:
        return "Traceback (most recent call last)" not in self.output


def program(words: Sequence[str]) -> list[str]:
    """Return the words with the path of this Python's console script."""
    return [str(Path(sys.executable).with_name(words[0])), *words[1:]]


def start(words: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    with open(log, "wb") as out:
        return subprocess.Popen(
            list(words),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a command's whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run(
    words: Sequence[str],
    environment: dict[str, str],
    log: Path,
    kill_after: float | None = None,
    limit: float = 600,
) -> Ended:
    """Run a command to its end, or kill it with all that it started after some seconds.

    Raises:
        TimeoutError: The command took longer than `limit` seconds.
    """
    begun = time.monotonic()
    process = start(words, environment, log)
    try:
        process.wait(limit if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        end(process)
        process.wait()
        if kill_after is None:
            raise TimeoutError(f"{words[0]} took longer than {limit} s: {log}") from None
    finally:
        end(process)  # what it left behind
    text = log.read_text(errors="replace")
    return Ended(process.returncode, text, time.monotonic() - begun)


def differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    """Return the names that differ, in words; empty if the results are equal and not empty."""
    if not wanted:
        return "the reference has no result"
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(wanted)} differ, the first is {wrong[0]}"
