"""A coverage-guided fuzzer over the readers of files from elsewhere: `python -m tests.soak.fuzz TARGET`.

A reader may return, or raise one of our errors that names the file. Everything else is a finding, described once per
place in one JSON line: target, exception, message, our function and the library's. Inputs are never stored. libFuzzer's
own files go to a temporary folder. The fuzzer needs atheris.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

TARGETS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # Name of the file; beginnings of the corpus entries whose inputs are seeds; pattern of their files.
    "nifti": ("image.nii.gz", ("mnms image", "own cine"), "*.nii.gz"),
    "mask": ("mask_gt.nii.gz", ("mnms mask", "own mask"), "*_gt.nii.gz"),
    "dicom": ("image.dcm", ("DICOM",), "1.2.3.4_*"),
    "table": ("table.csv", ("M&Ms",), "*nformation*.csv"),
    "cases": ("cases.csv", ("cases.csv",), "cases.csv"),
    "splits": ("splits_final.json", ("splits_final.json",), "splits_final.json"),
    "index": ("index.json", ("store's index",), "index.json"),
    "labels": ("dataset.json", ("dataset.json",), "dataset.json"),
    "plans": ("plans.json", ("plans",), "nnUNetPlans.json"),
    "split-file": ("split.yaml", ("split file",), "split.yaml"),
    "study": ("study.yaml", ("study file",), "study.yaml"),
    "settings": ("settings.txt", ("settings",), ""),
    "checkpoint": ("checkpoint.pth", ("inspect",), "spoilt.pth"),
}
INSTRUMENTED = ("nnunet_ssp", "nibabel", "pydicom", "yaml", "csv", "json")
LARGEST = 2**16  # bytes of an input
SECONDS_OF_ONE = 20  # a longer one is a hang
MEGABYTES = 4096


def reader(target: str) -> Callable[[Path], object]:
    """Return our function that reads a target's file."""
    from nnunet_ssp.cohort import cases, split_files, splits
    from nnunet_ssp.conversion.dicom import headers, pixels
    from nnunet_ssp.dataset_conversion import mnms
    from nnunet_ssp.files import nifti, nnunet, tables
    from nnunet_ssp.methods.mim import MIMSettings
    from nnunet_ssp.settings import override
    from nnunet_ssp.slices import drawing
    from nnunet_ssp.training import transfer

    def read_mask(file: Path) -> object:
        return nifti.integer_labels(nifti.read_nifti(file)[0], file, range(4))

    def read_dicom(file: Path) -> object:
        images, _ = headers.read_headers([file])
        return pixels.read_pixels(images[:4])

    def read_table(file: Path) -> object:
        return tables.read_table(file, mnms.REQUIRED_COLUMNS, mnms.OPTIONAL_COLUMNS)

    def read_study(file: Path) -> object:
        from nnunet_ssp.study.spec import read_study

        return read_study(file)

    def read_settings(file: Path) -> object:
        return override(MIMSettings(), file.read_bytes().decode("utf-8", "replace"))

    def read_index(file: Path) -> object:
        return drawing.SliceStore(file.parent)

    return {
        "nifti": nifti.read_nifti,
        "mask": read_mask,
        "dicom": read_dicom,
        "table": read_table,
        "cases": cases.read_cases,
        "splits": splits.read_splits,
        "index": read_index,
        "labels": nnunet.read_dataset,
        "plans": nnunet.read_plans,
        "split-file": split_files.read_split_file,
        "study": read_study,
        "settings": read_settings,
        "checkpoint": transfer.read,
    }[target]


def seeds(target: str, folder: Path) -> None:
    """Write the inputs that the corpus makes for a target, damaged and sound."""
    from tests import corpus
    from tests.malformed.words import REFUSED

    _, names, pattern = TARGETS[target]
    folder.mkdir(parents=True)
    if target == "settings":
        for number, (_, text, _) in enumerate(REFUSED.values()):
            (folder / f"{number}").write_text(text)
        return
    for number, entry in enumerate(e for e in corpus.CORPUS if e.name.startswith(names)):
        with tempfile.TemporaryDirectory() as made:
            root = Path(made)
            with corpus.set_up(root), contextlib.suppress(Exception):
                entry.make(root)
            for other, file in enumerate(sorted(root.rglob(pattern))):
                # `is_file` first: one of the entries is a named pipe.
                if other < 3 and file.is_file() and file.stat().st_size <= LARGEST:
                    shutil.copyfile(file, folder / f"{number}-{other}")


def describe(target: str, error: BaseException) -> dict[str, object]:
    """Return a finding without its input: the exception, and the last places in our code and in a library."""
    frames = traceback.extract_tb(error.__traceback__)
    place = "{0.filename}:{0.name}".format

    def last(ours: bool) -> str:
        found = [
            f for f in frames if ("nnunet_ssp" in f.filename) == ours and __file__ != f.filename
        ]
        text = place(found[-1]) if found else ""
        return re.sub(r".*/(site-packages/|(?=nnunet_ssp/))", "", text)

    message = re.sub(r"[^ -~]|\d{4,}|/\S+", "?", str(error))[:200]
    return {
        "target": target,
        "exception": type(error).__name__,
        "message": message,
        "ours": last(True),
        "library": last(False),
    }


def _is_ours(error: BaseException, file: Path, target: str) -> bool:
    from nnunet_ssp.console import ERRORS
    from tests.corpus import BARE

    if not isinstance(error, ERRORS):
        return False
    text = str(error)
    named = "nnUNet_ssp_settings" if target == "settings" else file.name
    if target == "index":
        named = file.parent.name
    if target == "settings" and text.startswith("`"):  # out of its range
        return True
    return named in text and not BARE.search(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def fuzz(target: str, seconds: int, findings: Path, seed: int) -> None:
    """Fuzz one reader for some seconds; libFuzzer then ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        read = reader(target)
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = work / "seeds"
    seeds(target, corpus)
    (work / "held").mkdir()
    file = work / "held" / TARGETS[target][0]
    seen: set[tuple[object, ...]] = set()

    def try_one(content: bytes) -> None:
        file.write_bytes(content)
        try:
            with _quiet():
                read(file)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit) or _is_ours(error, file, target):
                return
            found = describe(target, error)
            key = (found["exception"], found["ours"], found["library"])
            if key not in seen:
                seen.add(key)
                with open(findings, "a") as out:
                    out.write(json.dumps(found) + "\n")

    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS_OF_ONE}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-max_len={LARGEST}",
        f"-seed={seed + 1}",
        f"-artifact_prefix={work}/found-",
        "-verbosity=1",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path("findings.jsonl"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    fuzz(arguments.target, arguments.seconds, arguments.findings, arguments.seed)


if __name__ == "__main__":
    main()
