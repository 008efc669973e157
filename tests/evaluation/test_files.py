from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.evaluation.files import (
    Pair,
    References,
    find_image_files,
    find_pairs,
    find_references,
    read_array,
    read_pair,
)
from nnunet_ssp.launch import device_flag
from tests.evaluation.conftest import SPACING, heart, write_image, write_pair

END = ".nii.gz"


def touch(folder: Path, *cases: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (folder / f"{case}{END}").touch()
    return folder


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Write a raw and a prepared dataset: test cases t1, t2, training cases a to d, two folds."""
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    touch(raw / "labelsTs", "t1", "t2")
    touch(raw / "labelsTr", *"abcd")
    touch(prepared / "gt_segmentations", *"abcd")
    splits = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]
    (prepared / "splits_final.json").write_text(json.dumps(splits))
    return raw, prepared


def pairs_of(models: dict[str, list[Path]], references: References):
    pairs, notes = find_pairs(models, references, END)
    found = [(p.model, p.seed, p.case, p.reference.parent.name) for p in pairs]
    assert [p.prediction.parent for p in pairs] == [
        f for m, fs in models.items() for f in fs for p in pairs if p.prediction.parent == f
    ]
    return found, notes


def test_test_cases_are_compared_with_labels_ts(places, tmp_path):
    predicted = touch(tmp_path / "predicted", "t1", "t2", "a", "stray")
    (predicted / "plans.json").touch()
    found, (note,) = pairs_of({"m": [predicted]}, find_references(*places, END))
    assert found == [("m", 0, "t1", "labelsTs"), ("m", 0, "t2", "labelsTs")]
    assert note == "m: left out, as no reference is asked for: 2 cases: a, stray."


def test_training_cases_are_compared_with_the_prepared_references(places, tmp_path):
    predicted = touch(tmp_path / "predicted", "b", "d")
    found, notes = pairs_of({"m": [predicted]}, find_references(*places, END))
    assert found == [("m", 0, "b", "gt_segmentations"), ("m", 0, "d", "gt_segmentations")]
    assert notes == []
    found, _ = pairs_of({"m": [predicted]}, find_references(places[0], None, END))
    assert {place for *_, place in found} == {"labelsTr"}
    found, _ = pairs_of({"m": [predicted]}, find_references(None, places[1], END))
    assert {place for *_, place in found} == {"gt_segmentations"}


def test_a_folds_validation_folder_must_be_complete(places, tmp_path):
    references = find_references(*places, END)
    validation = touch(tmp_path / "Trainer__Plans__2d" / "fold_1" / "validation", "a")
    with pytest.raises(FileNotFoundError, match=r"validation has no prediction for 1 case: b\."):
        find_pairs({"m": [validation]}, references, END)
    known = touch(
        tmp_path / "Dataset114_M" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_1/validation", "a"
    )
    (known.parent / "checkpoint_final.pth").touch()
    with pytest.raises(FileNotFoundError) as caught:
        find_pairs({"m": [known]}, references, END)
    line = str(caught.value).partition("The whole validation is made by:\n")[2]
    assert line == f"nnUNetv2_train 114 2d 1 -tr nnUNetTrainer{device_flag()} --val"
    touch(validation, "b")
    assert [case for *_, case, _ in pairs_of({"m": [validation]}, references)[0]] == ["a", "b"]


def test_a_fold_is_known_from_within_and_through_a_link(places, tmp_path, monkeypatch):
    references = find_references(*places, END)
    validation = touch(tmp_path / "Trainer__Plans__2d" / "fold_1" / "validation", "a")
    (tmp_path / "link").symlink_to(validation)
    monkeypatch.chdir(validation)
    for folder in (Path(), tmp_path / "link"):
        with pytest.raises(FileNotFoundError, match=r"has no prediction for 1 case: b\."):
            find_pairs({"m": [folder]}, references, END)


def test_missing_test_cases_are_named(places, tmp_path):
    predicted = touch(tmp_path / "predicted", "t1")
    with pytest.raises(FileNotFoundError, match=r"predicted has no prediction for 1 case: t2\."):
        find_pairs({"m": [predicted]}, find_references(*places, END), END)
    with pytest.raises(FileNotFoundError) as caught:
        find_pairs({"m": [predicted]}, find_references(*places, END), END)
    assert str(caught.value).endswith(
        "with --continue_prediction predicts the missing alone. To score the others alone, copy their references to a "
        "folder and name it with --references."
    )
    spec = find_spec("nnunetv2.inference.predict_from_raw_data")
    assert spec is not None and "--continue_prediction" in Path(str(spec.origin)).read_text()
    alone = touch(tmp_path / "references", "t1")
    assert len(find_pairs({"m": [predicted]}, find_references(*places, END, alone), END)[0]) == 1
    many = {f"c{i:02d}": Path("x") for i in range(13)}
    touch(predicted, "c00")
    with pytest.raises(FileNotFoundError, match=r"12 cases: c01, .*, c10 and 2 more\."):
        find_pairs({"m": [predicted]}, References(many), END)


def test_a_folder_of_references_replaces_the_datasets(places, tmp_path):
    mine = touch(tmp_path / "mine", "x")
    predicted = touch(tmp_path / "predicted", "x", "t1")
    found, notes = pairs_of({"m": [predicted]}, find_references(*places, END, mine))
    assert found == [("m", 0, "x", "mine")]
    assert len(notes) == 1
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder\."):
        find_references(*places, END, tmp_path / "nowhere")


def test_predictions_without_any_reference_are_refused(places, tmp_path):
    predicted = touch(tmp_path / "predicted", "x", "y")
    message = r"no reference for any of 2 cases: x, y\. .* --references names another folder"
    with pytest.raises(FileNotFoundError, match=message):
        find_pairs({"m": [predicted]}, find_references(*places, END), END)
    empty = touch(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty holds no \.nii\.gz file\."):
        find_pairs({"m": [empty]}, find_references(*places, END), END)


def test_equal_cases_are_seeds_and_different_ones_are_folds(places, tmp_path):
    references = find_references(*places, END)
    ab, ab2 = (touch(tmp_path / name, "a", "b") for name in ("ab", "ab2"))
    cd, bc = touch(tmp_path / "cd", "c", "d"), touch(tmp_path / "bc", "b", "c")
    seeds, _ = pairs_of({"m": [ab, ab2]}, references)
    assert [(seed, case) for _, seed, case, _ in seeds] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    folds, _ = pairs_of({"m": [ab, cd]}, references)
    assert [(seed, case) for _, seed, case, _ in folds] == [(0, case) for case in "abcd"]
    with pytest.raises(ValueError, match=r"m: its folders .* seeds 0 and 1 has 2 cases: a, c\."):
        find_pairs({"m": [ab, bc]}, references, END)
    with pytest.raises(
        ValueError, match=r"m and n must have predicted the same .* 2 cases: c, d\."
    ):
        find_pairs({"m": [ab, cd], "n": [ab]}, references, END)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 0, 2)])
def test_folds_of_several_seeds_are_each_seeds_own(places, tmp_path, order):
    folders = [touch(tmp_path / f"{s}{fold}", *fold) for s in (0, 1) for fold in ("ab", "cd")]
    found, _ = pairs_of({"m": [folders[i] for i in order]}, find_references(*places, END))
    seeds = {seed: sorted(case for _, own, case, _ in found if own == seed) for seed in (0, 1)}
    assert seeds == {0: list("abcd"), 1: list("abcd")}
    with pytest.raises(ValueError, match=r"only one of seeds 0 and 1 has 2 cases: c, d\."):
        find_pairs({"m": folders[:3]}, find_references(*places, END), END)


def test_hidden_files_are_no_cases(places, tmp_path):
    predicted = touch(tmp_path / "predicted", "t1", "t2", "._t1", ".ssp-tmp-1-t1")
    found, notes = pairs_of({"m": [predicted]}, find_references(*places, END))
    assert (len(found), notes) == (2, [])


def test_images_are_found_by_case(tmp_path):
    touch(tmp_path / "imagesTr", "a_0000", "a_0001")
    touch(tmp_path / "imagesTs", "t_0000")
    assert {case: path.name for case, path in find_image_files(tmp_path, END).items()} == {
        "a": f"a_0000{END}",
        "t": f"t_0000{END}",
    }
    assert find_image_files(None, END) == {}


# -- reading ---------------------------------------------------------------------------------------


def test_a_pair_is_read_with_its_spacing_in_the_order_of_the_axes(tmp_path):
    maps = heart(9), heart(8)
    prediction, reference, spacing = read_pair(write_pair(tmp_path, *maps, spacing=(8, 1.5, 2)))
    np.testing.assert_array_equal(prediction, maps[0])
    np.testing.assert_array_equal(reference, maps[1])
    assert spacing == (8, 1.5, 2)


@pytest.mark.parametrize("what", ["Size", "Spacing", "Origin", "Direction"])
def test_other_grids_are_refused_by_name(tmp_path, what):
    pair = write_pair(tmp_path, heart(), heart())
    image = SimpleITK.ReadImage(str(pair.prediction))
    if what == "Size":
        image = image[:, :, 1:]
        image.SetOrigin((0, 0, 0))
    elif what == "Direction":
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    else:
        getattr(image, f"Set{what}")((1.25, 1.5, 8))
    SimpleITK.WriteImage(image, str(pair.prediction))
    message = rf"predicted.a\.nii\.gz \({what.lower()}=.*\) must have the {what.lower()} of .*true"
    with pytest.raises(ValueError, match=message):
        read_pair(pair)


def test_what_a_header_rounds_is_no_other_grid(tmp_path):
    pair = write_pair(tmp_path, heart(), heart())
    image = SimpleITK.ReadImage(str(pair.prediction))
    image.SetOrigin((0.0004, 0, 0))
    image.SetSpacing((2.00004, 1.5, 8))
    SimpleITK.WriteImage(image, str(pair.prediction))
    assert read_pair(pair)[2] == (8, 1.5, 2)


def test_files_that_are_no_3d_image_are_named(tmp_path):
    file = write_image(tmp_path / "a.nii.gz", heart())
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: not a complete NIfTI file"):
        read_array(file)
    with pytest.raises(ValueError, match=r"none\.nii\.gz cannot be read as an image: "):
        read_array(tmp_path / "none.nii.gz")
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkUInt8), str(tmp_path / "b.nii.gz"))
    with pytest.raises(ValueError, match=r"b\.nii\.gz \(size=\(4, 4\)\) must be a 3D image of one"):
        read_array(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("side", ["prediction", "reference"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "nan"])
def test_damaged_files_and_nan_are_refused(tmp_path, side, damage):
    """SimpleITK reads missing parts and NaN as 0; it also reads larger files with a wrong checksum."""
    pair = write_pair(tmp_path, heart(), heart())
    file = pair.prediction if side == "prediction" else pair.reference
    content = bytearray(file.read_bytes())
    message = "not a complete NIfTI file"
    if damage == "truncated":
        file.write_bytes(content[: len(content) * 9 // 10])
    elif damage == "flipped":
        content[-6] ^= 1  # in the checksum, as of a bit that was flipped before it
        file.write_bytes(content)
    else:
        voxels = heart().astype(np.float32)
        voxels[3, 3, 3] = np.nan
        write_image(file, voxels)
        message = "holds NaN or infinite values"
    if damage != "flipped":
        assert SimpleITK.ReadImage(str(file)).GetSize() == (44, 40, 6)
    with pytest.raises(ValueError, match=rf"{file.name}: {message}"):
        read_pair(pair)


def test_a_natural_image_is_one_slice(tmp_path):
    SimpleITK.WriteImage(SimpleITK.Image(5, 4, SimpleITK.sitkUInt8), str(tmp_path / "b.png"))
    assert read_array(tmp_path / "b.png").shape == (1, 4, 5)


def test_tiff_stacks_may_differ_in_the_resolution_they_hold(tmp_path):
    paths = [
        write_image(tmp_path / f"{name}.tif", heart(), spacing)
        for name, spacing in (("predicted", (1, 1, 1)), ("true", SPACING))
    ]
    prediction, reference, _ = read_pair(Pair("m", 0, "a", *paths))
    np.testing.assert_array_equal(prediction, reference)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_one_wrong_bit_of_a_compressed_file_is_not_read(tmp_path: Path, ending: str):
    file = tmp_path / f"a{ending}"
    voxels = np.random.default_rng(0).integers(0, 4, (5, 40, 40)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file), useCompression=True)
    assert np.array_equal(read_array(file), voxels)
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a{ending}: the compressed file is .* damaged"):
        read_array(file)


def test_a_stray_file_whose_name_is_not_utf_8_is_named(places: tuple[Path, Path], tmp_path: Path):
    predicted = touch(tmp_path / "predicted", "t1", "t2")
    (predicted / os.fsdecode(b"stray\xff.nii.gz")).touch()
    said = r"predicted: `case` \(=stray\\udcff\) must be one plain name"
    with pytest.raises(ValueError, match=said):
        pairs_of({"a": [predicted]}, find_references(*places, END))
