"""The output folder: one record for each subject, and the tables that they make."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ssp import __version__
from nnunet_ssp.files.atomic import write_json, write_table
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.lock import LOCK
from nnunet_ssp.predict.flags import rule_of
from nnunet_ssp.predict.kept import KeptFrames

MARKER = "predict.json"
TABLES = ("phases.csv", "volumes.csv")
REPORT = "report.html"
# Of the files of a subject
ENDINGS = {
    "mask": "_seg.nii.gz",
    "record": "_seg.json",
    "page": "_seg.html",
    "dicom": "_seg_dicom",
}
FRAMES = ".frames"  # those of subjects that are not finished
FRAME_COLUMNS = (
    *("subject", "frame", "phase", "lv_ml", "myo_ml", "rv_ml", "lv_mass_g"),
    "disagreement_percent",
)
SUBJECT_COLUMNS = (
    *("subject", "n_frames", "n_slices", "ed_frame", "es_frame"),
    *("lv_edv_ml", "lv_esv_ml", "lv_sv_ml", "lv_ef_percent", "lv_mass_g"),
    *("rv_edv_ml", "rv_esv_ml", "rv_sv_ml", "rv_ef_percent", "sv_difference_ml"),
    *("heart_rate", "disagreement_percent", "n_flags", "flags", "rules", "notes", "refused"),
)
KINDS = {
    "stamp": list,
    "choices": dict,
    "frames": dict,
    "subject": dict,
    "flags": dict,
    "notes": list,
}


@dataclass(frozen=True)
class Output:
    """A folder of `nnunet-ssp predict`."""

    folder: Path

    def mask(self, subject: str) -> Path:
        """Return the file of a subject's mask."""
        return self.folder / f"{subject}{ENDINGS['mask']}"

    def record(self, subject: str) -> Path:
        """Return the file of a subject's metrics."""
        return self.folder / f"{subject}{ENDINGS['record']}"

    def page(self, subject: str) -> Path:
        """Return the file of a subject's page."""
        return self.folder / f"{subject}{ENDINGS['page']}"

    def dicom(self, subject: str) -> Path:
        """Return the folder of a subject's DICOM Segmentations."""
        return self.folder / f"{subject}{ENDINGS['dicom']}"

    def frames(self, subject: str, stamp: Sequence[str]) -> KeptFrames:
        """Return the frames of a subject that is not finished.

        Args:
            subject: Its name.
            stamp: Of its images.
        """
        return KeptFrames(self.folder / FRAMES / subject, stamp)

    def has_dicom(self, subject: str) -> bool:
        """Whether there is a DICOM Segmentation of each frame of a subject."""
        record = self.read(subject)
        files = list(self.dicom(subject).glob("frame_*.dcm"))
        return record is not None and len(files) == record["subject"]["n_frames"]

    def take_over(
        self, model: Mapping[str, Any], overwrite: bool, folds: Sequence[str] = ()
    ) -> None:
        """Make the folder one of this model; the caller holds its lock.

        Args:
            model: What decides about the labels.
            overwrite: Whether to delete what another model has written.
            folds: Those of the model, for who reads the folder later; the model's digest tells them apart.

        Raises:
            FileExistsError: The folder is another model's, or not ours.
        """
        marker = self.folder / MARKER
        if not marker.is_file():
            others = [f.name for f in self.folder.iterdir() if f.name != LOCK]
            if any(not name.startswith(".") for name in others):
                raise FileExistsError(
                    f"{self.folder}: holds {sorted(others)[0]}, and no {MARKER}: choose an empty or new folder."
                )
            self._remove_frames()  # `rm OUT/*` leaves them, and nothing tells their model
        else:
            before = read_json(marker, dict).get("model")
            if before != model and not overwrite:
                raise FileExistsError(
                    f"{self.folder}: made by another model, or with other folds, mirroring or postprocessing. "
                    "Choose another folder, or --overwrite."
                )
            if before != model:
                self._clear()
        write_json(marker, {"model": model, "folds": list(folds), "version": __version__})

    def _clear(self) -> None:
        """Remove all results, also those of subjects that a kill has left without a record."""
        for name in (*TABLES, REPORT):
            (self.folder / name).unlink(missing_ok=True)
        for ending in ENDINGS.values():
            for file in self.folder.glob(f"*{ending}"):
                self.remove(file.name.removesuffix(ending))
        self._remove_frames()

    def _remove_frames(self) -> None:
        if (self.folder / FRAMES).is_dir():
            shutil.rmtree(self.folder / FRAMES)

    def subjects(self) -> list[str]:
        """List the subjects that have a record."""
        ending = ENDINGS["record"]
        return sorted(file.name.removesuffix(ending) for file in self.folder.glob(f"*{ending}"))

    def remove(self, subject: str) -> None:
        """Remove what there is of a subject."""
        self.remove_results(subject)
        self.frames(subject, ()).remove()

    def remove_results(self, subject: str) -> None:
        """Remove what there is of a subject but for the frames of one that is not finished."""
        for file in (self.record(subject), self.mask(subject), self.page(subject)):
            file.unlink(missing_ok=True)
        self.remove_dicom(subject)

    def remove_dicom(self, subject: str) -> None:
        """Remove a subject's DICOM Segmentations."""
        if self.dicom(subject).is_dir():
            shutil.rmtree(self.dicom(subject))

    def read(self, subject: str) -> dict[str, Any] | None:
        """Return a subject's record; None where it, mask or page is missing or damaged."""
        try:
            record = read_json(self.record(subject), dict)
        except (FileNotFoundError, ValueError):
            return None
        whole = all(isinstance(record.get(name), kind) for name, kind in KINDS.items())
        files = (self.mask(subject), self.page(subject))
        return record if whole and all(file.is_file() for file in files) else None

    def write_tables(self, refused: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Write `phases.csv` and `volumes.csv` of all subjects in the folder.

        Args:
            refused: Subjects without a result, with the reason.

        Returns:
            The records of the subjects in the tables.
        """
        records = {subject: self.read(subject) for subject in self.subjects()}
        done = {
            subject: record
            for subject, record in records.items()
            if record is not None and subject not in refused
        }
        frames = [row for subject, record in done.items() for row in _frame_rows(subject, record)]
        rows = [_subject_row(subject, record) for subject, record in done.items()]
        rows += [{"subject": subject, "refused": reason} for subject, reason in refused.items()]
        write_table(self.folder / TABLES[0], FRAME_COLUMNS, frames)
        write_table(self.folder / TABLES[1], SUBJECT_COLUMNS, rows)
        return done


def _frame_rows(subject: str, record: Mapping[str, Any]) -> list[dict[str, object]]:
    phases = {record["subject"].get(f"{name.lower()}_frame"): name for name in ("ED", "ES")}
    return [
        {"subject": subject, "frame": frame, "phase": phases.get(frame, "")}
        | {column: _rounded(values[frame]) for column, values in record["frames"].items()}
        for frame in range(record["subject"]["n_frames"])
    ]


def _subject_row(subject: str, record: Mapping[str, Any]) -> dict[str, object]:
    flags = record["flags"]
    return (
        {"subject": subject}
        | {column: _rounded(value) for column, value in record["subject"].items()}
        | {
            "n_flags": len(flags),
            "flags": "; ".join(f"{name}: {found}" for name, found in flags.items()),
            "rules": "; ".join(f"{name}: {rule_of(name)}" for name in flags),
            "notes": "; ".join(record["notes"]),
        }
    )


def _rounded(value: float | None) -> object:
    if value is None or isinstance(value, int):
        return value
    return f"{value:.6g}"


def in_short(metrics: Mapping[str, Any]) -> str:
    """Return the metrics of the LV that a reader looks for first.

    >>> in_short({"lv_edv_ml": 120.4, "lv_esv_ml": 50.0, "lv_ef_percent": 58.5})
    'EDV 120 ml, ESV 50 ml, EF 58 %'
    """
    names = {
        "lv_edv_ml": "EDV {:.0f} ml",
        "lv_esv_ml": "ESV {:.0f} ml",
        "lv_ef_percent": "EF {:.0f} %",
    }
    return ", ".join(
        text.format(metrics[name]) for name, text in names.items() if metrics.get(name) is not None
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers that there are."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else None
