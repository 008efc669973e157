"""Lines that commands and trainings print are run as they are, in folders with spaces."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import zipfile
from collections.abc import Callable
from importlib.resources import files
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import nibabel
import nnunetv2.utilities.utils
import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training_entry

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.launch import device_flag, validating_command
from nnunet_ssp.recommended import MOVEMENT, MOVEMENT_SETTINGS
from nnunet_ssp.slices.store import read_index, store_folder, write_index
from nnunet_ssp.study.data import open_data
from nnunet_ssp.training.advice import advice
from tests.natural_images import write_tree
from tests.preparation.conftest import quicken_fingerprint
from tests.training.conftest import DATASET, Runs

pytestmark = pytest.mark.slow

FEW = "num_epochs=1 iterations_per_epoch=2 batch_size=4 val_iterations_per_epoch=1"
TUNE = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1"
ENV = ("nnUNet_n_proc_DA", "0"), ("nnUNet_compile", "f"), ("nnUNet_def_n_proc", "1")
ASSIGNED = re.compile(r"nnUNet_ssp_settings=(.*)", re.DOTALL)


@pytest.fixture
def mine(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders with the phantom, in a folder with a space; returns that folder."""
    base = tmp_path / "my data"
    for name in ("raw", "preprocessed"):
        shutil.copytree(prepared / name, base / name)
    (base / "results").mkdir()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(base / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(files("nnunet_ssp.trainers")))
    for name, value in ENV:
        monkeypatch.setenv(name, value)
    quicken_fingerprint(monkeypatch)
    monkeypatch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)  # lists folders
    return base


@pytest.fixture
def dataset(mine: Path) -> Path:
    return mine / "preprocessed" / DATASET


@pytest.fixture
def paste(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], one_thread: None
) -> Callable[..., str]:
    """Run a line as a shell would, in this process; its own settings come before those given."""

    def run(line: str, settings: str = "") -> str:
        monkeypatch.chdir(mine)
        capfd.readouterr()
        for part in line.split(" && "):
            words = shlex.split(part)
            own = settings
            while found := ASSIGNED.fullmatch(words[0]):
                own, words = found[1], words[1:]
            monkeypatch.setenv("nnUNet_ssp_settings", own)
            monkeypatch.setattr("sys.argv", words)
            if words[0] == "nnUNetv2_train":
                run_training_entry()
                torch.set_num_threads(1)
            else:
                assert words[0] == "nnunet-ssp"
                assert main(words[1:]) == 0, line
        said = capfd.readouterr()
        return said.out + said.err

    return run


