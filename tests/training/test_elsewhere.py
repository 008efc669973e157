"""What is shared, in an environment of its own: a model without this package, a pretraining with its wheel."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import nibabel
import pytest

from tests.fresh import Fresh

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(2700)]

FEW = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
ONE_PROCESS = ("-npp", 1, "-nps", 1, "-device", "cpu", "--disable_tta")
SMALL = ("--patch", 64, 64, "--width", 0.25)
MODEL = ("-c", "2d", "-f", 0, "-tr", "nnUNetTrainerFinetune")


def test_a_fine_tuned_model_predicts_without_this_package(
    runs, prepared, pretrained, tmp_path, command
):
    # The export asks for the summary of the validation, and for the picture of the training.
    validated = FEW.replace("final_validation=no", "final_validation=yes")
    runs.run("nnUNetTrainerFinetune", validated, weights=pretrained).perform_actual_validation()
    model = tmp_path / "model.zip"
    command("nnUNetv2_export_model_to_zip", "-d", 901, "-o", model, *MODEL, "-p", "tiny")
    images = prepared / "raw" / "Dataset901_Phantom" / "imagesTs"
    (tmp_path / "elsewhere").mkdir()
    there = Fresh(tmp_path / "elsewhere", ours=False)
    assert there.has("nnunetv2") and not there.has("nnunet_ssp")
    there.run("nnUNetv2_install_pretrained_model_from_zip", model)
    output = tmp_path / "masks"
    words = ("nnUNetv2_predict", "-d", 901, *MODEL, "-p", "tiny", "-i", images, "-o", output)
    there.run(*words, *ONE_PROCESS)
    masks = sorted(output.glob("*.nii.gz"))
    assert [f"{mask.name[:-7]}_0000.nii.gz" for mask in masks] == sorted(
        image.name for image in images.iterdir()
    )
    # As here, where this package is.
    words = (*words[:-1], tmp_path / "here")
    command(*words, *ONE_PROCESS)
    for mask in masks:
        here = nibabel.load(tmp_path / "here" / mask.name).get_fdata()
        assert (nibabel.load(mask).get_fdata() == here).all()


def test_a_pretraining_on_real_cine_serves_another_site(
    real_data: Path, tmp_path: Path, monkeypatch
):
    """Pretrained on Sunnybrook, exported, imported elsewhere into ACDC's dataset, fine-tuned and predicted with."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    here = Fresh(tmp_path / "one", ours=True)
    here.environment["nnUNet_extTrainer"] = trainers(here)
    here.run("nnunet-ssp", "convert", "mnms", "-i", real_data / "sunnybrook_mnms", "-d", 114)
    here.run("nnunet-ssp", "prepare", 114, *SMALL, "-overwrite_plans_name", "small")
    train = ("nnUNetv2_train", 114, "2d", "all", "-p", "small", "-tr", "nnUNetTrainerMIMPretrain")
    few = "num_epochs=1 iterations_per_epoch=2 batch_size=4"
    here.run(*train, "-device", "cpu", nnUNet_ssp_settings=few)
    (checkpoint,) = (tmp_path / "one" / "results").rglob("checkpoint_final.pth")
    shared = tmp_path / "heart.zip"
    here.run("nnunet-ssp", "export", checkpoint, "-o", shared, "--data-licence", "CC0 1.0")

    patients = tmp_path / "ACDC" / "training"
    for number in range(1, 7):
        name = f"patient{number:03d}"
        shutil.copytree(real_data / "acdc60" / "training" / name, patients / name)
    there = Fresh(tmp_path / "other", ours=True)
    there.environment["nnUNet_extTrainer"] = trainers(there)
    there.run("nnunet-ssp", "convert", "acdc", "-i", patients.parent, "-d", 160)
    said = there.run("nnunet-ssp", "import", shared, "-d", 160)
    assert "licences of the data: CC0 1.0\n" in said
    typed = [line.partition(": ")[2] for line in said.splitlines()]
    printed = [shlex.split(line) for line in typed if line.lower().startswith("nnunet")]
    there.run(*next(words for words in printed if words[1:2] == ["prepare"]))
    recipe, *finetune = next(words for words in printed if "nnUNetTrainerFinetune" in words)
    assert recipe.startswith("nnUNet_ssp_settings=recipe=few ")
    said = there.run(*finetune, "-device", "cpu", nnUNet_ssp_settings=FEW)
    assert "Pretrained weights" in said and "fresh" in said
    (dataset,) = (tmp_path / "other" / "raw").glob("Dataset160_*")
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted((dataset / "imagesTr").iterdir())[:2]:
        shutil.copy(image, images)
    output = tmp_path / "masks"
    words = ("nnUNetv2_predict", "-d", 160, *MODEL, "-p", "heart", "-i", images, "-o", output)
    there.run(*words, *ONE_PROCESS)
    masks = sorted(output.glob("*.nii.gz"))
    assert len(masks) == 2
    for mask in masks:
        image = nibabel.load(images / f"{mask.name[:-7]}_0000.nii.gz")
        assert nibabel.load(mask).shape == image.shape


def trainers(fresh: Fresh) -> str:
    """The folder of our trainers, as `env` says it."""
    return shlex.split(fresh.run("nnunet-ssp", "env"))[1].partition("=")[2]
