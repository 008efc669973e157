"""Masks that changed after `prepare` copied them, so that a training would learn from the earlier ones."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from nnunet_ssp.nnunet import nnunet_folder

COPIES = "gt_segmentations"  # nnU-Net's folder of the masks that it preprocessed


def changed_masks(dataset: str, prepared: Path, ending: str) -> list[str]:
    """Return the cases whose mask in `labelsTr` is another one than that which was prepared.

    A file that was only copied or compressed anew is not another one.

    Args:
        dataset: Name of the dataset's folders.
        prepared: Its folder in nnUNet_preprocessed.
        ending: Of the masks.

    Returns:
        Their names; none where the raw dataset is not at hand or may not be read, as on a cluster that has the
        preprocessed one alone.
    """
    copies = sorted((prepared / COPIES).glob(f"[!.]*{ending}"))
    try:
        masks = nnunet_folder("nnUNet_raw") / dataset / "labelsTr"
        return [
            copy.name.removesuffix(ending)
            for copy in copies
            if (mask := masks / copy.name).is_file() and not _same(copy, mask)
        ]
    except (RuntimeError, PermissionError):
        return []


def _same(one: Path, other: Path) -> bool:
    """Compare two files by size and time, which a copy keeps, and where these differ by their content."""
    stamps = [(status.st_size, status.st_mtime_ns) for status in (one.stat(), other.stat())]
    if stamps[0] == stamps[1]:
        return True
    content = _content(one)
    return content is not None and content == _content(other)


def _content(file: Path) -> bytes | None:
    """Return what a file holds, decompressed where it is compressed; None if it is damaged."""
    data = file.read_bytes()
    if not file.name.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None
