from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.slices.intact import file_stamp
from nnunet_ssp.slices.store import (
    StoredCase,
    add_preprocessed,
    checked,
    preprocessing_of,
    read_index,
    read_missing,
    require_sizes,
    stack_position,
    store_folder,
    write_case,
    write_index,
)

CPU = torch.device("cpu")
SHAPES = [(3, 2, 10, 7), (2, 2, 6, 12), (4, 2, 9, 9)]


# -- files -----------------------------------------------------------------------------------------


def test_write_and_read_back(tmp_path):
    folder = store_folder(tmp_path / "DatasetX", "nnUNetPlans_2d")
    assert folder == tmp_path / "DatasetX" / "nnUNetPlans_2d_slices"
    data = np.random.default_rng(0).normal(size=(2, 5, 8, 6)).astype(np.float32)
    shape = write_case(folder, "a", data)
    assert shape == (5, 2, 8, 6)
    entry = StoredCase(shape, 1, 9, (("a_0000.nii.gz", 123, 456), ("a_0001.nii.gz", 7, 8)))
    write_index(folder, {"spacing": [1.5, 1.5]}, {"a": entry})
    assert read_index(folder) == ({"spacing": [1.5, 1.5]}, {"a": entry})
    assert {f.name for f in folder.iterdir()} == {"a.npy", "index.json"}
    store = SliceStore(folder)
    assert store.preprocessing == {"spacing": [1.5, 1.5]}
    assert (len(store), store.channels, store.nbytes) == (5, 2, 5 * 2 * 8 * 6 * 2)
    slices = store.read(np.array([4, 0]))
    np.testing.assert_array_equal(slices.numpy(), data[:, [4, 0]].swapaxes(0, 1).astype(np.float16))


@pytest.mark.parametrize("value", [65505.0, -1e6, np.inf, -np.inf, np.nan])
def test_values_beyond_float16_are_refused_and_nothing_is_written(tmp_path, value):
    data = np.zeros((1, 2, 3, 3))
    data[0, 1, 2, 0] = value
    with pytest.raises(ValueError, match=r"^a: the largest preprocessed intensity .*at most 65504"):
        write_case(tmp_path / "store", "a", data)
    assert not list(tmp_path.rglob("*a.npy"))


def test_the_largest_float16_is_kept(tmp_path):
    write_case(tmp_path / "store", "a", np.full((1, 1, 2, 2), -65504.0))
    assert (np.load(tmp_path / "store" / "a.npy") == -65504).all()


def test_a_missing_store_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing: run nnunet-ssp prepare"):
        SliceStore(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"preprocessing": {}}',
        '{"preprocessing": {}, "cases": []}',
        '{"preprocessing": {}, "cases": {"a": {"shape": [1, 1, 2, 2]}}}',
        '{"cases": {}}',
        "\xff",
        "[" * 100_000,
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"index\.json is damaged .* run nnunet-ssp prepare, or"):
        read_index(tmp_path)


def test_a_case_that_is_not_in_the_store_is_refused(make_store):
    folder = make_store(SHAPES).folder
    with pytest.raises(ValueError, match=r"2 cases not in the slice store, nobody, "):
        SliceStore(folder, ["case0", "nobody", "neither"])


def test_different_channels_are_refused(make_store):
    with pytest.raises(ValueError, match="equal channels, not 1 and 2"):
        make_store([(3, 1, 8, 8), (3, 2, 8, 8)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [3, 2, 10]}, r"`shape` \(=\[3, 2, 10\]\).* four whole numbers"),
        ({"shape": [3, 2, 10, 7.0]}, "four whole numbers"),
        ({"shape": [3, 2, 10, True]}, "four whole numbers"),
        ({"shape": [3, 2, -10, 7]}, "four whole numbers"),
        ({"shape": [3, 2, 10, 10**40]}, "four whole numbers"),
        ({"shape": [3, 0, 10, 7]}, r"`shape` \(=\[3, 0, 10, 7\]\) must be above 0"),
        ({"first_slice": -1}, r"`first_slice` \(=-1\) must be a whole number from 0"),
        (
            {"first_slice": 3},
            r"3 slices from `first_slice` \(=3\) must be within `n_slices` \(=5\)",
        ),
        ({"n_slices": 2}, r"must be within `n_slices` \(=2\)"),
        ({"source": [["a", 1]]}, r"`source` .* must be a list of \[name, bytes, time\]"),
        ({"stored": 4}, r"`stored` \(=4\) must be a list of \[name, bytes, time\]"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(make_store, changed, message):
    folder = make_store(SHAPES).folder
    content = json.loads((folder / "index.json").read_text())
    content["cases"]["case0"] |= changed
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"index\.json is damaged \(.*{message}.*run nnunet-ssp prep"
    ):
        read_index(folder)


