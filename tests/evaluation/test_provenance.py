"""Folders of predictions that hold what another dataset's model has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.provenance import (
    ARGUMENTS,
    OURS,
    option_notes,
    provenance_notes,
    read_provenance,
)
from tests.evaluation.conftest import Document
from tests.evaluation.running import Predict, run, tables

HERE = "Dataset114_MNMs"
LABELS = Labels(
    {"LVBP": (1,), "LVM": (2,), "RV": (3,)}, structures={"LV": "LVBP", "MYO": "LVM", "RV": "RV"}
)
OWN_LABELS: dict[str, Any] = {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}
# As nnU-Net's conversion of ACDC calls and numbers them
ACDCS: dict[str, Any] = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}


def beside(
    folder: Path, model: str = HERE, images: str = "", labels: dict[str, Any] | None = None
) -> Path:
    """Write the files that `nnUNetv2_predict` writes beside its masks."""
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {
        "plans.json": {"dataset_name": model, "plans_name": "nnUNetPlans"},
        "dataset.json": {"labels": labels or OWN_LABELS, "file_ending": ".nii.gz"},
        ARGUMENTS: {"list_of_lists_or_source_folder": images, "num_parts": 1},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def said(folder: Path) -> list[str]:
    return provenance_notes({"m": [folder]}, HERE, LABELS)


def test_masks_of_another_dataset_are_warned_of_in_terminal_and_page(
    predict: Predict, capsys, with_page
):
    folder = predict("mim", 1.0)
    beside(folder, "Dataset123_Other", "/x/nnUNet_raw/Dataset123_Other/imagesTs")
    assert run("114 -np 1", folder) == 0
    warning = (
        "WARNING: mim: nnU-Net predicted last into this folder from the images of Dataset123_Other, with a model of "
        "Dataset123_Other; they are scored here on Dataset114_MNMs. Masks of the same names that lay there "
        "before were replaced. Predict again into a folder of its own."
    )
    assert f"\n{warning}\n" in capsys.readouterr().out
    output = folder.with_name("mim_evaluation")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert warning in Document(page).text
    *_, summary = tables(output)
    assert summary["notes"][0] == warning


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (HERE, f"/x/nnUNet_raw/{HERE}/imagesTs", ""),
        (HERE, "/x/some/images", ""),
        ("Dataset123_O", f"/x/{HERE}/imagesTs", "m: the model was trained on Dataset123_O."),
        (
            "Dataset123_O",
            "/x/some/images",
            "WARNING: m: nnU-Net predicted last into this folder with",
        ),
        (HERE, "C:\\raw\\Dataset123_O\\imagesTs", "WARNING: m: nnU-Net predicted last into this "),
    ],
)
def test_images_and_model_of_another_dataset(tmp_path, model: str, images: str, words: str):
    """A model of another dataset may be tested on this one's images; its own images are a mistake."""
    notes = said(beside(tmp_path / "p", model, images))
    assert len(notes) == bool(words)
    assert "".join(notes).startswith(words)


def test_labels_that_are_numbered_otherwise_are_refused(predict: Predict, capsys):
    folder = predict("mim", 1.0)
    beside(folder, "Dataset027_ACDC", "/x/Dataset114_MNMs/imagesTs", ACDCS)
    assert run("114 -np 1", folder) == 1
    printed = capsys.readouterr().err
    assert (
        "RV is label 1 in these predictions (dataset.json, a model of Dataset027_ACDC) and 3 in "
        in printed
    )
    assert not folder.with_name("mim_evaluation").exists()


def test_other_names_and_more_classes_of_the_same_numbers_are_the_same_labels(tmp_path):
    labels = {"background": 0, "LV cavity": 1, "Myo": 2, "RV": [3, 4], "scar": 5, "ignore": 6}
    assert said(beside(tmp_path / "p", labels=labels)) == []


def test_a_class_is_compared_with_the_one_of_its_name(tmp_path):
    """As with --lv LVBP, where two classes could be the left ventricle."""
    both = Labels({"LV": (1,), "LVBP": (2,)}, structures={"LV": "LVBP"})
    folder = beside(tmp_path / "p", labels={"background": 0, "LV": 1, "LVBP": 2})
    assert provenance_notes({"m": [folder]}, HERE, both) == []
    swapped = beside(tmp_path / "s", labels={"background": 0, "LV": 2, "LVBP": 1})
    with pytest.raises(ValueError, match=f"LV is label 2 in these .* and 1 in {HERE}"):
        provenance_notes({"m": [swapped]}, HERE, both)


def test_a_validation_is_that_of_its_training(tmp_path):
    model = beside(tmp_path / "Dataset123_O" / "T__P__2d", "Dataset123_O")
    folder = model / "fold_0" / "validation"
    folder.mkdir(parents=True)
    assert read_provenance(folder).images == "Dataset123_O"
    (note,) = said(folder)
    assert note.startswith("WARNING: m: this is the validation of a training on Dataset123_O;")


@pytest.mark.parametrize("seen", [2, 0, None, "2", -1])
def test_a_validation_whose_subjects_pretraining_has_seen(tmp_path, seen: object):
    folder = beside(tmp_path / HERE / "T__P__2d") / "fold_1" / "validation"
    folder.mkdir(parents=True)
    assert said(folder) == []
    record = {"validation_subjects_seen_in_pretraining": seen} if seen is not None else {}
    (folder.parent / "settings.json").write_text(json.dumps(record))
    expected = (
        "WARNING: m: pretraining has seen 2 subjects of the validation set of fold_1, so these figures are too good. "
        "Pretrain on the same fold for a clean validation."
    )
    assert said(folder) == [expected] * (seen == 2)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"labels": {"a": "x"}}', b"\xff\xfe"])
