"""Whatever a file holds, its reader returns or says in our words what is wrong with it."""

from __future__ import annotations

import gzip
import json
import math
import string
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.cohort.split_files import SIDES, read_split_file
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.console import ERRORS
from nnunet_ssp.files.nifti import integer_labels, read_header, read_nifti
from nnunet_ssp.methods.mim import MIMSettings
from nnunet_ssp.settings import ENVIRONMENT_VARIABLE, FinetuningSettings, override
from tests.cine_trees import cine, drawn, save
from tests.corpus import BARE

MANY = settings(max_examples=50, deadline=None)


def refused_in_words(read: Callable[[Path], object], file: Path) -> object | None:
    """Return what a reader returns, or None when it refuses a file in our words; anything else fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(file)
    except ERRORS as error:
        text = str(error)
        assert file.name in text, text
        assert not BARE.search(text), text
        return None


@pytest.fixture(scope="module")
def folder() -> object:
    with TemporaryDirectory() as made:
        yield Path(made)


# -- settings --------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["num_epochs", "initial_lr", "seed", "nesterov", "optimizer", "mask_ratio", "x"]
)
VALUES = st.one_of(
    st.text(min_size=1, max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["none", "yes", "no", "sgd", "1_0", "\u0665", "0x10", "1e5", "+3", "١٢"]),
)
WORDS = st.one_of(st.text(max_size=12), st.tuples(NAMES, VALUES).map("=".join))


@MANY
@given(st.lists(WORDS, max_size=5).map(" ".join))
def test_settings(text: str) -> None:
    for defaults in (MIMSettings(), FinetuningSettings()):
        try:
            found, _ = override(defaults, text)
        except ValueError as error:
            assert ENVIRONMENT_VARIABLE in str(error) or str(error).startswith("`"), error
            continue
        assert found.num_epochs >= 1 and found.initial_lr > 0
        for word in text.split():
            name, _, value = word.partition("=")
            if name in ("num_epochs", "initial_lr", "seed") and value:
                assert value.isascii() and "_" not in value


# -- splits ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), inner, max_size=3),
    max_leaves=12,
)
FOLD = st.fixed_dictionaries(
    {"train": st.lists(st.text(max_size=5) | st.integers(), max_size=3), "val": JSON}
)


@MANY
@given(
    st.one_of(JSON, st.lists(FOLD | JSON, max_size=4)).map(json.dumps).map(str.encode)
    | st.binary(max_size=200)
)
def test_splits(folder: Path, content: bytes) -> None:
    file = folder / "splits_final.json"
    file.write_bytes(content)
    found = refused_in_words(read_splits, file)
    if found is not None:
        assert all(isinstance(name, str) for fold in found for name in fold["train"] + fold["val"])


@lru_cache
def a_split() -> bytes:
    return json.dumps([{"train": ["a_frame00"], "val": ["b_frame00"]}] * 3).encode()


@given(st.integers(0, len(a_split()) - 1))
@settings(max_examples=len(a_split()), deadline=None)
def test_splits_cut_anywhere(folder: Path, length: int) -> None:
    file = folder / "cut.json"
    file.write_bytes(a_split()[:length])
    assert refused_in_words(read_splits, file) is None


# -- YAML ------------------------------------------------------------------------------------------

YAML = st.text(
    st.sampled_from([*string.ascii_lowercase[:4], *"0123:-{}[]\"'&*!|>%@?#,. \n\t\0é"]), max_size=60
)
TAGGED = st.tuples(
    st.sampled_from(
        [
            "!!int",
            "!!float",
            "!!timestamp",
            "!!binary",
            "!!set",
            "!!omap",
            "!!python/name:os.system",
            "!x",
        ]
    ),
    st.text("0123:-.eTZ_ abc", max_size=12),
).map(lambda both: f"test: {both[0]} '{both[1]}'\n")
SPLIT = st.dictionaries(st.sampled_from([*SIDES, "x"]), JSON, max_size=4).map(json.dumps)


@MANY
@given(st.one_of(YAML, TAGGED, SPLIT).map(str.encode) | st.binary(max_size=100))
def test_split_files(folder: Path, content: bytes) -> None:
    file = folder / "split.yaml"
    file.write_bytes(content)
    found = refused_in_words(read_split_file, file)
    if found is not None:
        assert set(found) in ({*SIDES}, {"test"})


@MANY
@given(st.one_of(YAML, TAGGED).map(str.encode) | st.binary(max_size=100))
def test_study_files(folder: Path, content: bytes) -> None:
    pytest.importorskip("pydantic")
    from nnunet_ssp.study.spec import read_study

    file = folder / "study.yaml"
    file.write_bytes(content)
    assert refused_in_words(read_study, file) is None  # none of them is a study


# -- NIfTI -----------------------------------------------------------------------------------------


@lru_cache
def an_image() -> bytes:
    """The bytes of a cine, not compressed."""
    with TemporaryDirectory() as made:
        file = Path(made) / "image.nii"
        save(cine(), file)
        return file.read_bytes()


PLACES = st.integers(0, 347)
CHANGES = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)
# The fields that decide how much is read, and how it is understood.
FIELDS = st.sampled_from(
    [0, 40, 42, 44, 46, 48, 50, 70, 72, 76, 80, 108, 112, 116, 123, 252, 254, 280, 344]
)
AIMED = st.lists(st.tuples(FIELDS, st.binary(min_size=2, max_size=4)), min_size=1, max_size=4)


@MANY
@given(CHANGES | AIMED, st.booleans())
def test_nifti_headers(folder: Path, changes: list[tuple[int, bytes]], compressed: bool) -> None:
    content = bytearray(an_image())
    for place, value in changes:
        content[place : place + len(value)] = value
    file = folder / ("image.nii.gz" if compressed else "image.nii")
    file.write_bytes(gzip.compress(bytes(content), 1) if compressed else bytes(content))
    shape = refused_in_words(read_header, file)
    found = refused_in_words(read_nifti, file)
    if found is not None:
        voxels, affine = found[0], found[1]  # type: ignore[index]
        assert voxels.dtype.kind in "iuf" and affine.shape == (4, 4)
        assert math.prod(voxels.shape) <= 8 * len(content)
        assert shape is not None


@given(st.floats(0, 1, exclude_max=True), st.booleans())
@MANY
def test_nifti_files_cut_anywhere(folder: Path, share: float, compressed: bool) -> None:
    content = gzip.compress(an_image(), mtime=0) if compressed else an_image()
    file = folder / ("cut.nii.gz" if compressed else "cut.nii")
    file.write_bytes(content[: int(share * len(content))])
    assert refused_in_words(read_nifti, file) is None


@given(st.integers(0, 10**6), st.integers(0, 7))
@MANY
def test_a_wrong_bit_in_a_compressed_file(folder: Path, place: int, bit: int) -> None:
    """It is refused, or changes nothing: the head of the stream holds no data, and repeats may be told in two ways."""
    content = bytearray(gzip.compress(an_image(), mtime=0))
    content[place % len(content)] ^= 1 << bit
    file = folder / "bit.nii.gz"
    file.write_bytes(content)
    found = refused_in_words(read_nifti, file)
    if found is not None:
        assert np.array_equal(found[0], cine())  # type: ignore[index]


@MANY
@given(st.lists(st.floats(width=32) | st.integers(-300, 300).map(float), min_size=1, max_size=5))
def test_masks(folder: Path, values: list[float]) -> None:
    mask = drawn(0).astype(np.float32)
    mask.reshape(-1)[: len(values)] = values
    found = refused_in_words(lambda file: integer_labels(mask, file, range(4)), folder / "a_gt.nii")
    if found is not None:
        assert np.abs(found.astype(float) - mask).max() <= 0.01  # type: ignore[attr-defined]