@pytest.mark.parametrize("shape", [(3, 2, 10, 8), (2, 2, 10, 7), (2**15, 2, 2**15, 2**15)])
def test_an_index_that_declares_other_shapes_than_the_files_is_refused(make_store, shape):
    """It is refused before anything of that size is made."""
    folder = make_store(SHAPES).folder
    preprocessing, index = read_index(folder)
    index["case0"] = replace(index["case0"], shape=shape, n_slices=shape[0] + 1)
    write_index(folder, preprocessing, index)
    with pytest.raises(
        ValueError, match=r"case0\.npy is damaged \(it has \d+ bytes, not \d+\): run"
    ):
        SliceStore(folder)


def test_an_index_of_an_earlier_version_can_be_read(make_store):
    folder = make_store(SHAPES).folder
    content = json.loads((folder / "index.json").read_text())
    del content["missing"]
    for entry in content["cases"].values():
        del entry["stored"]
    (folder / "index.json").write_text(json.dumps(content))
    assert all(entry.stored == () for entry in read_index(folder)[1].values())
    assert read_missing(folder) == {}


def test_the_index_tells_what_is_missing(make_store):
    folder = make_store(SHAPES).folder
    preprocessing, index = read_index(folder)
    write_index(folder, preprocessing, index, {"z": "damaged"})
    assert read_missing(folder) == {"z": "damaged"}
    assert read_missing(folder.parent) == {}


def test_files_are_as_they_were_written_or_made_anew(tmp_path):
    """Size and time tell; an index of an earlier version has neither, so files are read once."""
    preprocessed = tmp_path / "nnUNetPlans_2d"
    preprocessed.mkdir()
    data = np.random.default_rng(0).normal(size=(2, 5, 8, 6)).astype(np.float32)
    seg, made = np.zeros((1, 5, 8, 6), np.int8), str(preprocessed / "a")
    nnUNetDatasetBlosc2.save_case(data, seg, PROPERTIES, made, chunks=data.shape, blocks=data.shape)
    store = tmp_path / "nnUNetPlans_2d_slices"
    old = replace(add_preprocessed(store, preprocessed, "a"), stored=())
    files = [store / "a.npy", *(preprocessed / f"a{end}" for end in ("_seg.b2nd", ".pkl", ".b2nd"))]
    entry = checked(old, files)
    assert entry == replace(old, stored=tuple(file_stamp(file) for file in files))
    assert checked(entry, files) == entry
    require_sizes(preprocessed, {"a": entry}, store)
    for file in files:
        content, stat = file.read_bytes(), file.stat()
        os.utime(file, ns=(0, 0))
        assert checked(entry, files) is None
        assert checked(old, files) is not None  # whole, whatever the time
        for length in (0, 60, len(content) - 1):
            file.write_bytes(content[:length])
            os.utime(file, ns=(0, stat.st_mtime_ns))
            assert checked(entry, files) is None
            assert checked(old, files) is None
            if file.parent == preprocessed:
                with pytest.raises(ValueError, match=rf"{file.name} is damaged .* run nnunet-ssp"):
                    require_sizes(preprocessed, {"a": entry}, store)
        file.unlink()
        assert checked(entry, files) is checked(old, files) is None
        if file.parent == preprocessed:
            with pytest.raises(FileNotFoundError, match=rf"{file.name} is missing: run nnunet-ssp"):
                require_sizes(preprocessed, {"a": entry}, store)
        file.write_bytes(content)
        os.utime(file, ns=(0, stat.st_mtime_ns))
    np.save(files[0], np.zeros((5, 2, 6, 8), np.float16))  # of the same size
    assert checked(old, files) is None


