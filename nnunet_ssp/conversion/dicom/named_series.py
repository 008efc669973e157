"""The DICOM series that a user names, by number, UID or folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ssp.conversion.dicom.headers import first_image
from nnunet_ssp.parallel import process


def choose_series(
    subjects: Mapping[tuple[Path, str], Sequence[Path]], wanted: Sequence[str], workers: int
) -> dict[tuple[Path, str], list[Path]]:
    """Find the files of the wanted series.

    Args:
        subjects: Files of each subject, by its folder and name.
        wanted: SeriesNumbers, SeriesInstanceUIDs, or parts of the names of folders below the subject's.
        workers: Number of processes.

    Returns:
        Files of the wanted series, for each subject that has one.

    Raises:
        ValueError: No subject has a series of that name.
    """
    files = [file for its_files in subjects.values() for file in its_files]
    series = dict(
        zip(files, process(series_of, files, workers, "Reading headers", "file"), strict=True)
    )
    chosen: dict[tuple[Path, str], list[Path]] = {}
    for value in wanted:
        found = False
        for subject, its_files in subjects.items():
            images = [file for file in its_files if series[file]]
            matching = [file for file in images if value in (series[file] or ())]
            if not matching:
                matching = [file for file in images if _is_in_folder(file, subject[0], value)]
            chosen.setdefault(subject, []).extend(matching)
            found |= bool(matching)
        if not found:
            numbers = sorted(
                {its[1] for its in series.values() if its and its[1]}, key=lambda n: (len(n), n)
            )
            there = f"; the series numbers are {', '.join(numbers[:20])}" if numbers else ""
            raise ValueError(f"`series` (={value}) is no DICOM series of any subject{there}.")
    return {subject: list(dict.fromkeys(its)) for subject, its in chosen.items() if its}


def series_of(file: Path) -> tuple[str, str] | None:
    """Return SeriesInstanceUID and SeriesNumber of a DICOM image; None for any other file."""
    image = first_image(file)
    return image.series if image else None


def _is_in_folder(file: Path, place: Path, value: str) -> bool:
    """Whether a folder between a subject's and the file has this name; a part is enough unless it is a number."""
    folders = [part.casefold() for part in file.relative_to(place).parent.parts]
    if value.isdecimal():  # 4 must not match 14
        return value in folders
    return value.casefold() in "/".join(folders)
