from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ssp.recommended import FEW_SETTINGS
from nnunet_ssp.training.loop import LoopTrainer
from nnunet_ssp.training.next_steps import (
    after_finetuning,
    finetuned_before,
    finetuning_command,
    next_step,
)

DATASET = "Dataset007_Heart"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fold's folder, with a space in its path as all of them."""
    raw = tmp_path / "my raw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    for name in ("imagesTs", "labelsTs"):
        (raw / DATASET / name).mkdir(parents=True)
    return tmp_path / "my results" / DATASET / "nnUNetTrainerFinetune__small__2d" / "fold_3"


def fill(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a_0000.nii.gz").touch()


def test_test_subjects_are_predicted_and_evaluated(folder: Path, tmp_path: Path):
    raw = tmp_path / "my raw" / DATASET
    fill(raw / "imagesTs")
    title, predict = after_finetuning(DATASET, folder, 3, "cpu").splitlines()
    assert title == "Predict the test subjects with:"
    output = f"predictions/{DATASET}/nnUNetTrainerFinetune_small_fold_3"
    assert shlex.split(predict) == [
        *("nnUNetv2_predict", "-d", "7", "-c", "2d", "-f", "3", "-p", "small"),
        *("-tr", "nnUNetTrainerFinetune", "-i", str(raw / "imagesTs"), "-o", output),
        *("-device", "cpu"),
    ]
    fill(raw / "labelsTs")
    *_, evaluate = after_finetuning(DATASET, folder, 3, "cuda").splitlines()
    assert evaluate == f"nnunet-ssp evaluate 7 {output}"
    done, stopped = (after_finetuning(DATASET, folder, 3, "cpu", end) for end in (True, False))
    assert done == stopped


@pytest.mark.parametrize(
    ("dataset", "training", "fold", "output"),
    [
        (DATASET, "T__nnUNetPlans__2d", 0, "T_fold_0"),
        ("Dataset123_Other", "T__nnUNetPlans__2d", 0, "T_fold_0"),
        (DATASET, "T__small__2d", "all", "T_small_fold_all"),
        (DATASET, "T__nnUNetPlans__3d_fullres", 1, "T_3d_fullres_fold_1"),
    ],
)
def test_each_training_predicts_into_a_folder_of_its_own(
    folder: Path, tmp_path: Path, dataset: str, training: str, fold: int | str, output: str
):
    fill(tmp_path / "my raw" / dataset / "imagesTs")
    place = folder.parents[2] / dataset / training / f"fold_{fold}"
    words = shlex.split(after_finetuning(dataset, place, fold, "cuda").splitlines()[1])
    assert words[words.index("-o") + 1] == f"predictions/{dataset}/{output}"


def test_without_test_subjects_the_validation_is_evaluated(folder: Path):
    assert after_finetuning(DATASET, folder, 3, "cpu") == ""
    fill(folder / "validation")
    title, command = after_finetuning(DATASET, folder, 3, "cpu").splitlines()
    assert title == "Evaluate the validation subjects with:"
    assert shlex.split(command)[-1] == str(folder / "validation")
    assert after_finetuning(DATASET, folder, "all", "cpu") == ""
    assert after_finetuning(DATASET, folder, 3, "cpu", validated=False) == ""  # a part of them


class Trainer:
    """A pretraining of the plans `small` on dataset 7, fold all, whose command is the real one."""

    command = LoopTrainer.command

    def __init__(self, folder: Path, labels: bool = True, reader: str = "NibabelIO") -> None:
        self.output_folder = str(folder)
        self.preprocessed_dataset_folder_base = str(folder.parent)
        self.dataset_json, self.cases, self.fold = {"file_ending": ".nii.gz"}, {}, "all"
        self.label_manager = SimpleNamespace(
            foreground_labels=[1] if labels else [], has_regions=False
        )
        self.plans_manager = SimpleNamespace(
            dataset_name=DATASET, plans_name="small", plans={"image_reader_writer": reader}
        )
        self.configuration_name, self.dataset = "2d", "7"
        self.device = SimpleNamespace(type="cpu")


FILE = Path("my file.pth")
TAIL = "-tr nnUNetTrainerFinetune -device cpu -pretrained_weights 'my file.pth'"


def test_a_pretraining_ends_with_the_command_of_the_fine_tuning(folder: Path):
    said = next_step(Trainer(folder), FILE)
    assert said == f"Pretraining done. Fine-tune with:\nnnUNetv2_train 7 2d all -p small {TAIL}"


def test_without_labels_another_dataset_gets_the_plans(folder: Path):
    title, prepare, train = next_step(Trainer(folder, labels=False), FILE).splitlines()
    assert title.startswith(
        f"Pretraining done. {DATASET} has no labels. With the id of a labelled dataset in place of "
    )
    assert f"put nnUNet_ssp_settings='{FEW_SETTINGS}' before the second line:" in title
    assert prepare == "nnunet-ssp prepare ID --plans-from 7 -p small -overwrite_plans_name small_7"
    assert train == f"nnUNetv2_train ID 2d 0 -p small_7 {TAIL}"


def test_natural_images_have_the_plans_of_another_dataset(folder: Path):
    """Theirs have no spacing in mm, so that no cine may take them."""
    title, train = next_step(Trainer(folder, False, "NaturalImage2DIO"), FILE).splitlines()
    assert "With the dataset whose plans it was prepared under in place of ID" in title
    assert train == f"nnUNetv2_train ID 2d 0 -p small {TAIL}"


def test_a_fine_tuning_that_lies_in_the_way_is_named(folder: Path):
    pretraining = folder.parents[1] / "nnUNetTrainerMIMPretrain__small__2d" / folder.name
    assert finetuned_before(pretraining) == ""
    fill(folder)
    assert finetuned_before(pretraining) == ""  # no checkpoint yet
    (folder / "checkpoint_latest.pth").touch()
    said = next_step(Trainer(pretraining), FILE)
    assert (
        f"Pretraining done. {folder} holds a fine-tuning; one from other weights is refused" in said
    )
    assert "nnUNet_results. Fine-tune with:\nnnUNetv2_train 7" in said
    assert finetuned_before(pretraining.with_name("fold_4")) == ""


@pytest.mark.parametrize(
    ("n_masks", "fold", "settings"),
    [
        (0, "all", ""),
        (10, "all", FEW_SETTINGS),
        (11, "all", ""),
        (11, 0, FEW_SETTINGS),
        (13, 1, ""),
    ],
)
def test_few_labels_are_fine_tuned_with_what_was_measured(
    tmp_path: Path, n_masks: int, fold: int | str, settings: str
):
    """What a fold trains on counts, not the dataset; of each fold the last case is held out."""
    cases = [f"s{n:02}" for n in range(n_masks)]
    (tmp_path / "gt_segmentations").mkdir()
    for case in cases:
        (tmp_path / "gt_segmentations" / f"{case}.nii.gz").touch()
    splits = [{"train": cases[:-1], "val": cases[-1:]}] * 2
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    trainer = SimpleNamespace(
        preprocessed_dataset_folder_base=str(tmp_path),
        dataset_json={"file_ending": ".nii.gz"},
        fold=fold,
        cases={},
        command=lambda *more, trainer, settings: f"{settings}|{trainer}|{more[-1]}",
    )
    said = finetuning_command(trainer, Path("x.pth"))
    assert said == f"{settings}|nnUNetTrainerFinetune|x.pth"
