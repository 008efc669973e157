from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.preparation.command import prepare
from tests.preparation.conftest import (
    everything,
    index,
    names,
    plain_dataset,
)


def test_a_plain_nnunet_dataset_of_two_channels(
    folders: Path, extractions: list[int], capsys: pytest.CaptureFixture[str]
):
    plain_dataset(folders, "Dataset903_Plain", channels=2)
    target = prepare("Dataset903_Plain", workers=1)
    assert {name: entry.shape for name, entry in index(target).items()} == {
        f"a.b_{number}": (3, 2, 36, 40) for number in range(4)
    }
    assert names(target / "gt_segmentations") == ["a.b_0.nii.gz", "a.b_1.nii.gz"]
    assert not (target / "cases.csv").exists() and not (target / "splits_final.json").exists()
    # nnU-Net cannot draw five folds of two cases.
    assert "Next: nnUNetv2_train 903 2d all -tr nnUNetTrainerMIMPretrain" in capsys.readouterr().out


def test_other_files_in_imagesun_are_no_cases(raw: Path, target: Path, preprocessed: list[str]):
    for name in ("._x_0000.nii.gz", "notes.txt", "x_0000.npy", "x.nii.gz"):
        (raw / "imagesUn" / name).write_text("not an image")
    prepare(901, workers=1)
    assert preprocessed == []


def test_an_image_without_a_channel_is_named_as_it_is(folders: Path):
    raw = plain_dataset(folders, "Dataset907_Named")
    (raw / "imagesTr" / "a.b_0_0000.nii.gz").rename(raw / "imagesTr" / "patient7.nii.gz")
    with pytest.raises(
        ValueError, match=r"imagesTr/patient7\.nii\.gz: .*: patient7_0000\.nii\.gz$"
    ):
        prepare(907, workers=1)


