"""Tensors in the format safetensors; the library of that name is the oracle."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from nnunet_ssp.files.tensors import TYPES, read_tensors, write_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "half": torch.randn(3, dtype=torch.float16),
        "brain": torch.randn(3, dtype=torch.bfloat16),
        "conv.weight": torch.randn(4, 2, 3, 3).transpose(0, 1),
    }


def written(tensors: dict[str, torch.Tensor], **metadata: str) -> bytes:
    stream = io.BytesIO()
    write_tensors(stream, tensors, metadata)
    return stream.getvalue()


def read(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return read_tensors(io.BytesIO(content), len(content), "FILE")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def test_the_library_reads_what_we_write() -> None:
    assert same(load(written(some_tensors(), note="x")), some_tensors())


def test_we_read_what_the_library_writes() -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    got, metadata = read(save(tensors, {"note": "x"}))
    assert same(got, tensors) and metadata == {"note": "x"}


def test_every_tensor_lies_at_a_multiple_of_its_size() -> None:
    content = written(some_tensors())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert length % 8 == 0
    for entry in header.values():
        assert entry["data_offsets"][0] % TYPES[entry["dtype"]].itemsize == 0


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends early"),
        (b"\xff" * 16, "length of its header"),
        (with_header(b"{}")[:9], "length of its header"),
        (with_header(b"[1]"), "must name tensors"),
        (with_header(b"[" * 4000), "no JSON|nests too deeply"),
        (with_header(b'{"a": 1, "a": 2}'), "a occurs twice"),
        (with_header({"w": 3}), "must be described by"),
        (with_header({"__metadata__": {"a": 1}}), "names with text"),
        (with_header(entry(dtype="F33"), bytes(8)), "`dtype`.*must be one of"),
        (with_header(entry(shape=[-2]), bytes(8)), "`shape`.*whole numbers from 1"),
        (with_header(entry(shape=[2**40, 2**40]), bytes(8)), "`shape`"),
        (with_header(entry(shape=[3]), bytes(8)), "must be 12 bytes apart"),
        (with_header(entry(data_offsets=[8, 0]), bytes(8)), "the second not below the first"),
        (with_header(entry(data_offsets=[4, 12]), bytes(12)), "without gaps"),
        (with_header(entry(), bytes(7)), "without gaps"),
        (with_header(entry(), bytes(9)), "without gaps"),
        (with_header({"v": entry()["w"], **entry()}, bytes(8)), "without gaps"),
    ],
)
def test_what_breaks_the_format_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)^FILE.*({words})"):
        read(content)


def test_a_file_that_ends_early_is_refused() -> None:
    content = written(some_tensors())
    with pytest.raises(ValueError, match="it ends early"):
        read_tensors(io.BytesIO(content[:-5]), len(content), "FILE")
