"""Files that are mistaken for our checkpoints, recognised by the names in their pickles without unpickling."""

from __future__ import annotations

import pickletools
import zipfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO

from nnunet_ssp.files.bundles import is_shared
from nnunet_ssp.files.soundness import is_lfs_pointer

OPCODES = 500_000  # read from one pickle at most
PICKLES = 4  # before torch 1.6, three precede the content: magic number, protocol, machine
LONGEST = 60  # characters of a name
# Bytes that a pickle in a zip may unpack to: so many times its own, and some room.
MOST_UNPACKED, ROOM = 4, 2**20

# Names in a checkpoint of version 1, and in the record FILE.pkl beside it.
VERSION_1 = {"epoch", "state_dict", "optimizer_state_dict", "plot_stuff"}
VERSION_1_RECORD = {"init", "name", "class", "plans"}


def name_foreign(file: Path) -> str:
    """Name the kind of a file that is often mistaken for a checkpoint of nnU-Net version 2.

    Returns:
        The kind in words; empty for all other files, ours included.
    """
    if is_lfs_pointer(file):
        return "a git-lfs pointer in place of the file: run git lfs pull"
    if is_shared(file):  # has no pickle, and is read within bounds of its own
        return ""
    names = pickled_names(file)
    if names >= VERSION_1:
        return "a checkpoint of nnU-Net version 1, whose networks version 2 cannot load"
    if names >= VERSION_1_RECORD and "network_weights" not in names:
        return (
            f"the record that nnU-Net version 1 wrote beside {file.name.removesuffix('.pkl')}, whose network version 2 "
            "cannot load"
        )
    return ""


def pickled_names(file: Path) -> set[str]:
    """Return the short strings in the pickles of a file by torch, in either format, or by pickle.

    The opcodes are listed, not run. A damaged file gives the strings before the damage.
    """
    names: set[str] = set()
    with suppress(Exception):  # pickletools, zipfile and zlib raise many kinds
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    # PyTorch stores without compression: what unpacks to much more is not its own.
                    most = MOST_UNPACKED * member.compress_size + ROOM
                    if member.filename.endswith("data.pkl") and member.file_size <= most:
                        with archive.open(member) as stream:
                            _collect(stream, names)
        else:
            with open(file, "rb") as stream:
                for _ in range(PICKLES):
                    _collect(stream, names)
    return names


def _collect(stream: IO[bytes], names: set[str]) -> None:
    for _, argument, _ in islice(pickletools.genops(stream), OPCODES):
        if isinstance(argument, str) and len(argument) <= LONGEST:
            names.add(argument)
