from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_ssp.conversion.dicom.headers import patient_id
from nnunet_ssp.conversion.dicom.opening import is_dicom
from tests.dicom_files import (
    read,
    series,
)


def without_preamble(file: Path, kind: str) -> None:
    """Take the 128 bytes and `DICM`, the meta header, or both from a file."""
    dataset = pydicom.dcmread(file)
    if kind in ("meta", "DICM"):
        content = file.read_bytes()
        file.write_bytes(content[132:] if kind == "meta" else content[128:])
    elif kind == "zeros":
        content = file.read_bytes()
        file.write_bytes(content[:128] + content[132:])
    else:
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(
            file,
            dataset,
            enforce_file_format=False,
            implicit_vr=kind == "implicit",
            little_endian=True,
        )


@pytest.mark.parametrize("kind", ["implicit", "explicit", "meta", "DICM", "zeros"])
def test_files_without_preamble(tmp_path: Path, kind: str):
    voxels = series(tmp_path, [0, 1, 2])
    for file in tmp_path.iterdir():
        without_preamble(file, kind)
        assert is_dicom(file)
        assert patient_id(file) == "P1"
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == []


def test_other_files_are_not_taken_for_dicom(tmp_path: Path):
    contents = {
        "nifti": bytes([0x5C, 1, 0, 0]) + bytes(400),
        "text": b"PatientID: 7\n" * 40,
        "short": b"\x08\x00",
        "binary": b"\x08\x00\x03\x7f" + b"\xff" * 300,
        "zeros": bytes(400),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)
    with pytest.raises(ValueError, match="6 files not DICOM, the first binary"):
        read(tmp_path)
