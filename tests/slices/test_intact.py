from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.slices.intact import (
    can_be_read,
    file_stamp,
    npy_header,
    npy_size,
    prepare_command,
    require_size,
)


def test_the_command_that_repairs_a_store_names_its_dataset_and_plans(tmp_path):
    base = tmp_path / "Dataset014_Toy"
    base.mkdir()
    (base / "tiny.json").touch()
    assert prepare_command(base / "nnUNetPlans_2d_slices") == "nnunet-ssp prepare 14"
    assert prepare_command(base / "tiny_2d_slices") == "nnunet-ssp prepare 14 -p tiny"
    (base / "nnUNetPlans.json").touch()  # may be another dataset's: planning anew would lose them
    assert prepare_command(base / "nnUNetPlans_2d_slices") == "nnunet-ssp prepare 14 -p nnUNetPlans"
    assert prepare_command(tmp_path / "x_slices") == "nnunet-ssp prepare"


def test_a_stamp_changes_with_name_size_and_time(tmp_path: Path):
    file = tmp_path / "a.npy"
    file.write_bytes(b"123")
    os.utime(file, ns=(7, 5_000_000_000))
    assert file_stamp(file) == ("a.npy", 3, 5_000_000_000)
    os.utime(file, ns=(7, 6_000_000_000))
    assert file_stamp(file) == ("a.npy", 3, 6_000_000_000)
    file.write_bytes(b"1234")
    os.utime(file, ns=(7, 5_000_000_000))
    assert file_stamp(file) == ("a.npy", 4, 5_000_000_000)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (12, 1, 256, 250), (3, 2, 10, 7)])
def test_header_and_size_are_those_of_numpy(tmp_path: Path, shape: tuple[int, int, int, int]):
    file = tmp_path / "a.npy"
    np.save(file, np.zeros(shape, np.float16))
    content = file.read_bytes()
    assert content.startswith(npy_header(shape))
    assert len(content) == npy_size(shape)
    assert can_be_read(file, shape)
    assert not can_be_read(file, (*shape[:3], shape[3] + 1))
    file.write_bytes(content[:-1])
    assert not can_be_read(file, shape)


def test_a_pickle_is_read_to_its_end_without_running_it(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"spacing": [8.0, 1.5, 1.5], "trap": Trap()}))
    assert can_be_read(file, (1, 1, 1, 1))
    assert not (tmp_path / "ran").exists()
    file.write_bytes(file.read_bytes()[:-5])
    assert not can_be_read(file, (1, 1, 1, 1))


def test_a_file_of_another_size_is_named_with_the_way_out(tmp_path: Path):
    store = tmp_path / "Dataset007_Toy" / "nnUNetPlans_2d_slices"
    file = tmp_path / "a.npy"
    with pytest.raises(FileNotFoundError, match=r"a\.npy is missing: run nnunet-ssp prepare 7\."):
        require_size(file, 3, store)
    file.write_bytes(b"123")
    require_size(file, 3, store)
    with pytest.raises(ValueError, match=r"a\.npy is damaged \(it has 3 bytes, not 4\): run nnun"):
        require_size(file, 4, store)
