"""DICOM files found and opened, with or without a preamble, valid to the letter or not."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.valuerep import VR


@contextmanager
def tolerant() -> Iterator[None]:
    """Take formally invalid values, such as the UIDs of de-identified files, as they are."""
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM, with or without the preamble."""
    return _start_of(file) is not None


def open_dicom(file: Path, **options: Any) -> Dataset:
    """Read a file with pydicom's options, with or without the preamble.

    Raises:
        InvalidDicomError: The file is not DICOM.
    """
    try:
        return pydicom.dcmread(file, **options)
    except pydicom.errors.InvalidDicomError:
        start = _start_of(file)
        if start is None:
            raise
    return pydicom.dcmread(BytesIO(file.read_bytes()[start:]), force=True, **options)


def _start_of(file: Path) -> int | None:
    """Return the byte at which pydicom may begin to read; None in a file that is not DICOM.

    A file without the 128 bytes and `DICM` begins with an element of group 2 or 8. No text, NIfTI or
    picture does.
    """
    with open(file, "rb") as stream:
        head = stream.read(256)
    if head[128:132] == b"DICM":
        return 0
    starts = (0, 4) if head[:4] == b"DICM" else (0, 128)
    return next((start for start in starts if _is_element(head[start : start + 8])), None)


def _is_element(head: bytes) -> bool:
    if len(head) < 8:
        return False
    group, element, length = struct.unpack("<HHI", head)
    vr = head[4:6].decode("latin-1")
    if group == 0x0800 and vr in _VRS:  # big endian
        return True
    if group not in (0x0002, 0x0008):
        return False
    known = element == 0 or dictionary_has_tag(group << 16 | element)
    return known and (vr in _VRS or length < 2**16)


_VRS = {vr.value for vr in VR}