@pytest.fixture
def trained(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def line_after(said: str, words: str) -> str:
    """The rest of the line after some words, or the next line where these end it."""
    return said[said.rindex(words) + len(words) :].strip().splitlines()[0]


def refusal(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    capfd.readouterr()
    assert main([*map(str, words)]) == 1
    said = capfd.readouterr()
    return said.err + said.out


def interrupted(trainer: Any) -> str:
    """Train until a signal in the second epoch; return the log."""
    epoch_end = trainer.on_epoch_end

    def stop() -> None:
        epoch_end()
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.on_epoch_end = stop
    with pytest.raises(SystemExit):
        trainer.run_training()
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"])
def test_an_interrupted_training_goes_on_by_its_line(trained, paste, trainer, no_pictures):
    settings = FEW.replace("num_epochs=1", "num_epochs=2")
    if trainer == "nnUNetTrainerScratch":
        settings = settings.replace("batch_size=4 ", "") + " final_validation=no"
    stopped = trained.make(trainer, settings)
    line = line_after(interrupted(stopped), "go on with: ")
    # In a new shell, where nobody has set the settings of the run.
    said = paste(line)
    assert "Epoch 1" in said and "Epoch 0" not in said
    assert (Path(stopped.output_folder) / "checkpoint_final.pth").is_file()


def test_a_damaged_checkpoint_is_replaced_by_the_line(trained, paste, no_pictures):
    settings = FEW.replace("num_epochs=1", "num_epochs=2")
    stopped = trained.make("nnUNetTrainerMIMPretrain", settings)
    interrupted(stopped)
    latest = Path(stopped.output_folder) / "checkpoint_latest.pth"
    shutil.copy(latest, latest.with_name("checkpoint_best.pth"))
    latest.write_bytes(latest.read_bytes()[:1000])
    with pytest.raises(ValueError, match="To go on from an older one: ") as refused:
        trained.make("nnUNetTrainerMIMPretrain", settings, resume=True)
    os.system(line_after(str(refused.value), "To go on from an older one: "))
    resumed = trained.make("nnUNetTrainerMIMPretrain", settings, resume=True)
    assert resumed.current_epoch == 1


def test_an_unlabelled_pretraining_is_fine_tuned_by_its_lines(
    mine, dataset, trained, paste, no_pictures
):
    shutil.copytree(mine / "raw" / DATASET, mine / "raw" / "Dataset908_Labelled")
    content = read_json(dataset / "dataset.json", dict)
    write_json(dataset / "dataset.json", content | {"labels": {"background": 0}})
    trainer = trained.run("nnUNetTrainerMIMPretrain", FEW, fold="all")
    trainer.perform_actual_validation()
    said = Path(trainer.log_file).read_text()
    prepare = line_after(said, "before the second line:")
    train = said[said.index(prepare) + len(prepare) :].strip().splitlines()[0]
    paste(f"{prepare.replace('ID', '908')} -np 1")
    said = paste(train.replace("ID", "908"), f"{TUNE} final_validation=no")
    assert "Loaded" in said and "encoder 32 tensors" in said


def test_an_imported_pretraining_goes_on_by_its_lines(mine, pretrained_once, paste, capfd):
    shared = mine / "heart.zip"
    assert main(["export", str(pretrained_once()), "-o", str(shared)]) == 0
    other = mine / "raw" / "Dataset908_Other"
    (mine / "raw" / DATASET).rename(other)
    shutil.rmtree(mine / "preprocessed" / DATASET)
    capfd.readouterr()
    with zipfile.ZipFile(shared) as content:
        (card,) = (name for name in content.namelist() if name.endswith(".md"))
        page = content.read(card).decode()
    line = re.search(r"nnunet-ssp import THIS_ZIP -d DATASET(?= +#)", page)[0]
    said = paste(line.replace("THIS_ZIP", shlex.quote(str(shared))).replace("DATASET", "908"))
    prepared = paste(line_after(said, "Next: "))
    further = line_after(said, "Then, to pretrain further: ")
    assert line_after(prepared, "Or, to pretrain heart.zip further: ") == further
    assert "Pretraining done" in paste(further, FEW)
    finetune = line_after(prepared, "Next, to fine-tune from heart.zip: ")
    assert finetune == line_after(said, "Or, to fine-tune: ")
    without = line_after(prepared, "Or, without these weights: ")
    assert without.startswith(
        f"nnUNet_ssp_settings='{MOVEMENT_SETTINGS}' nnUNetv2_train 908 2d 0 -p heart -tr"
    )
    short = finetune[finetune.index("nnUNetv2_train") :]  # without the 1,500 steps for few labels
    said = paste(short, f"{TUNE} final_validation=no")
    assert "Loaded" in said and "encoder 32 tensors" in said


@pytest.mark.heavy
def test_without_test_subjects_the_validation_is_evaluated_by_its_line(
    mine, trained, paste, capfd, no_pictures
):
    for folder in ("imagesTs", "labelsTs"):
        shutil.rmtree(mine / "raw" / DATASET / folder)
    run = trained.run("nnUNetTrainerScratch", TUNE)
    validate = run.command("--val")  # as the chain of test_printed_commands.py runs it
    assert validating_command(Path(run.output_folder)) in (
        validate,
        validate.replace(" -device cpu", ""),
    )
    run.perform_actual_validation()
    line = line_after(Path(run.log_file).read_text(), "Evaluate the validation subjects with:")
    said = paste(line)
    assert (mine / line_after(said, "Report: ")).is_file()


def test_what_a_checkpoint_reveals_is_removed_by_the_line(mine, pretrained_once, paste, capfd):
    file = mine / "checkpoint final.pth"
    content = torch.load(pretrained_once(), weights_only=True)
    content["ssp"]["subjects"] = ["Doe, Jane"]
    content["ssp"]["weights_from"] = "/home/alice/checkpoint_final.pth"
    torch.save(content, file)
    assert main(["inspect", str(file), "--private"]) == 1
    paste(line_after(capfd.readouterr().out, "To write a checkpoint without: "))
    (written,) = mine.glob("*_stripped.pth")
    assert main(["inspect", str(written), "--private"]) == 0
    assert b"alice" not in written.read_bytes() and b"Jane" not in written.read_bytes()


def test_folds_are_trained_on_by_their_lines(mine, dataset, paste, capfd, no_pictures):
    cases, fold = read_cases(dataset / "cases.csv"), read_splits(dataset / "splits_final.json")[0]
    vendors = {cases[fold[side][0]].vendor for side in ("train", "val")}
    assert main(["folds", "901", "--vendors", *sorted(vendors)]) == 0
    said = capfd.readouterr().out
    scratch = line_after(said, "To train from scratch on the first: ")
    number = int(shlex.split(scratch)[3])
    assert number == len(read_splits(dataset / "splits_final.json")) - 1
    paste(scratch, f"{TUNE} final_validation=no")
    pretrain = next(line for line in said.splitlines() if "DensePretrain" in line)
    assert "Pretraining done" in paste(pretrain.replace(MOVEMENT_SETTINGS, f"{MOVEMENT} {FEW}"))


def test_an_unprepared_dataset_is_prepared_by_the_line(mine, dataset, paste, capfd, trained):
    shutil.rmtree(dataset)
    file = dataset / "nnUNetPlans.json"
    line = advice(FileNotFoundError(2, "No such file", str(file)))
    paste(line_after(line, "is not prepared: "))
    assert file.is_file()


def test_changed_masks_are_prepared_by_the_line(mine, dataset, paste, trained):
    masks = sorted((mine / "raw" / DATASET / "labelsTr").glob("*.nii.gz"))
    image = nibabel.load(masks[0])
    swapped = np.asarray([0, 3, 2, 1], np.uint8)[np.asarray(image.dataobj).astype(int)]
    nibabel.save(nibabel.Nifti1Image(swapped, image.affine, image.header), masks[0])
    with pytest.raises(ValueError, match=r"1 mask of .* changed") as refused:
        trained.make("nnUNetTrainerScratch").initialize()
    paste(re.search(r"Run (nnunet-ssp prepare.*)\.", str(refused.value))[1])
    trained.make("nnUNetTrainerScratch").initialize()
    prepared = dataset / "gt_segmentations" / masks[0].name
    np.testing.assert_array_equal(np.asarray(nibabel.load(prepared).dataobj), swapped)


@pytest.mark.parametrize("loss", ["index", "case", "store"])
def test_a_damaged_store_is_mended_by_the_line(dataset, trained, paste, loss, no_pictures):
    store = dataset / "tiny_2d_slices"
    if loss == "index":
        (file,) = store.glob("*.json")
        file.unlink()
    elif loss == "case":
        for file in store.iterdir():
            if file.suffix != ".json":
                file.write_bytes(file.read_bytes()[:-7])
    else:
        shutil.rmtree(store)
    with pytest.raises((ValueError, OSError), match="nnunet-ssp prepare") as refused:
        trained.run("nnUNetTrainerMIMPretrain", FEW)
    line = re.search(r"nnunet-ssp prepare[^,.:(]*", str(refused.value))[0]
    plans = (dataset / "tiny.json").read_bytes()
    paste(line.removesuffix(" again").removesuffix(" or nnUNetv2_plan_and_preprocess"))
    assert (dataset / "tiny.json").read_bytes() == plans
    trained.run("nnUNetTrainerMIMPretrain", FEW)


def test_images_take_the_plans_by_the_line(mine, dataset, paste, capfd):
    (dataset / "tinyres.json").unlink()
    source = write_tree(mine / "my images", 6)
    assert main(["convert", "images", "-i", str(source), "-d", "950"]) == 0
    line = line_after(capfd.readouterr().out, "in place of DATASET:")
    said = paste(line.replace("DATASET", "901"))
    assert "Pretraining done" in paste(line_after(said, "Next: "), FEW)


def test_plans_that_are_missing_are_made_by_the_line(mine, dataset, paste, capfd):
    shutil.rmtree(dataset)
    dataset.mkdir()
    source = write_tree(mine / "my images", 4)
    assert main(["convert", "images", "-i", str(source), "-d", "950"]) == 0
    said = refusal(capfd, "prepare", 950, "--plans-from", 901)
    paste(line_after(said, "has no plans: run ").removesuffix(" first."))
    assert main(["prepare", "950", "--plans-from", "901"]) == 0


def test_plans_of_a_name_are_made_by_the_lines(dataset, pretrained_once, paste, capfd):
    (dataset / "tiny.json").unlink()  # the checkpoint's own plans would be named instead
    said = refusal(capfd, "inspect", pretrained_once(), "-d", 901, "-p", "mine")
    paste(line_after(said, "make it with "))
    assert (dataset / "mine.json").is_file()
    how = "--patch 32 32 --width 0.125 -overwrite_plans_name narrow"
    with pytest.raises(FileNotFoundError, match="or make it: ") as refused:
        open_data(901, "narrow", how)
    paste(line_after(str(refused.value), "or make it: "))
    assert open_data(901, "narrow").patch_size == (32, 32)


def test_a_study_has_another_dataset_prepared_by_its_line(mine, paste):
    source = write_tree(mine / "my images", 4)
    assert main(["convert", "images", "-i", str(source), "-d", "950"]) == 0
    data = open_data(901, "tiny")
    with pytest.raises(FileNotFoundError, match=r"tiny\.json is missing: ") as refused:
        data.source(950)
    paste(line_after(str(refused.value), "is missing: "))
    assert data.source(950).n_slices == 4


def test_a_study_has_its_dataset_prepared_again_by_its_line(dataset, paste):
    data = open_data("Dataset901_Phantom", "tiny")
    store = store_folder(dataset, data.configuration["data_identifier"])
    preprocessing, stored = read_index(store)
    lost = data.dataset.folds[0].train[0]
    write_index(store, preprocessing, {name: stored[name] for name in stored if name != lost})
    with pytest.raises(ValueError, match=f"{lost} is in only one of") as refused:
        data.labelled_slices(data.dataset.folds[0].name)
    paste(line_after(str(refused.value), "Prepare it again: "))
    again = open_data("Dataset901_Phantom", "tiny")
    assert again.labelled_slices(again.dataset.folds[0].name) > 0


def test_a_study_has_folds_listed_by_its_line(mine, paste):
    data = open_data(901, "tiny")
    with pytest.raises(ValueError, match="must have a fold called seven; ") as refused:
        data.fold("seven")
    line = line_after(str(refused.value), "called seven; ").removesuffix(" lists them.")
    assert data.dataset.folds[0].name in paste(line)


def test_a_finished_conversion_is_prepared_by_the_line(mine, prepared, dataset, paste, capfd):
    source = ["-i", prepared / "source", "-d", 901, "--name", "Phantom"]
    said = refusal(capfd, "convert", "mnms", *source)
    for plans in dataset.glob("*.json"):
        plans.unlink()
    line = line_after(said, "Else go on: ")
    paste(line)
    assert (dataset / ("small.json" if device_flag() else "nnUNetPlans.json")).is_file()
    assert ("small" in line) == bool(device_flag())  # as the conversion had printed it


def test_folds_that_do_not_exist_are_listed_by_the_line(dataset, trained, paste):
    with pytest.raises(ValueError, match="lists them") as refused:
        trained.run("nnUNetTrainerMIMPretrain", FEW, fold=77)
    line = re.search(r"nnunet-ssp folds \S+", str(refused.value))[0]
    assert "5-fold-0" in paste(line) or "fold-0" in paste(line)


def test_a_fold_that_is_no_number_is_listed_by_the_line(mine, paste, capfd):
    trainer = ("-tr", "nnUNetTrainerMIMPretrain", "-device", "cpu")
    said = refusal(capfd, "train", 901, "2d", "al", *trainer)
    line = re.search(r"fold \(=al\) must be a number, 0 or above, or all; (.*) lists them\.", said)[
        1
    ]
    name = re.search(r"\d-fold-0", paste(line))[0]
    said = refusal(capfd, "train", 901, "2d", name, *trainer)
    assert f"fold (={name}) must be a number, 0 or above, or all; {name} is 0; nnunet-ssp" in said


def test_folds_of_a_dataset_that_differ_are_copied_by_the_line(mine, dataset, trained, paste):
    splits = read_json(dataset / "splits_final.json", list)
    splits[0]["train"] = splits[0]["train"][:-1]
    write_json(dataset / "splits_final.json", splits)
    run = trained.make("nnUNetTrainerMIMPretrain", FEW)
    run.on_train_start()
    line = re.search(r"nnunet-ssp folds \S+", Path(run.log_file).read_text())[0]
    assert "--overwrite replaces it" in paste(line)  # this training has begun on it
    shutil.rmtree(run.output_folder)
    paste(line)
    raw = mine / "raw" / DATASET / "splits_final.json"
    assert read_splits(dataset / "splits_final.json") == read_splits(raw)


def test_without_folds_all_is_trained_by_the_line(dataset, trained, paste, no_pictures):
    (dataset / "splits_final.json").unlink()
    with pytest.raises(FileNotFoundError, match="only fold `all` can be trained: ") as refused:
        trained.run("nnUNetTrainerMIMPretrain", FEW)
    line = line_after(str(refused.value), "only fold `all` can be trained: ")
    assert "Pretraining done" in paste(line, FEW)


def test_the_2d_configuration_is_trained_by_the_line(dataset, trained, paste, no_pictures):
    plans = read_json(dataset / "tiny.json", dict)
    flat = plans["configurations"]["2d"]
    plans["configurations"]["3d_fullres"] = flat | {"patch_size": [4, *flat["patch_size"]]}
    write_json(dataset / "tiny.json", plans)
    with pytest.raises(ValueError, match="must be 2D") as refused:
        trained.run("nnUNetTrainerMIMPretrain", FEW, configuration="3d_fullres")
    assert "Pretraining done" in paste(line_after(str(refused.value), "Use: "), FEW)


def test_a_training_that_lost_its_start_begins_again_by_the_line(
    trained, pretrained_once, paste, no_pictures
):
    """The file is known by its name alone, so its folder is to be filled in."""
    begun = trained.run("nnUNetTrainerMIMPretrain", FEW, weights=pretrained_once())
    for file in Path(begun.output_folder).glob("checkpoint_*.pth"):
        file.unlink()
    with pytest.raises(ValueError, match="start it again from that file: ") as refused:
        trained.run("nnUNetTrainerMIMPretrain", FEW, resume=True)
    line = line_after(str(refused.value), "start it again from that file: ")
    assert "Pretraining done" in paste(line.replace("FOLDER", str(pretrained_once().parent)), FEW)


def test_no_folder_is_called_tilde(mine, trained, monkeypatch):
    monkeypatch.chdir(mine)
    monkeypatch.setenv("HOME", str(mine))
    monkeypatch.setenv("nnUNet_results", "~/results")
    with pytest.raises(RuntimeError, match="nnU-Net takes ~ for a folder of that name") as refused:
        trained.make("nnUNetTrainerScratch")
    assert str(refused.value).endswith(f"export nnUNet_results='{mine}/results'")
    assert not (mine / "~").exists()
