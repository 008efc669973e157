"""Folders that a newcomer gives in place of predictions, and the lines that lead on."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from nnunet_ssp.evaluation import mistaken
from nnunet_ssp.launch import device_flag
from tests.evaluation.running import Predict, run


@pytest.fixture
def model(nnunet: Path) -> Path:
    """The folder of a fine-tuned model, with the checkpoint of fold 0."""
    folder = nnunet / "nnUNet_results/Dataset114_MNMs/nnUNetTrainerFinetune__small__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    return folder


def test_images_are_told_from_predictions_before_anything_else(dataset, capsys):
    images = dataset / "imagesTs"
    assert run("114 -np 1", images) == 1
    said = capsys.readouterr().err
    assert f"{images}: these are images, as their names end in _0000, not predictions. " in said
    assert "No model of Dataset114_MNMs is fine-tuned in nnUNet_results yet." in said
    assert "`-o`" not in said


def test_images_of_a_trained_model_are_predicted_by_the_line(
    dataset, model, nnunet, capsys, monkeypatch
):
    monkeypatch.setattr(mistaken, "device_flag", lambda: " -device cpu")
    copies = nnunet / "copies"
    shutil.copytree(dataset / "imagesTs", copies)
    for folder, images in ((dataset / "imagesTs",) * 2, (copies, copies)):
        assert run("114 -np 1", folder) == 1
        out = "predictions/Dataset114_MNMs/nnUNetTrainerFinetune_small_fold_0"
        assert capsys.readouterr().err.splitlines()[1:] == [
            f"nnUNetv2_predict -d 114 -c 2d -f 0 -p small -tr nnUNetTrainerFinetune -i {images} -o {out} -device cpu",
            f"nnunet-ssp evaluate 114 {out}",
        ]


def test_cases_whose_names_end_like_images_are_predictions(dataset, predict: Predict, nnunet):
    folder = predict("model", 1.0)
    (dataset / "cases.csv").unlink()
    for place in (dataset / "labelsTs", folder):
        for number, file in enumerate(sorted(place.iterdir())):
            file.rename(place / f"heart_{number:04d}.nii.gz")
    assert run("114 -np 1", folder) == 0


def test_the_line_for_a_fold_names_its_validation_and_works(
    dataset, predict: Predict, model, nnunet, capsys
):
    assert run("114 -np 1", model / "fold_0") == 1
    said, line = capsys.readouterr().err.splitlines()
    assert "its validation, which holds predictions, is not there. It is made at the end of" in said
    train = "nnUNetv2_train 114 2d 0 -p small -tr nnUNetTrainerFinetune"
    assert line == f"{train}{device_flag()} --val"
    shutil.copytree(predict("scratch", 1.0), model / "fold_0" / "validation")
    # Of this test: cases of a training without folds
    (dataset / "labelsTs").rename(dataset / "labelsTr")
    assert run("114 -np 1", model / "fold_0") == 1
    said, line = capsys.readouterr().err.splitlines()
    assert (
        said
        == f"error: {model / 'fold_0'}: this is the folder of a training; its predictions are in validation:"
    )
    assert shlex.split(line) == [*("nnunet-ssp", "evaluate", "114"), f"{model}/fold_0/validation"]
    assert run(shlex.join(shlex.split(line)[2:])) == 0
    capsys.readouterr()

    assert run(f"114 -np 1 -o {nnunet / 'out'}", model, f"other={nnunet / 'scratch'}") == 1
    line = capsys.readouterr().err.splitlines()[1]
    assert shlex.split(line)[3:] == [
        f"{model.name}={model}/fold_0/validation",
        f"other={nnunet / 'scratch'}",
        *("-o", str(nnunet / "out")),
    ]
    assert run(shlex.join(shlex.split(line)[2:])) == 0


def test_a_copied_training_has_no_line(dataset, tmp_path, capsys):
    """Only nnU-Net's folders tell the dataset."""
    fold = tmp_path / "copied" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    assert run("114 -np 1", fold) == 1
    said = capsys.readouterr().err
    assert said.endswith("It is made at the end of nnUNetv2_train, or with --val.\n")


def test_an_interrupted_validation_is_made_by_the_line(dataset, predict: Predict, model, capsys):
    """Of a finished training; one that has not ended goes on."""
    validation = model / "fold_0" / "validation"
    validation.mkdir()
    train = "nnUNetv2_train 114 2d 0 -p small -tr nnUNetTrainerFinetune"
    for how in ("--val", "--c"):
        assert run("114 -np 1", validation) == 1
        said, line = capsys.readouterr().err.splitlines()
        assert said == (
            f"error: {validation}: holds no prediction; the validation was interrupted or has not begun. It is made by:"
        )
        assert line == f"{train}{device_flag()} {how}"
        (model / "fold_0" / "checkpoint_final.pth").unlink(missing_ok=True)


def test_other_folders_are_no_trainings(dataset, nnunet, model, capsys):
    for folder, said in (
        (nnunet / "mine" / "fold_0", "holds no .nii.gz file."),
        (model / "fold_9", "is not a folder."),
    ):
        if folder.parent != model:
            folder.mkdir(parents=True)
        assert run("114 -np 1", folder) == 1
        assert capsys.readouterr().err == f"error: {folder} {said}\n"


def test_a_pretraining_has_no_predictions(dataset, nnunet, capsys):
    fold = (
        nnunet / "nnUNet_results/Dataset114_MNMs/nnUNetTrainerMIMPretrain__nnUNetPlans__2d/fold_0"
    )
    fold.mkdir(parents=True)
    for folder in (fold, fold.parent):
        assert run("114 -np 1", folder) == 1
        assert (
            f"{folder}: this is a pretraining, which segments nothing." in capsys.readouterr().err
        )


def test_predictions_within_raw_data_need_another_place_to_write_to(
    dataset, predict: Predict, nnunet, capsys
):
    inside = dataset / "predicted"
    shutil.copytree(predict("model", 1.0), inside)
    assert run("114 -np 1", inside) == 1
    assert f"{inside} lies in nnUNet_raw, whose folders hold data" in capsys.readouterr().err
    assert run(f"114 -np 1 -o {nnunet / 'out'}", inside) == 0
