"""Frames of a subject that is not finished: whole files, of these images, or none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.predict.kept import KeptFrames

LABELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.fixture
def kept(tmp_path: Path) -> KeptFrames:
    frames = KeptFrames(tmp_path / ".frames" / "one", ["in/one.nii.gz", "one.nii.gz 12 3"])
    frames.open()
    frames.write(7, LABELS, float("nan"))
    return frames


def test_a_frame_comes_back_as_it_was(kept) -> None:
    labels, doubt = kept.read(7, (2, 3, 4))
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.uint8 and math.isnan(doubt)
    assert kept.read(6, (2, 3, 4)) is None
    assert kept.count() == 1
    kept.open()
    assert kept.count() == 1


def test_frames_of_other_images_are_not_used(kept) -> None:
    changed = KeptFrames(kept.folder, ["in/one.nii.gz", "one.nii.gz 12 4"])
    assert changed.count() == 0
    changed.open()
    assert changed.read(7, (2, 3, 4)) is None and kept.count() == 0


def test_a_damaged_frame_is_none(kept) -> None:
    file = kept.folder / "frame_0007.npz"
    content = file.read_bytes()
    for part in (b"", content[:-40], content[:50], b"x" * 200, bytes(90) + content[90:]):
        file.write_bytes(part)
        assert kept.read(7, (2, 3, 4)) is None
    kept.write(7, LABELS.astype(float), 1.0)
    assert kept.read(7, (2, 3, 4)) is None
    kept.write(7, LABELS, 1.0)
    assert kept.read(7, (2, 3, 5)) is None


def test_a_frame_of_which_any_byte_has_changed_is_none_or_whole(kept) -> None:
    """Of a changed way of packing, zipfile raises errors of many kinds."""
    file = kept.folder / "frame_0007.npz"
    content = file.read_bytes()
    for place in range(len(content)):
        for bit in (1, 8, 64):
            changed = bytearray(content)
            changed[place] ^= bit
            file.write_bytes(changed)
            found = kept.read(7, (2, 3, 4))
            assert found is None or (np.array_equal(found[0], LABELS) and math.isnan(found[1]))


def test_half_written_frames_and_empty_folders_go(kept) -> None:
    left = kept.folder / ".ssp-tmp-0123abcd-frame_0008.npz"
    left.touch()
    kept.open()
    assert not left.exists()
    kept.remove()
    assert not kept.folder.parent.exists()
    kept.remove()
