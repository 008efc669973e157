"""Equal images of two subjects: one patient under two names, found without a look at anatomy.

`lookalikes` finds also copies that were turned, cropped or rescaled, but takes seconds for each subject.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ssp.cohort.cases import Case, names_of_subjects
from nnunet_ssp.console import count_of
from nnunet_ssp.files.digests import add_file
from nnunet_ssp.files.nifti import read_nifti
from nnunet_ssp.parallel import process

SHOWN = 5  # pairs that are named
NIFTI = (".nii", ".nii.gz")
TRAILER = 8  # bytes at the end of a gzip file: CRC-32 and length of its content

Two = tuple[str, str]


def sum_of_values(voxels: NDArray[Any]) -> str:
    """Return what only images of the same values have, whatever their type; empty for a constant one."""
    values = np.ascontiguousarray(voxels, np.float32)
    if not values.size or values.min() == values.max():
        return ""
    return hashlib.blake2b(values.data, digest_size=16, key=str(voxels.shape).encode()).hexdigest()


def shared(sums: Iterable[tuple[str, str]]) -> Counter[Two]:
    """Count the images that two subjects share.

    Args:
        sums: Subject and `sum_of_values` of each image; an empty one is passed over.

    Returns:
        Pairs of subjects, in the order of `sums`, with the number of images that both have.
    """
    subjects: dict[str, dict[str, None]] = defaultdict(dict)
    for subject, total in sums:
        if total:
            subjects[total][subject] = None
    return Counter(pair for alike in subjects.values() for pair in combinations(alike, 2))


def lines_on_copies(
    pairs: Mapping[Two, int], tests: Collection[str], dataset: int | str
) -> Iterator[str]:
    """Yield a warning of each pair of subjects that share images, those of test and training first.

    Args:
        pairs: From `shared`.
        tests: The test subjects.
        dataset: Its number.
    """
    apart = [len({*pair} & {*tests}) == 1 for pair in pairs]
    ordered = sorted(zip(pairs, apart, strict=True), key=lambda pair: not pair[1])
    for (one, other), leaks in ordered[:SHOWN]:
        side = f" {one if one in tests else other} is a test subject: a leak." if leaks else ""
        yield (
            f"WARNING: {one} and {other} have {count_of(pairs[one, other], 'image')} with the same voxels: one patient "
            f"under two names?{side} Leave one of them out, or keep both on one side of a fold "
            f"(folds --from FILE). Compare all: nnunet-ssp folds {dataset} --check"
        )
    if len(ordered) > SHOWN:
        yield f"WARNING: {count_of(len(ordered) - SHOWN, 'further pair')} of subjects with the same voxels"


def copies_in_dataset(
    training: Mapping[str, Path],
    testing: Mapping[str, Path],
    cases: Mapping[str, Case],
    dataset: int | str,
    workers: int,
    converted: bool = False,
) -> list[str]:
    """Return the warnings of subjects of a dataset in `nnUNet_raw` that share images.

    Only the start of a file is read, or its end where our converter wrote it, and all of it where these are equal.

    Args:
        training: Image of each training case, labelled or not.
        testing: Image of each test case.
        cases: Rows of `cases.csv`; without it each case is a subject, but for names that end in `_frame` and a number.
        dataset: Its number.
        workers: Most processes to start.
        converted: Whether our converter wrote the images.
    """
    names = names_of_subjects(cases)

    def subject(case: str) -> str:
        if case in cases:
            return names[cases[case].subject_key]
        return re.sub(r"_frame\d+$", "", case)

    trained = [(subject(case), file) for case, file in training.items()]
    known = {name for name, _ in trained}
    tested = [(subject(case), file) for case, file in testing.items()]
    tested = [(f"{name} of imagesTs" if name in known else name, file) for name, file in tested]
    images = trained + tested
    begin = partial(_key, converted=converted)
    keys = process(begin, [file for _, file in images], workers, "Comparing images", "image")
    pairs = shared((name, _whole(file)) for name, file in _alike(keys, images))
    return list(lines_on_copies(pairs, {name for name, _ in tested}, dataset))


def _alike(keys: Iterable[str], images: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return the images whose key those of another subject have, too."""
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for key, image in zip(keys, images, strict=True):
        if key:
            groups[key].append(image)
    return [i for group in groups.values() if len({name for name, _ in group}) > 1 for i in group]


def _key(file: Path, converted: bool) -> str:
    """Return what equal images have in common, found at little cost; empty where the file cannot be read."""
    try:
        if converted and file.name.endswith(".gz"):
            with open(file, "rb") as stream:
                stream.seek(-TRAILER, 2)
                return stream.read().hex()
        return _first_plane(file) if file.name.endswith(NIFTI) else _whole(file)
    except (OSError, ValueError, EOFError):  # whoever uses the image says so
        return ""


def _first_plane(file: Path) -> str:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nibabel.load(file)
        values = np.ascontiguousarray(image.dataobj[..., 0], np.float32)
    except (ImageFileError, IndexError):
        return ""
    return f"{image.shape} {hashlib.blake2b(values.data, digest_size=16).hexdigest()}"


def _whole(file: Path) -> str:
    """Return the digest of all voxels, of another format than NIfTI that of the file; empty where it is damaged."""
    try:
        if file.name.endswith(NIFTI):
            return sum_of_values(read_nifti(file)[0])
        total = hashlib.blake2b(digest_size=16)
        add_file(total, file)
        return total.hexdigest()
    except (OSError, ValueError):
        return ""
