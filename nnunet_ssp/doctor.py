"""`nnunet-ssp doctor`: check that everything fits together on this machine, and advise what to do."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from nnunet_ssp.console import Paced
from nnunet_ssp.launch import SMALL_PLANS, trainer_paths, trainers_folder
from nnunet_ssp.nnunet import NNUNET_FOLDERS, has_tilde, without_tilde
from nnunet_ssp.parallel import available_cores, small_machine_environment

Verdict = Literal["ok", "warning", "FAILED"]
Diagnosis = tuple[Verdict, str, str]  # verdict, what was found, what to do

FREE_DISK = 20  # GB; the M&Ms' slices take about 12 GB at float16
FREE_DISK_RESULTS = 2  # GB; a run keeps two or three checkpoints of a few hundred MB


def examine() -> int:
    """Print each diagnosis.

    Returns:
        1 when something failed, else 0.
    """
    failures = 0
    for verdict, found, advice in diagnoses():
        print(f"{verdict:8s} {found}", flush=True)
        if advice:
            print(f"{'':8s} -> {advice}", flush=True)
        failures += verdict == "FAILED"
    print(f"\n{failures} failed" if failures else "\nReady.")
    return int(failures > 0)


def diagnoses() -> Iterator[Diagnosis]:
    """Yield all diagnoses, in the order in which a user needs them."""
    yield from _versions()
    yield from _folders()
    yield from _trainers()
    yield from _hardware()


def _versions() -> Iterator[Diagnosis]:
    """Check the versions that this package's own metadata requires."""
    from packaging.requirements import Requirement  # comes with matplotlib and scikit-image

    try:
        ours = metadata.version("nnunet-ssp")
        required = [Requirement(text) for text in metadata.requires("nnunet-ssp") or ()]
    except metadata.PackageNotFoundError:
        yield "FAILED", "nnunet-ssp is not installed", "pip install nnunet-ssp"
        return
    good = [f"Python {sys.version.split()[0]}", f"nnunet-ssp {ours}"]
    bad: list[Diagnosis] = []
    for requirement in required:
        if requirement.marker is not None:  # an extra
            continue
        advice = f"pip install {shlex.quote(str(requirement))}"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            bad.append(("FAILED", f"{requirement.name} is not installed", advice))
            continue
        if requirement.specifier.contains(found, prereleases=True):
            good.append(f"{requirement.name} {found}")
        else:
            bad.append(("FAILED", f"{requirement.name} {found} is not supported", advice))
    yield "ok", ", ".join(good), ""
    yield from bad
    yield from _compression()


def _compression() -> Iterator[Diagnosis]:
    from nnunet_ssp.files.compression import WITH_ISAL

    if WITH_ISAL:
        yield "ok", f"isal {metadata.version('isal')} reads and writes .nii.gz", ""
    else:
        found = "isal is not installed: reading and writing .nii.gz take several times as long"
        yield "warning", found, "pip install isal"


def _folders() -> Iterator[Diagnosis]:
    for variable in NNUNET_FOLDERS:
        value = os.environ.get(variable)
        if not value:
            yield (
                "FAILED",
                f"{variable} is not set",
                f"export {variable}=/where/you/keep/{variable}",
            )
            continue
        folder = Path(value)
        if has_tilde(value):
            said = f"{variable}={value}: nnU-Net takes ~ for a folder of that name"
            yield "FAILED", said, without_tilde(variable)
            continue
        if not folder.is_absolute():
            said = f"{variable}={value} is another folder in each working folder"
            yield "warning", said, f"export {variable}={shlex.quote(str(folder.resolve()))}"
        if not folder.is_dir():
            yield "FAILED", f"{variable}={value} is not a folder", f"mkdir -p {shlex.quote(value)}"
        elif not os.access(folder, os.W_OK | os.X_OK):
            # Only `convert` writes raw data; other commands can read somebody else's.
            verdict: Verdict = "warning" if variable == "nnUNet_raw" else "FAILED"
            yield verdict, f"{variable}={value} is not writable", "choose a folder of your own"
        else:
            free = shutil.disk_usage(folder).free / 1e9
            needed = FREE_DISK_RESULTS if variable == "nnUNet_results" else FREE_DISK
            found = f"{variable}={value}, {free:.0f} GB free"
            if free < needed:
                yield "warning", found, f"the M&Ms need about {needed} GB there"
            else:
                yield "ok", found, ""


def _trainers(tell: Callable[[str], None] | None = None) -> Iterator[Diagnosis]:
    """Check that nnU-Net's own search finds each of our trainers; `tell` prints how far it is."""
    tell = tell or Paced()
    ours = trainers_folder()
    paths = trainer_paths()
    start_file = 'eval "$(nnunet-ssp env)", also in your shell\'s start file'
    if ours not in map(Path, paths):
        yield "FAILED", f"nnUNet_extTrainer does not name {ours}", start_file
        return
    for path in paths:
        if not os.path.isdir(path):
            yield "warning", f"nnUNet_extTrainer names {path}, which is not a folder", "remove it"

    print("         looking for our trainers as nnU-Net does ...", file=sys.stderr, flush=True)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    names = sorted(file.stem for file in ours.glob("nnUNetTrainer*.py"))
    for number, name in enumerate(names):
        tell(f"         {number} of {len(names)} trainers found so far ...")
        search = io.StringIO()
        try:
            with contextlib.redirect_stdout(search), contextlib.redirect_stderr(search):
                recursive_find_trainer_class_by_name(name)
        except (Exception, SystemExit) as error:  # what stops this search also stops nnUNetv2_train
            last = re.findall(r"Searching in: (.+)|Inspecting module: (.+)", search.getvalue())[-2:]
            culprit = "/".join(folder or f"{module}.py" for folder, module in last)
            advice = f"repair or remove {culprit}, where the search ended; or name our folder first"
            if not culprit:  # it has not left nnU-Net's own trainers
                advice = "pip install --force-reinstall nnunetv2"
            yield "FAILED", f"nnU-Net does not find {name}: {type(error).__name__}: {error}", advice
            return
    yield "ok", f"nnU-Net finds {', '.join(names)}", ""


def _hardware() -> Iterator[Diagnosis]:
    print("         looking for a GPU ...", file=sys.stderr, flush=True)
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        yield "ok", f"GPU {device.name}, {device.total_memory / 1e9:.0f} GB", ""
    else:
        yield (
            "warning",
            "no CUDA GPU: training takes about a second per 256x256 image",
            "add -device cpu (or mps) to nnUNetv2_train and nnUNetv2_predict, and plan a small patch: "
            f"nnunet-ssp prepare ID {SMALL_PLANS}",
        )
    cores = available_cores()
    missing = small_machine_environment(os.environ, cores)
    if cores < 8 and missing:
        advice = "export " + " ".join(f"{name}={number}" for name, number in missing.items())
        yield "warning", f"{cores} cores, and nnU-Net may start more workers than that", advice
    else:
        yield "ok", f"{cores} cores", ""
