from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.slices.drawing import DeviceStore, SliceStore
from nnunet_ssp.slices.packs import in_whole_packs, pack_name, remove_other_packs, write_pack
from nnunet_ssp.slices.store import (
    StoredCase,
    as_slices,
    checked,
    read_index,
    write_case,
    write_index,
)

SHAPES = {"a": (3, 1, 5, 7), "b": (3, 1, 4, 4), "c": (3, 1, 6, 2)}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {case: rng.normal(size=shape).astype(np.float32) for case, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two packs, of `a` and `b` and of `c`, and a case `d` with a file of its own."""
    folder = tmp_path / "DatasetX" / "plans_2d_slices"
    entries: dict[str, StoredCase] = {}
    for cases in (("a", "b"), ("c",)):
        made = (
            (case, as_slices(case, arrays()[case]), StoredCase((0, 0, 0, 0), 0, 1))
            for case in cases
        )
        entries |= write_pack(folder, pack_name(cases), made)
    entries["d"] = StoredCase(write_case(folder, "d", np.ones((3, 2, 3, 3))), 0, 2)
    write_index(folder, {}, entries)
    return folder


def test_slices_of_packs_are_drawn_as_those_of_files(folder: Path):
    store = SliceStore(folder, ["c", "d", "a", "b"])
    assert (len(store), store.channels) == (5, 3)
    for number, case in enumerate(["c", "a", "b"]):
        position = [0, 3, 4][number]
        expected = arrays()[case].swapaxes(0, 1)[0].astype(np.float16)
        np.testing.assert_array_equal(store.slice(position), expected)
        np.testing.assert_array_equal(store.array([0, 2, 3][number])[0], expected)
    numbers = np.arange(5)
    resident = DeviceStore(store, torch.device("cpu"))
    assert torch.equal(resident.read(numbers), store.read(numbers))


def test_a_pack_holds_nothing_but_pixels(folder: Path):
    _, index = read_index(folder)
    packs = {entry.pack for entry in index.values()} - {""}
    assert len(packs) == 2
    pixels = 2 * sum(np.prod(shape) for shape in SHAPES.values())
    assert sum((folder / pack).stat().st_size for pack in packs) == pixels
    assert "pack" not in json.loads((folder / "index.json").read_text())["cases"]["d"]


def test_a_truncated_pack_is_refused_before_training(folder: Path):
    _, index = read_index(folder)
    pack = folder / index["a"].pack
    pack.write_bytes(pack.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pack_.*is damaged \(it has 305 bytes, not 306\): run"):
        SliceStore(folder, ["b"])
    SliceStore(folder, ["c", "d"])
    assert checked(index["a"], [pack]) is None
    pack.unlink()
    with pytest.raises(FileNotFoundError, match=r"pack_.*is missing: run"):
        SliceStore(folder, ["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pack": "../a.f16"}, "`pack` .*must be the name of a pack"),
        ({"offset": -1}, "`offset` .*whole number from 0"),
        ({"offset": 300}, "must lie within the 306 bytes"),
        ({"stored": []}, "must be the stamp of pack_"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder: Path, change, message):
    content = json.loads((folder / "index.json").read_text())
    content["cases"]["a"] |= change
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_index(folder)


def test_a_pack_is_valid_as_a_whole(folder: Path):
    _, index = read_index(folder)
    valid = {case: index[case] for case in ("b", "c", "d")}
    assert in_whole_packs(valid, index).keys() == {"c", "d"}
    assert in_whole_packs(index, index) == index
    remove_other_packs(folder, {"c": index["c"]})
    assert {file.name for file in folder.iterdir()} == {index["c"].pack, "d.npy", "index.json"}


def test_without_cases_there_is_no_pack(tmp_path: Path):
    assert write_pack(tmp_path / "store", pack_name(["a"]), iter(())) == {}
    assert not (tmp_path / "store").exists()