def test_a_missing_file_is_found_when_it_is_opened_or_read(make_store):
    store = make_store(SHAPES)
    (store.folder / "case1.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"case1\.npy is missing: run nnunet-ssp prepare"):
        SliceStore(store.folder)
    store.read(np.array([0]))
    with pytest.raises(FileNotFoundError, match=r"case1\.npy cannot be read .* run nnunet-ssp"):
        store.read(np.array([3]))


@pytest.mark.parametrize("length", [0, 5, 70, 200])
def test_a_truncated_file_is_refused(make_store, length):
    store = make_store(SHAPES)
    file = store.folder / "case1.npy"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(
        ValueError, match=r"case1\.npy cannot be read .* run nnunet-ssp prepare, which"
    ):
        store.read(np.array([3]))
    with pytest.raises(
        ValueError, match=rf"case1\.npy is damaged \(it has {length} bytes, not \d+\)"
    ):
        SliceStore(store.folder)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 6, 11), np.float16), np.zeros((2, 2, 6, 12))])
def test_a_file_that_is_not_the_indexs_is_refused(make_store, array):
    store = make_store(SHAPES)
    np.save(store.folder / "case1.npy", array)
    message = re.escape(f"{array.dtype} {array.shape} must be the index's float16 (2, 2, 6, 12)")
    with pytest.raises(ValueError, match=rf"case1\.npy: {message}: run nnunet-ssp prepare"):
        store.read(np.array([3]))


# -- reading ---------------------------------------------------------------------------------------


def test_slices_are_numbered_in_the_order_of_the_chosen_cases(make_store):
    folder = make_store(SHAPES).folder
    store = SliceStore(folder, ["case2", "case0"])
    assert store.names == ["case2", "case0"]
    assert store.case_of.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert store.slice_of.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert store.sizes.tolist() == [[9, 9]] * 4 + [[10, 7]] * 3
    whole = np.load(folder / "case0.npy")
    np.testing.assert_array_equal(store.read(np.array([5]))[0].numpy(), whole[1])


def test_an_empty_choice_of_cases(make_store):
    store = SliceStore(make_store(SHAPES).folder, [])
    assert (len(store), store.nbytes, len(store.positions)) == (0, 0, 0)
    assert (store.bases, store.positions.shape) == ([], (0, 2))


# -- positions -------------------------------------------------------------------------------------


def test_positions_are_counted_from_the_base_in_the_original_stack(make_store):
    folder = make_store([(3, 1, 4, 4), (2, 1, 4, 4), (3, 1, 4, 4), (1, 1, 4, 4)]).folder
    bases = {"case0": "first", "case1": "last", "case2": "unknown", "nobody": "last"}
    store = SliceStore(folder, None, bases)
    assert store.bases == ["first", "last", "unknown", "unknown"]
    # The crop took the first and the last slice of each stack.
    expected = [[1, 5], [2, 5], [3, 5], [2, 4], [1, 4], [1, 5], [2, 5], [3, 5], [1, 3]]
    assert store.positions.tolist() == expected
    assert store.positions.dtype == np.int64
    # They go with the case, whatever cases are chosen.
    chosen = SliceStore(folder, ["case3", "case1"], bases)
    assert chosen.bases == ["unknown", "last"]
    assert chosen.positions.tolist() == [[1, 3], [2, 4], [1, 4]]


def test_without_bases_positions_are_as_stored(make_store):
    store = make_store(SHAPES)
    assert set(store.bases) == {"unknown"}
    np.testing.assert_array_equal(store.positions[:, 0], 1 + store.slice_of)


def test_turning_the_stack_mirrors_its_positions(make_store):
    folder = make_store(SHAPES).folder
    names = ("case0", "case1", "case2")
    first, last = (
        SliceStore(folder, None, dict.fromkeys(names, base)) for base in ("first", "last")
    )
    number, depth = first.positions.T
    np.testing.assert_array_equal(last.positions, np.stack([depth - 1 - number, depth], 1))


# -- what made the store ---------------------------------------------------------------------------

