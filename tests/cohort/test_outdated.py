"""Masks of `labelsTr` beside the copies that `prepare` made."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from nnunet_ssp.cohort.outdated import changed_masks

NAME, ENDING = "Dataset007_A", ".nii.gz"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """`labelsTr` and the prepared dataset, with the same two masks."""
    labels, prepared = tmp_path / "raw" / NAME / "labelsTr", tmp_path / "pre" / NAME
    copies = prepared / "gt_segmentations"
    for folder in (labels, copies):
        folder.mkdir(parents=True)
    for case in "ab":
        (labels / f"{case}{ENDING}").write_bytes(gzip.compress(bytes(99), mtime=0))
        shutil.copy2(labels / f"{case}{ENDING}", copies)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return labels, prepared


def test_a_mask_with_another_content_has_changed(folders: tuple[Path, Path]):
    labels, prepared = folders
    assert changed_masks(NAME, prepared, ENDING) == []
    (labels / f"b{ENDING}").write_bytes(gzip.compress(bytes(98) + b"1", mtime=0))
    assert changed_masks(NAME, prepared, ENDING) == ["b"]


def test_a_mask_that_was_copied_or_compressed_anew_has_not(folders: tuple[Path, Path]):
    labels, prepared = folders
    os.utime(labels / f"a{ENDING}", (1, 1))
    (labels / f"b{ENDING}").write_bytes(gzip.compress(bytes(99), compresslevel=1, mtime=5))
    assert changed_masks(NAME, prepared, ENDING) == []


def test_a_damaged_mask_has_changed(folders: tuple[Path, Path]):
    labels, prepared = folders
    whole = (labels / f"a{ENDING}").read_bytes()
    (labels / f"a{ENDING}").write_bytes(whole[:-4])
    assert changed_masks(NAME, prepared, ENDING) == ["a"]


def test_without_the_raw_dataset_nothing_is_said(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    labels, prepared = folders
    (labels / f"a{ENDING}").unlink()
    assert changed_masks(NAME, prepared, ENDING) == []
    monkeypatch.delenv("nnUNet_raw")
    (labels / f"b{ENDING}").write_bytes(b"")
    assert changed_masks(NAME, prepared, ENDING) == []


def test_masks_that_may_not_be_read_are_not_compared(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    """A group may share what was prepared, and not the patients' images."""
    labels, prepared = folders
    os.utime(labels / f"a{ENDING}", (1, 1))
    read = Path.read_bytes

    def refusing(file: Path) -> bytes:
        if file.is_relative_to(labels):
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    assert changed_masks(NAME, prepared, ENDING) == []
