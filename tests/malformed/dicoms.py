"""DICOM files, as `convert cine` reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests import dicom_files
from tests.malformed.entry import ANY_FILE, Entry, cut
from tests.malformed.images import CONVERTED_CINE

Spoil = Callable[[Path], None]


@lru_cache
def _series() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        dicom_files.series(Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def series(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in _series().items():
        (folder / name).write_bytes(content)


def every(**tags: Any) -> Spoil:
    """The same change in every file."""

    def spoil(folder: Path) -> None:
        for file in folder.iterdir():
            dicom_files.edit(file, **tags)

    return spoil


def one(change: Callable[[Path], None]) -> Spoil:
    """A change of the image of slice 1 at frame 2."""
    return lambda folder: change(dicom_files.file_of(folder, 1, 2))


def each(change: Callable[[Path], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        for file in folder.iterdir():
            change(file)

    return spoil


def tagged(**tags: Any) -> Spoil:
    return one(lambda file: dicom_files.edit(file, **tags))


def swapped(old: bytes, new: bytes) -> Spoil:
    """Other bytes of the same length in every file: values that pydicom does not write."""
    assert len(old) == len(new)

    def change(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new))

    return each(change)


def enhanced(**tags: Any) -> Spoil:
    """One enhanced file in place of the series."""

    def spoil(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        dicom_files.enhanced(folder / "enhanced.dcm", frames=4)
        dicom_files.edit(folder / "enhanced.dcm", **tags)

    return spoil


def convert(spoil: Spoil, *words: str, subject: str = "S1") -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        series(root / "source" / subject)
        spoil(root / "source" / subject)
        return ["convert", "cine", "-i", str(root / "source"), "-d", "7", "-np", "1", *words]

    return make


def none_left(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "report.txt").write_text("no image")


# What is wrong, how it is made, what the message must hold.
REFUSED: dict[str, tuple[Spoil, str]] = {
    "no DICOM among the files": (none_left, "report.txt|DICOM"),
    **{
        f"every file {name}": (each(spoil), "DICOM|empty|header")
        for name, spoil in ANY_FILE.items()
    },
    "every header cut": (each(cut(0.4)), "damaged|header|ends|truncated"),
    "every file without its pixels": (each(cut(0.93)), "pixels|truncated|complete"),
    "one file without its pixels": (one(cut(0.93)), "pixels|truncated|complete"),
    "no positions": (every(ImagePositionPatient=None), "[Pp]osition"),
    "positions of NaN": (every(ImagePositionPatient=["nan", "0", "0"]), "[Pp]osition"),
    "one position for all": (every(ImagePositionPatient=[0, 0, 0]), "[Pp]osition|slice|same"),
    "no orientation": (every(ImageOrientationPatient=None), "[Pp]osition|orientation"),
    "axes that are not at right angles": (
        every(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "[Pp]osition|orientation",
    ),
    "spacing of 0": (every(PixelSpacing=[0, 0]), "[Ss]pacing"),
    "spacing in words": (swapped(b"1.5\\1.25", b"abc\\defg"), "[Ss]pacing"),
    "spacing of 1500 mm": (every(PixelSpacing=[1500, 1250]), "[Ss]pacing|unit|implausible"),
    "slope of 1e30": (every(RescaleSlope="1e30", RescaleIntercept="0"), "slope|RescaleSlope"),
    "more rows than pixels": (every(Rows=6000), "pixels|rows|Rows"),
    "other rows in one file": (
        tagged(Rows=3, Columns=10),
        "rows|size|shape|left out|incomplete|missing",
    ),
    "computed tomography": (every(Modality="CT"), "not MR"),
    "in colour": (every(SamplesPerPixel=3), "colour"),
    "a transfer syntax that there is not": (
        swapped(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
        "pixels|transfer syntax|decode|damaged header",
    ),
    "a thousand million frames": (every(NumberOfFrames=10**9), "frames|NumberOfFrames"),
    "an enhanced file of a thousand million frames": (
        enhanced(NumberOfFrames=10**9),
        "frames|NumberOfFrames",
    ),
    "an enhanced file cut": (
        lambda folder: (enhanced()(folder), cut(0.5)(folder / "enhanced.dcm"))[0],
        "enhanced.dcm.*(pixels|frames|truncated|ends)|header.*enhanced.dcm",
    ),
    "an enhanced file without frames' headers": (
        enhanced(PerFrameFunctionalGroupsSequence=None),
        "[Pp]osition|frames",
    ),
}


INSIDE = r"raw/Dataset007_Cine(/(?!(.*/)?\.\.?/)[^\n]*)?$"


def entries() -> Iterator[Entry]:
    for name, (spoil, rule) in REFUSED.items():
        yield Entry(
            f"DICOM: {name}", convert(spoil), rf"error:.*S1.*({rule})", writes=CONVERTED_CINE
        )
    long = "P" + "9" * 300
    for name, patient, exits in (  # 1 where that subject is refused, and the other converted
        ("a PatientID with ..", "../../escaped", 0),
        ("an absolute PatientID", "/tmp/escaped", 0),
        ("a PatientID beyond a file name", long, 1),
        ("a PatientID of dots", "..", 1),
        ("a PatientID with a new line", "P1\n../x", 0),
    ):

        def two_patients(folder: Path, patient: str = patient) -> None:
            dicom_files.series(folder.parent / "other", uid="1.2.3.7", PatientID="Q")
            every(PatientID=patient)(folder)

        yield Entry(
            f"DICOM: {name}",
            convert(two_patients, "--by-patient-id", "--keep-ids"),
            r"raw/Dataset007_Cine",
            exits=exits,
            writes=INSIDE,
        )
        yield Entry(
            f"DICOM: {name}, with a pseudonym",
            convert(two_patients, "--by-patient-id"),
            r"raw/Dataset007_Cine",
            exits=exits,
            writes=rf"{INSIDE}|raw/\.ssp-keys(/[^/\n]*Dataset007_Cine\.(csv|json))?$",
        )


ENTRIES = tuple(entries())