CONFIGURATION = {
    "spacing": [1.25, 1.25],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3},
    "batch_size": 12,
    "patch_size": [256, 224],
}
PLANS = {
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"mean": 3.0}},
    "dataset_name": "Dataset114_X",
}


def test_what_decides_how_a_slice_looks():
    made = preprocessing_of(PLANS, CONFIGURATION)
    assert json.loads(json.dumps(made)) == made
    for name, value in (
        ("spacing", [1.0, 1.25]),
        ("normalization_schemes", ["NoNormalization"]),
        ("use_mask_for_norm", [True]),
        ("resampling_fn_data_kwargs", {"is_seg": False, "order": 1}),
    ):
        assert preprocessing_of(PLANS, {**CONFIGURATION, name: value}) != made
    assert preprocessing_of({**PLANS, "transpose_forward": [1, 0, 2]}, CONFIGURATION) != made
    for name, value in (("batch_size", 2), ("patch_size", [128, 128])):
        assert preprocessing_of(PLANS, {**CONFIGURATION, name: value}) == made
    as_tuple = {**CONFIGURATION, "spacing": (1.25, np.float64(1.25))}
    assert preprocessing_of(PLANS, as_tuple) == made


def test_intensities_decide_for_ct_only():
    other = {**PLANS, "foreground_intensity_properties_per_channel": {"0": {"mean": 4.0}}}
    assert preprocessing_of(other, CONFIGURATION) == preprocessing_of(PLANS, CONFIGURATION)
    ct = {**CONFIGURATION, "normalization_schemes": ["CTNormalization"]}
    assert preprocessing_of(other, ct) != preprocessing_of(PLANS, ct)


PROPERTIES = {
    "bbox_used_for_cropping": [[2, 7], [0, 8], [1, 7]],
    "shape_before_cropping": (9, 8, 8),
}


def test_stack_position_undoes_the_crop():
    assert stack_position(PROPERTIES) == (2, 9)


def test_a_case_of_nnunets_folder_is_copied(tmp_path):
    preprocessed = tmp_path / "nnUNetPlans_2d"
    preprocessed.mkdir()
    data = np.random.default_rng(0).normal(size=(2, 5, 8, 6)).astype(np.float32)
    seg = np.zeros((1, 5, 8, 6), np.int8)
    file = str(preprocessed / "a")
    nnUNetDatasetBlosc2.save_case(data, seg, PROPERTIES, file, chunks=data.shape, blocks=data.shape)
    entry = add_preprocessed(tmp_path / "nnUNetPlans_2d_slices", preprocessed, "a")
    stored = (file_stamp(tmp_path / "nnUNetPlans_2d_slices" / "a.npy"),)
    assert entry == StoredCase((5, 2, 8, 6), first_slice=2, n_slices=9, stored=stored)
    stored = np.load(tmp_path / "nnUNetPlans_2d_slices" / "a.npy")
    np.testing.assert_array_equal(stored, data.swapaxes(0, 1).astype(np.float16))
    assert replace(entry, source=(("x", 1, 2),)) != entry

    (preprocessed / "a.b2nd").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"nnUNetPlans_2d/a: cannot be read"):
        add_preprocessed(tmp_path / "nnUNetPlans_2d_slices", preprocessed, "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [1, 1, 2]),
        ("shape", "1122"),
        ("shape", [1, 1, 2, 10**12]),
        ("shape", [-1, 1, 2, 2]),
        ("shape", [1.0, 1, 2, 2]),
        ("first_slice", "0"),
        ("n_slices", 10**30),
        ("source", [["a", 1]]),
        ("source", {}),
    ],
)
def test_an_index_of_wrong_content_is_refused(tmp_path, key, value):
    entry = {"shape": [1, 1, 2, 2], "first_slice": 0, "n_slices": 1, "source": [["a", 1, 2]]}
    write_json(tmp_path / "index.json", {"preprocessing": {}, "cases": {"a": entry}})
    assert list(read_index(tmp_path)[1]) == ["a"]
    write_json(tmp_path / "index.json", {"preprocessing": {}, "cases": {"a": entry | {key: value}}})
    with pytest.raises(ValueError, match=rf"index\.json is damaged \(a: `{key}` .* must be"):
        read_index(tmp_path)
