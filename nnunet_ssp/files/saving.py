"""Checkpoints written by PyTorch, whole or not at all, with the sums of their zip taken by ISA-L where it is there."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_ssp.files.atomic import atomic_write, flush
from nnunet_ssp.files.compression import WITH_ISAL
from nnunet_ssp.files.crc import PIECE, crc32, write_sums


def save(file: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all.

    Raises:
        OSError: The file cannot be written, for example because the disk is full; names the file.
    """
    with atomic_write(file) as temporary:
        _write(temporary, checkpoint)


@contextmanager
def saved(file: str | Path, checkpoint: Mapping[str, Any]) -> Iterator[None]:
    """Write a checkpoint beside its place, to which it moves if the block ends without an error."""
    with atomic_write(file) as temporary:
        _write(temporary, checkpoint)
        flush(temporary)  # the caller's threads work meanwhile
        yield


def _write(file: Path, checkpoint: Mapping[str, Any]) -> None:
    # Given a path, torch reports a full disk as an error of its writer's inner state.
    with _without_torchs_sums() as without, _Written(file, without) as stream:
        torch.save(dict(checkpoint), stream)
    if without:
        write_sums(file, stream.sums)


@contextmanager
def _without_torchs_sums() -> Iterator[bool]:
    """Let `torch.save` leave its sums 0 within the block, where it can and ours are faster.

    Yields:
        Whether it leaves them 0.
    """
    serialization: Any = torch.serialization
    if not (WITH_ISAL and hasattr(serialization, "set_crc32_options")):  # before PyTorch 2.6
        yield False
        return
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield True
    finally:
        serialization.set_crc32_options(before)


class _Written(io.FileIO):
    """A file whose `with` block raises its first write error, which torch replaces by one of its own.

    Attributes:
        failure: That error.
        sums: CRC-32 of what was written at a time, by place and number of bytes, if `summed`.
    """

    def __init__(self, path: Path, summed: bool) -> None:
        super().__init__(path, "wb")
        self.failure: OSError | None = None
        self.sums: dict[tuple[int, int], int] = {}
        self._summed = summed

    def write(self, data: Any) -> int:
        view, begin, total = memoryview(data).cast("B"), self.tell(), 0
        try:
            for at in range(0, len(view), PIECE):
                left = view[at : at + PIECE]
                if self._summed:
                    total = crc32(left, total)
                while left:  # a raw file may write only a part
                    left = left[super().write(left) :]
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.sums[begin, len(view)] = total
        return len(view)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.failure is not None:
            raise self.failure from None
