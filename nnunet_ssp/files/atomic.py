"""Files written whole or not at all."""

from __future__ import annotations

import csv
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".ssp-tmp"  # half-written files live in this folder of a dataset, never in nnU-Net's


def write_table(
    file: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> None:
    """Write a CSV table, replacing an existing one as a whole."""
    with atomic_write(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(file: str | Path, content: object) -> None:
    """Write a JSON file, replacing an existing one as a whole."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def atomic_write(file: str | Path, folder: str | Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that becomes `file` when the block ends without an error.

    Readers see the old file or the new one, never half of it, also after a power cut.

    Args:
        file: The file to create or replace; its folder is created.
        folder: Where the temporary file lives, on the same file system as `file`: the dataset's
            `.ssp-tmp` for files of folders that nnU-Net lists. By default the file's own folder.

    Yields:
        A path that ends with the name of `file`, because writers choose the format by the ending.
    """
    file = Path(file)
    folder = file.parent if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_temporary_name()}-{file.name}"
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, file)
        with suppress(OSError):  # some file systems do not flush folders
            flush(file.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            error.filename = str(file)  # writing to an open file names none
        raise
    finally:
        with suppress(OSError):  # the folder may have gone; the first error says so
            temporary.unlink(missing_ok=True)


def _temporary_name() -> str:
    """Return a name of one's own; processes of two containers that share a folder may have equal numbers."""
    return f"{TEMPORARY}-{secrets.randbits(32):08x}"


def require_place(folder: str | Path) -> Path:
    """Return the folder, or the nearest one above it that exists.

    Raises:
        NotADirectoryError: It, or one above it, is a file or a link to nothing.
        PermissionError: This process may not write there.
    """
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return existing


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_together(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `folder` when the block ends without an error.

    A full disk, an error or a kill inside the block leaves the files of `folder` as they were. All are on the disk
    before the first is moved.
    Writing several files through `atomic_write` could end with some old and some new ones.

    Args:
        folder: Where the files belong; created at the end.

    Yields:
        An empty folder on the same file system. Files in its subfolders are not moved.

    Raises:
        OSError: `folder` cannot be, or this process may not write there, see `require_place`.
    """
    folder = Path(folder)
    temporary = require_place(folder) / f"{_temporary_name()}-together"
    temporary.mkdir()
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        written = sorted(temporary.iterdir())
        for file in written:
            if file.is_file():
                flush(file)
        for file in written:
            os.replace(file, folder / file.name)
        with suppress(OSError):  # some file systems do not flush folders
            flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_half_written(folder: str | Path) -> None:
    """Remove what killed writers have left in a folder; nobody may write there at the same time."""
    for left in Path(folder).glob(f"{TEMPORARY}-*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