def test_damaged_files_are_named_and_say_nothing(tmp_path, content: bytes):
    folder = beside(tmp_path / "p")
    (folder / "dataset.json").write_bytes(content)
    (note,) = said(folder)
    assert note == "m: dataset.json beside the masks cannot be read: not checked whose they are."


def test_without_these_files_nothing_is_said(tmp_path):
    assert said(tmp_path) == []
    (tmp_path / "plans.json").write_text('{"dataset_name": 7}')
    assert said(tmp_path) == []


def test_predictions_of_another_dataset_are_named_with_its_command(
    predict: Predict, dataset: Path, capsys
):
    folder = predict("mim", 1.0)
    for number, file in enumerate(sorted(folder.glob("*.nii.gz"))):
        file.rename(folder / f"acdc{number}.nii.gz")
    assert run("114 -np 1", folder) == 1
    plain = capsys.readouterr().err
    assert "There are some for 16 cases: T0_frame00, T0_frame07, T1_frame00 and 13 more." in plain
    assert "By the files beside them" not in plain
    beside(folder, "Dataset027_ACDC", "/x/nnUNet_raw/Dataset027_ACDC/imagesTs")
    assert run("114 -np 1", folder) == 1
    assert capsys.readouterr().err.endswith(
        "By the files beside them these are predictions by a model of Dataset027_ACDC on images of Dataset027_ACDC. "
        f"On Dataset027_ACDC: nnunet-ssp evaluate 27 {folder}\n"
    )
    # Of the same dataset, without references: its command is the one that has just failed.
    beside(folder, dataset.name, f"/x/nnUNet_raw/{dataset.name}/imagesTs")
    assert run("114 -np 1", folder) == 1
    assert "By the files beside them" not in capsys.readouterr().err


def by_predict(folder: Path, mirror: object, folds: object, steps: object = ()) -> Path:
    """Write the record that `nnunet-ssp predict` writes beside its masks."""
    folder.mkdir(parents=True)
    model = {"digest": "x", "mirror": mirror, "postprocessing": steps}
    (folder / OURS).write_text(json.dumps({"model": model, "folds": folds, "version": "0.1.0"}))
    return folder


def test_models_that_were_not_predicted_alike_are_named(tmp_path):
    validation = tmp_path / "T__P__2d" / "fold_0" / "validation"
    validation.mkdir(parents=True)
    alike = by_predict(tmp_path / "alike", True, ["0"])
    quick = by_predict(tmp_path / "quick", False, ["1"], [{"class": 1}])
    averaged = by_predict(tmp_path / "averaged", True, ["0", "1", "2"])
    assert option_notes({"a": [validation], "b": [alike]}) == []
    assert option_notes({"a": [alike, quick]}) == []  # a single model is compared with none
    not_alike, part = (
        "The models were not predicted alike: ",
        ". A part of their difference comes from this.",
    )
    assert option_notes({"a": [validation], "b": [quick], "c": [tmp_path]}) == [
        f"{not_alike}a with mirroring; b without mirroring (--disable_tta){part}",
        f"{not_alike}a without postprocessing; b with postprocessing{part}",
    ]
    assert option_notes({"a": [alike], "b": [averaged]}) == [
        f"{not_alike}a by 1 fold; b by 3 folds{part}"
    ]
    mixed = option_notes({"a": [alike], "b": [alike, quick]})
    assert (
        f"{not_alike}a with mirroring; b with mirroring or without mirroring (--disable_tta){part}"
        in mixed
    )


def test_what_nnunet_does_not_record_is_said_to_be_unchecked(tmp_path):
    ours, theirs = by_predict(tmp_path / "o", True, ["0"]), beside(tmp_path / "t")
    (note,) = option_notes({"ours": [ours], "theirs": [theirs]})
    assert note == (
        "nnUNetv2_predict does not record mirroring (--disable_tta), step size and folds of theirs: not checked "
        "whether all models were predicted alike."
    )
    assert option_notes({"theirs": [theirs]}) == []
    assert option_notes({"theirs": [theirs], "others": [theirs]}) == []


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model": 3, "folds": 1}', b"\xff\xfe", b"{}"])
def test_a_damaged_record_of_predict_says_nothing(tmp_path, content: bytes):
    quick, damaged = by_predict(tmp_path / "q", False, ["0"]), tmp_path / "d"
    damaged.mkdir()
    (damaged / OURS).write_bytes(content)
    assert option_notes({"quick": [quick], "damaged": [damaged]}) == []


def test_the_terminal_and_the_page_say_that_models_were_not_predicted_alike(
    predict: Predict, tmp_path: Path, capsys, with_page
):
    folders = [predict(name, 1.0) for name in ("a", "b")]
    for folder, mirror in zip(folders, (True, False), strict=True):
        record = by_predict(tmp_path / "records" / folder.name, mirror, ["0"]) / OURS
        record.rename(folder / OURS)
    assert run("114 -np 1 -o", tmp_path / "out", *folders) == 0
    note = (
        "The models were not predicted alike: a with mirroring; b without mirroring (--disable_tta). A part of their "
        "difference comes from this."
    )
    assert f"\nNote: {note}\n" in capsys.readouterr().out
    assert (
        f"Note: {note}"
        in Document((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    )