def test_nnunets_former_name_of_the_channels(folders: Path, extractions: list[int]):
    raw = plain_dataset(folders, "Dataset906_Old")
    content = json.loads((raw / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    write_json(raw / "dataset.json", content)
    assert len(index(prepare(906, workers=1))) == 4


def test_a_raw_dataset_that_names_its_own_files(folders: Path, extractions: list[int]):
    raw = plain_dataset(folders, "Dataset904_Listed", labelled=1, unlabelled=0)
    (raw / "labelsTr" / "a.b_0.nii.gz").rename(raw / "somewhere.nii.gz")
    content = json.loads((raw / "dataset.json").read_text())
    entry = {"images": ["imagesTr/a.b_0_0000.nii.gz"], "label": "somewhere.nii.gz"}
    write_json(raw / "dataset.json", content | {"dataset": {"mine": entry}})
    target = prepare(904, workers=1)
    assert list(index(target)) == ["mine"]
    assert names(target / "gt_segmentations") == ["mine.nii.gz"]


@pytest.mark.parametrize("name", ["../../outside", "/elsewhere/outside", "..\\outside"])
def test_a_case_of_dataset_json_that_leads_elsewhere_is_refused(base: Path, raw: Path, name: str):
    content = json.loads((raw / "dataset.json").read_text())
    image, label = names(raw / "imagesTr")[0], names(raw / "labelsTr")[0]
    listed = {"images": [f"imagesTr/{image}"], "label": f"labelsTr/{label}"}
    write_json(raw / "dataset.json", {**content, "dataset": {name: listed}})
    before = everything(base)
    with pytest.raises(
        ValueError, match=r"dataset\.json, `dataset`: `case` .* must be one plain name"
    ):
        prepare(901, workers=1)
    assert everything(base) == before


def test_a_file_ending_that_leads_elsewhere_is_refused(base: Path, raw: Path):
    content = json.loads((raw / "dataset.json").read_text())
    write_json(raw / "dataset.json", {**content, "file_ending": "/../../../x"})
    before = everything(base)
    with pytest.raises(ValueError, match=r"`file_ending` .* must be an ending, as \.nii\.gz"):
        prepare(901, workers=1)
    assert everything(base) == before


def drop_channel(raw: Path) -> None:
    (raw / "imagesUn" / "a.b_2_0001.nii.gz").unlink()


def drop_label(raw: Path) -> None:
    (raw / "labelsTr" / "a.b_1.nii.gz").unlink()


def drop_all_labels(raw: Path) -> None:
    shutil.rmtree(raw / "labelsTr")


def drop_images(raw: Path) -> None:
    shutil.rmtree(raw / "imagesTr")


def twice(raw: Path) -> None:
    for channel in range(2):
        name = f"a.b_0_{channel:04d}.nii.gz"
        shutil.copy(raw / "imagesTr" / name, raw / "imagesUn" / name)


def drop_key(raw: Path) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    del content["numTraining"]
    write_json(raw / "dataset.json", content)


def break_json(raw: Path) -> None:
    (raw / "dataset.json").write_text("{")


def drop_json(raw: Path) -> None:
    (raw / "dataset.json").unlink()


def unfinished(raw: Path) -> None:
    drop_json(raw)
    (raw / "convert.json").touch()


def unreadable(raw: Path) -> None:
    (raw / "imagesTr" / "a.b_0_0000.nii.gz").write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (drop_channel, ValueError, r"case a.b_2 has 1 channel, but other cases have 2"),
        (
            drop_label,
            FileNotFoundError,
            r"labelsTr/a.b_1.nii.gz is missing: every image of imagesTr",
        ),
        (drop_all_labels, FileNotFoundError, r"a.b_0.nii.gz is missing: every image of imagesTr"),
        (drop_images, ValueError, r"no image in imagesTr, and dataset.json lists none in imagesUn"),
        (twice, ValueError, r"case a.b_0 must not be in both imagesTr and imagesUn"),
        (drop_key, ValueError, r"dataset.json: `numTraining` is missing"),
        (break_json, ValueError, r"dataset.json: not a JSON file"),
        (drop_json, FileNotFoundError, r"dataset.json is missing: nnU-Net needs it"),
        (
            unfinished,
            FileNotFoundError,
            r"the conversion is unfinished, run nnunet-ssp convert again",
        ),
        (unreadable, ValueError, r"a.b_0_0000.nii.gz: none of nnU-Net's readers can read it"),
    ],
)
def test_a_wrong_dataset_is_refused(
    folders: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
):
    raw = plain_dataset(folders, "Dataset905_Wrong", channels=2)
    spoil(raw)
    with pytest.raises(error, match=message):
        prepare(905, workers=1)


def rewrite_cases(raw: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
    with open(raw / "cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    changed = [row for row in map(change, rows) if row is not None]
    with open(raw / "cases.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(changed)


def test_a_test_subject_never_enters_the_slice_store(raw: Path):
    subject = names(raw / "imagesUn")[0].split("_")[0]
    rewrite_cases(raw, lambda row: row | ({"split": "test"} if row["subject"] == subject else {}))
    with pytest.raises(
        ValueError, match=rf"imagesUn/{subject}.*: test subject {subject} must be in imagesTs only"
    ):
        prepare(901, workers=1)


def test_every_case_must_be_in_the_table(raw: Path):
    case = names(raw / "imagesUn")[0].removesuffix("_0000.nii.gz")
    rewrite_cases(raw, lambda row: None if row["case"] == case else row)
    with pytest.raises(ValueError, match=rf"cases.csv: there is no row for case {case}"):
        prepare(901, workers=1)


@pytest.mark.parametrize("side", ["train", "val"])
def test_folds_that_name_what_is_no_case_are_refused(raw, target, side):
    splits = read_splits(raw / "splits_final.json")
    splits[1][side].append("nobody_frame00")
    write_json(raw / "splits_final.json", splits)
    before = (target / "splits_final.json").read_bytes()
    with pytest.raises(ValueError, match=f"fold 1: `{side}` names nobody_frame00, which must be"):
        prepare(901, workers=1)
    assert (target / "splits_final.json").read_bytes() == before
