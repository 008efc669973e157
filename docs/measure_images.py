"""Measure memory and bytes of natural images, from files to a pretraining: `python docs/measure_images.py 2000 8000`.

Images are 256 x 256 of random texture, of which PNG makes little less than their pixels. Commands work in one process.
Memory is its peak, as Linux counts it (`VmHWM`), libraries among it; forks of it that list a folder share it. All
happens in a temporary folder (`TMPDIR`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_ssp.launch import TRAINERS_VARIABLE, find_command, trainers_folder
from nnunet_ssp.nnunet import NNUNET_FOLDERS

SIDE = 256
SETTINGS = (
    "num_epochs=1 iterations_per_epoch=4 batch_size=32 chunk_size=8 head_width=64 predictor_width=64 "
    "data_device=host precision=fp32"
)


def write_images(folder: Path, number: int) -> int:
    """Write images of blocks of colour under noise; return their bytes."""
    rng = np.random.default_rng(0)
    total = 0
    for n in range(number):
        file = folder / f"{n // 1000:03d}" / f"{n:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        blocks = (
            rng.integers(30, 200, (8, 8, 3), np.uint8).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
        )
        texture = rng.integers(0, 48, blocks.shape, np.uint8)
        Image.fromarray(blocks + texture).save(file, compress_level=1)
        total += file.stat().st_size
    return total


def watched(*words: str) -> float:
    """Run a command; return its largest memory in MiB."""
    log = Path(os.environ["nnUNet_results"]) / "log.txt"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [find_command(words[0]), *words[1:]], stdout=stream, stderr=subprocess.STDOUT
        )
        peaks: dict[int, int] = {}
        while process.poll() is None:
            peaks |= peaks_below(process.pid)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(words)}\n{log.read_text()[-3000:]}")
    return max(peaks.values()) / 2**10


def peaks_below(pid: int) -> dict[int, int]:
    """Return the peak of a process and of its children's, in KiB."""
    found = {}
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found[pid] = int(line.split()[1])
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= peaks_below(int(child))
    return found


def bytes_of(folder: Path, pattern: str) -> int:
    """Return the bytes of the files below a folder that match a pattern."""
    return sum(file.stat().st_size for file in folder.rglob(pattern))


def measure(number: int) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        for name in NNUNET_FOLDERS:
            os.environ[name] = str(base / name)
            (base / name).mkdir()
        os.environ[TRAINERS_VARIABLE] = str(trainers_folder())
        os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
        os.environ["nnUNet_ssp_settings"] = SETTINGS
        size = ("--labelled", "2", "--unlabelled", "1", "--testing", "1", "--matrix", "64")
        watched("nnunet-ssp", "phantom", str(base / "cine"), *size)
        watched("nnunet-ssp", "convert", "mnms", "-i", str(base / "cine"), "-d", "114")
        small = ("--patch", "128", "128", "--width", "0.125", "--batch", "4")
        watched("nnunet-ssp", "prepare", "114", *small, "-overwrite_plans_name", "small")
        given = write_images(base / "images", number)
        pictures = str(base / "images")
        convert = watched(
            "nnunet-ssp", "convert", "images", "-i", pictures, "-d", "150", "-np", "1"
        )
        plans = ("--plans-from", "114", "-p", "small", "-np", "1")
        prepare = watched("nnunet-ssp", "prepare", "150", *plans)
        trainer = ("-tr", "nnUNetTrainerBYOLPretrain", "-p", "small", "-device", "cpu")
        train = watched("nnUNetv2_train", "150", "2d", "all", *trainer)
        raw = bytes_of(base / "nnUNet_raw" / "Dataset150_Images" / "imagesTr", "*.png")
        (store,) = (base / "nnUNet_preprocessed" / "Dataset150_Images").glob("*_slices")
        stored, index = bytes_of(store, "*"), bytes_of(store, "index.json")
        pixels = number * SIDE * SIDE * 3 * 2
    cells = [f"{number:,}", f"{convert:.0f}", f"{prepare:.0f}", f"{train:.0f}"]
    cells += [f"{given / 1e6:.0f}", f"{raw / 1e6:.0f}", f"{stored / 1e6:.0f}"]
    cells += [f"{stored / pixels:.4f}", f"{raw / pixels:.2f}", f"{index / number:.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    heads = ["images", "convert (MiB)", "prepare (MiB)", "pretraining (MiB)", "files (MB)"]
    heads += [
        "nnUNet_raw (MB)",
        "store (MB)",
        "store / pixels",
        "nnUNet_raw / pixels",
        "index / image",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for argument in sys.argv[1:]:
        print(measure(int(argument)), flush=True)
