"""Every command that we print is run by a test; only pip, which needs a network, is not: what it is told is checked.

What is no whole command but the name of one in a sentence is looked up in the command's own parser.

The longest chain is here: from a phantom to an evaluation, each line pasted as it is, in folders with spaces.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from nnunet_ssp.cli import _parser
from nnunet_ssp.launch import SMALL_PLANS, with_trainers
from nnunet_ssp.recommended import FEW_SETTINGS, MOVEMENT, MOVEMENT_SETTINGS
from tests.printed import HOLE, ROOT, all_mentions, mentions

CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
SETTINGS = "num_epochs=1 iterations_per_epoch=2 batch_size=4 val_iterations_per_epoch=1 final_validation=no"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a line in a new user's shell and return what it prints."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = tmp_path / "my data" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_extTrainer", with_trainers())
    monkeypatch.setenv("nnUNet_ssp_settings", SETTINGS)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    small = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    for name, value in {**small, "nnUNet_compile": "f", "nnUNet_wandb_enabled": "0"}.items():
        monkeypatch.setenv(name, value)

    def run(line: str, status: int = 0) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{line}\n{said}"
        return said

    return run


def after(said: str, words: str) -> list[str]:
    """The lines that a command printed from some words on, without the words."""
    return said[said.rindex(words) + len(words) :].strip().splitlines()


@pytest.mark.heavy
def test_each_printed_command_works_as_it_is(shell, tmp_path: Path):
    said = shell(
        "nnunet-ssp phantom 'my phantom' --labelled 2 --unlabelled 1 --testing 2 --matrix 48 "
        "--frames 3 --slices 4"
    )
    convert = after(said, "Next: ")[0]
    said = shell(convert)
    prepare = after(said, "Next: ")[0]
    if not torch.cuda.is_available():
        small, prepare = prepare, after(said, "For a machine with a GPU: ")[0]
        assert small == f"{prepare} {SMALL_PLANS}"
        assert " -p small " in after(shell(small), "Next: ")[0]
    said = shell(prepare)
    pretrain = after(said, "Next: ")[0]
    assert torch.cuda.is_available() or after(said, "Small ones: ")[0] == small
    assert "-tr nnUNetTrainerDensePretrain" in pretrain
    assert pretrain.startswith(f"nnUNet_ssp_settings='{MOVEMENT_SETTINGS}' ")
    pretrain = pretrain.replace(MOVEMENT_SETTINGS, f"{MOVEMENT} {SETTINGS}")
    finetune = after(shell(pretrain), "Fine-tune with:\n")[0]
    few = f"nnUNet_ssp_settings={shlex.quote(FEW_SETTINGS)} "
    assert finetune.startswith(few)

    short = finetune.replace(
        "num_epochs=75 iterations_per_epoch=20", "num_epochs=1 iterations_per_epoch=2"
    )
    shell(short.replace("nnUNetTrainerFinetune ", "nnUNetTrainerFinetuneEncoder "))
    said = shell(finetune.removeprefix(few))  # 1,500 steps would take too long here
    assert "Of the same variable, this training takes: num_epochs=1" in said
    predict, evaluate = after(said, "Predict the test subjects with:\n")[:2]
    validate = after(said, "To do it later:\n")[0]
    assert "Mean Validation Dice" in shell(validate)
    shell(predict)
    said = shell(evaluate)
    assert (tmp_path / after(said, "Report: ")[0]).is_file()
    measure = after(said, "For new patients: ")[0]
    assert measure.endswith(" --disable_tta") != torch.cuda.is_available()
    new = next((tmp_path / "my phantom" / "Testing").iterdir())
    measure = measure.replace("FOLDER", shlex.quote(str(new))).replace("OUT", "'new patients'")
    shell(measure)
    assert (tmp_path / "new patients" / "volumes.csv").is_file()

    said = shell("nnunet-ssp folds 114 --subsets 1 --seeds 0 --of 0")
    scratch = after(said, "To train from scratch on the first: ")[0]
    if not torch.cuda.is_available():
        assert scratch.endswith(" -device cpu")
        refused = shell(scratch.removesuffix(" -device cpu"), status=1)
        scratch = after(refused, "to train on the CPU: ")[0]
        assert scratch.startswith("nnUNet_ssp_settings=")
    shell(scratch)
    (control,) = re.findall(r"^nnUNet_ssp_settings=.*nnUNetTrainerScratch$", CHOOSING, re.MULTILINE)
    short = "recipe=few num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
    assert f'"{FEW_SETTINGS}"' in control
    control += "" if torch.cuda.is_available() else " -device cpu"
    assert "final_validation=no: no validation case was predicted" in shell(
        control.replace(FEW_SETTINGS, short)
    )


# -- none is forgotten -----------------------------------------------------------------------------

CHAIN = "tests/test_printed_commands.py::test_each_printed_command_works_as_it_is"
LINES = "tests/training/test_printed_lines.py::"
STORE = LINES + "test_a_damaged_store_is_mended_by_the_line"
FOLDS = LINES + "test_folds_are_trained_on_by_their_lines"
DRY = "tests/study/test_dry_run.py::"
DOCTOR = "tests/test_doctor.py::test_the_lines_for_folders_work_as_they_are"
NAME = "no command: the name of the package, or of a command in a sentence"
FORGOTTEN = "tests/test_command_line.py::test_a_forgotten_dataset_is_named"
VALIDATING = LINES + "test_without_test_subjects_the_validation_is_evaluated_by_its_line"
ELSEWHERE = "test_an_unlabelled_pretraining_is_fine_tuned_by_its_lines"
WORD = "the name of a command in a sentence, no line to paste: its parser knows it and its options"
ITSELF = "run by what prints it"
PIP = "an extra of ours, or what we need"

# What a line that is new in the sources needs: the test that runs it, or one of the words above.
EXPECTED = {
    "nnunet_ssp/bench/running.py": {"() begins with nnunet-ssp": NAME},
    "nnunet_ssp/bench/gpu.py": {"study() begins with nnunet-ssp": ITSELF},
    "nnunet_ssp/bench/command.py": {
        "pip install 'nnunet-ssp[bench]'": PIP,
        "nnUNetv2_predict": WORD,
        "nnUNetv2_plan_and_preprocess -c 2d": WORD,
    },
    "nnunet_ssp/bench/starting.py": {
        "() begins with nnUNetv2_train": ITSELF,
        "prepare_over_nnunet() begins with nnUNetv2_plan_and_preprocess": ITSELF,
        "prepare_over_nnunet() begins with nnunet-ssp": ITSELF,
    },
    "nnunet_ssp/bench/predicting.py": {
        "theirs() begins with nnUNetv2_predict": ITSELF,
        "ours() begins with nnunet-ssp": ITSELF,
    },
    "nnunet_ssp/cli.py": {
        "_parser() begins with nnunet-ssp": NAME,
        "nnUNetv2_train": WORD,
        "nnUNetv2_predict": WORD,
        "nnunet-ssp env": DOCTOR,
        "nnunet-ssp convert mnms {}": CHAIN,
    },
    "nnunet_ssp/command_line.py": {
        # Of `predict`; that of the demo is in tests/demo/test_command.py
        "again() begins with nnunet-ssp": "tests/predict/test_command.py::"
        "test_the_command_that_goes_on_is_the_one_that_was_typed",
        "nnunet-ssp evaluate DATASET FOLDER": FORGOTTEN,
        "nnunet-ssp convert {} -i FOLDER -d ID": (
            "tests/test_command_line.py::test_the_source_that_is_meant_is_named"
        ),
    },
    "nnunet_ssp/cohort/command.py": {
        "_outcome() asks training_command()": FOLDS,
        "nnunet-ssp folds {} lists them": WORD,
    },
    "nnunet_ssp/cohort/copies.py": {
        "nnunet-ssp folds {} --check": "tests/cohort/test_copies.py::"
        "test_a_converted_dataset_and_the_line"
    },
    "nnunet_ssp/cohort/dataset.py": {
        "nnunet-ssp convert again": WORD,
        "nnunet-ssp convert writes it": WORD,
    },
    "nnunet_ssp/cohort/different.py": {
        "lines_on_pairs() begins with nnunet-ssp": "tests/cohort/test_plain_datasets.py::"
        "test_different_people_who_look_alike_pass_by_the_printed_line",
    },
    "nnunet_ssp/cohort/few.py": {
        "nnunet-ssp convert acdc --few": "tests/dataset_conversion/test_acdc.py::test_the_split_of_acdc_few"
    },
    "nnunet_ssp/cohort/leaks.py": {"nnunet-ssp prepare": WORD},
    "nnunet_ssp/cohort/membership.py": {"nnunet-ssp prepare again": WORD},
    "nnunet_ssp/cohort/recommending.py": {"pretraining_line() asks training_command()": FOLDS},
    "nnunet_ssp/cohort/privacy.py": {
        "nnunet-ssp subject {}": NAME,
        "nnunet-ssp has written the file": NAME,
        "nnunet-ssp path": NAME,
    },
    "nnunet_ssp/cohort/repeats.py": {
        "nnunet-ssp folds --check compares their images": "tests/cohort/test_command.py::test_the_folds_of_acdc_few"
    },
    "nnunet_ssp/console.py": {"run_command() asks command()": NAME},
    "nnunet_ssp/conversion/convert.py": {
        "nnunet-ssp folds {}": "tests/conversion/test_convert.py::"
        "test_deleted_folds_are_named_also_after_an_interruption",
        "nnunet-ssp {}": NAME,
        "nnunet-ssp prepare again": WORD,
    },
    "nnunet_ssp/demo/command.py": {
        "run() begins with nnunet-ssp": ITSELF,
        "phantom_step() begins with nnunet-ssp": ITSELF,
        "convert_step() begins with nnunet-ssp": ITSELF,
        "train() begins with nnUNetv2_train": ITSELF,
        "predict() begins with nnUNetv2_predict": ITSELF,
    },
    "nnunet_ssp/demo/report.py": {
        "versions() begins with nnunet-ssp": NAME,
    },
    "nnunet_ssp/demo/resuming.py": {"continued() begins with nnUNetv2_train": ITSELF},
    "nnunet_ssp/doctor.py": {
        "_versions() begins with nnunet-ssp": NAME,
        "nnunet-ssp is not installed": NAME,
        "pip install nnunet-ssp": PIP,
        "nnunet-ssp {}": NAME,
        "pip install {}": PIP,
        "pip install isal": PIP,
        "export {}=/where/you/keep/{}": DOCTOR,
        "export {}={}": DOCTOR,
        "mkdir -p {}": DOCTOR,
        "nnunet-ssp env": DOCTOR,
        "pip install --force-reinstall nnunetv2": PIP,
        "nnUNetv2_train and nnUNetv2_predict": WORD,
        "nnunet-ssp prepare ID {}": CHAIN,
        "_hardware() begins with export": DOCTOR,
    },
    "nnunet_ssp/evaluation/command.py": {
        "nnUNetv2_predict or nnunet-ssp predict wrote": WORD,
        "nnunet-ssp evaluate DATASET FOLDER": FORGOTTEN,
    },
    "nnunet_ssp/evaluation/mistaken.py": {
        "nnUNetv2_predict -o named it": WORD,
        "_how_to_predict() asks predicting_command()": CHAIN,
        "_how_to_predict() begins with nnunet-ssp": CHAIN,
        "_refuse_empty_validation() asks validating_command()": VALIDATING,
        "nnUNetv2_train": WORD,
        "_refuse_training() asks validating_command()": VALIDATING,
        "_refuse_training() begins with nnunet-ssp": "tests/evaluation/test_mistaken.py::"
        "test_the_line_for_a_fold_names_its_validation_and_works",
    },
    "nnunet_ssp/evaluation/files.py": {
        "_how_to_complete() asks validating_command()": VALIDATING,
        "nnunet-ssp predict with their images in its folder": WORD,
    },
    "nnunet_ssp/evaluation/provenance.py": {
        "whose() begins with nnunet-ssp": CHAIN,
        "nnUNetv2_predict does not record mirroring": NAME,
    },
    "nnunet_ssp/evaluation/training_subjects.py": {
        "nnunet-ssp prepare": WORD,
        "nnunet-ssp prepare again as before": WORD,
    },
    "nnunet_ssp/evaluation/for_new_patients.py": {
        "prediction_lines() begins with nnunet-ssp": CHAIN,
    },
    "nnunet_ssp/files/archives.py": {
        "nnUNetv2_export_model_to_zip is for nnUNetv2_install_pretrained_model_from_zip": WORD
    },
    "nnunet_ssp/files/bundles.py": {
        "nnunet-ssp pretrained network": NAME,
        "nnunet-ssp has written the file": NAME,
    },
    "nnunet_ssp/files/lock.py": {"nnunet-ssp or nnUNetv2_train works there": NAME},
    "nnunet_ssp/launch.py": {
        "export {}={}": DOCTOR,
        "export {}={}/{}": ITSELF,
        "nnunet-ssp env": DOCTOR,
        "nnunet-ssp prepare {}{}": LINES + "test_a_finished_conversion_is_prepared_by_the_line",
        "nnunet-ssp prepare {} &&": LINES + "test_an_unprepared_dataset_is_prepared_by_the_line",
        "nnunet-ssp prepare {}": CHAIN,
        "nnUNetv2_train {} 2d {}{} -tr {}{}": FOLDS,
        "nnunet-ssp prepare {} --plans-from {}{} -overwrite_plans_name {}": LINES + ELSEWHERE,
        "nnunet-ssp prepare {} {}": LINES + "test_plans_of_a_name_are_made_by_the_lines",
        "predicting_command() begins with nnUNetv2_predict": CHAIN,
        "validating_command() begins with nnUNetv2_train": VALIDATING,
    },
    "nnunet_ssp/nnunet.py": {
        # with a note on a relative folder
        "export {}=/data/{}": WORD,
        "export {}={}": DOCTOR,
    },
    "nnunet_ssp/methods/reconstruction.py": {
        'nnUNet_ssp_settings="recipe=deep"': "tests/training/test_settings_of_checkpoints.py::"
        "test_a_recipe_whose_values_have_changed"
    },
    "nnunet_ssp/predict/arguments.py": {"nnUNetv2_find_best_configuration": WORD},
    "nnunet_ssp/predict/dicom_seg.py": {
        "() begins with nnunet-ssp": NAME,
        "pip install 'nnunet-ssp[dicom]'": PIP,
        "pip install '.[dicom]'": PIP,
    },
    "nnunet_ssp/preparation/command.py": {
        "_say_next() asks training_command()": LINES + "test_images_take_the_plans_by_the_line"
    },
    "nnunet_ssp/preparation/imported.py": {
        "nnUNetv2_train {} {} {} -p {} -tr {} -pretrained_weights {}{}": LINES
        + "test_an_imported_pretraining_goes_on_by_its_lines",
        "next_lines() asks command()": LINES + "test_an_imported_pretraining_goes_on_by_its_lines",
        "further() asks command()": LINES + "test_an_imported_pretraining_goes_on_by_its_lines",
    },
    "nnunet_ssp/preparation/moved_plans.py": {
        "_find() asks planning_command()": LINES
        + "test_plans_that_are_missing_are_made_by_the_line"
    },
    "nnunet_ssp/preparation/raw.py": {"nnunet-ssp convert again": WORD},
    "nnunet_ssp/preparation/raw_checks.py": {
        "nnunet-ssp convert cine makes one file of each frame of a cine": WORD
    },
    "nnunet_ssp/sharing/arguments.py": {
        "nnunet-ssp export fold_0/checkpoint_final.pth -o heart-mim": LINES
        + "test_an_imported_pretraining_goes_on_by_its_lines",
        "nnunet-ssp import heart-mim.zip -d 114": LINES
        + "test_an_imported_pretraining_goes_on_by_its_lines",
    },
    "nnunet_ssp/sharing/card.py": {
        "nnunet-ssp import THIS_{} -d DATASET": LINES
        + "test_an_imported_pretraining_goes_on_by_its_lines"
    },
    "nnunet_ssp/sharing/export.py": {
        "nnUNetv2_export_model_to_zip shares models that segment": WORD
    },
    "nnunet_ssp/sharing/importing.py": {
        "_next() asks command()": LINES + "test_an_imported_pretraining_goes_on_by_its_lines",
        "nnunet-ssp prepare {} -c {} -p {}": LINES
        + "test_an_imported_pretraining_goes_on_by_its_lines",
    },
    "nnunet_ssp/slices/drawing.py": {
        "__init__() asks prepare_command()": STORE,
        "array() asks prepare_command()": STORE,
    },
    "nnunet_ssp/slices/intact.py": {
        "require_size() asks prepare_command()": STORE,
        "nnunet-ssp prepare": STORE,
    },
    "nnunet_ssp/slices/store.py": {
        "nnunet-ssp prepare again": WORD,
        "read_index() asks prepare_command()": STORE,
        "nnUNetv2_preprocess": WORD,
        "add_preprocessed() asks prepare_command()": STORE,
        "nnunet-ssp prepare or nnUNetv2_plan_and_preprocess": WORD,
    },
    "nnunet_ssp/study/command.py": {
        "nnunet-ssp bench --json FILE measured": WORD,
        "pip install 'nnunet-ssp[study]'": PIP,
        "pip install '.[study]'": PIP,
        "nnunet-ssp env": DOCTOR,
        "_keep() begins with nnunet-ssp": "tests/study/test_command.py::test_from_nothing_to_the_page",
    },
    "nnunet_ssp/study/data.py": {
        "nnunet-ssp folds {} lists them": LINES + "test_a_study_has_folds_listed_by_its_line",
        "nnunet-ssp prepare {} --plans-from {} -p {}": LINES
        + "test_a_study_has_another_dataset_prepared_by_its_line",
        "nnunet-ssp prepare {} -p {}": LINES
        + "test_a_study_has_its_dataset_prepared_again_by_its_line",
        "open_data() asks planning_command()": LINES + "test_plans_of_a_name_are_made_by_the_lines",
    },
    "nnunet_ssp/study/dry_run.py": {
        "nnunet-ssp bench --json bench.json measures the speeds here": "tests/bench/test_command.py::"
        "test_the_line_of_a_dry_run_measures_what_it_then_estimates_from",
        "nnunet-ssp convert acdc -i FOLDER -d {} && nnunet-ssp prepare {}": DRY
        + "test_a_named_dataset_is_made_by_the_line",
        "nnunet-ssp convert acdc -i FOLDER -d {} --few": DRY
        + "test_a_dataset_for_the_folds_of_a_paper_is_converted_by_the_line",
        "nnunet-ssp convert mnms+mnms2 -i MNMS MNMS2 -d {}": DRY
        + "test_a_dataset_for_the_folds_of_a_paper_is_converted_by_the_line",
        "nnunet-ssp prepare {}": DRY
        + "test_a_dataset_for_the_folds_of_a_paper_is_converted_by_the_line",
        "nnunet-ssp convert --help lists": WORD,
    },
    "nnunet_ssp/study/estimate.py": {"nnunet-ssp bench --json writes": WORD},
    "nnunet_ssp/study/gpus.py": {
        "across_machines() begins with nnunet-ssp": "tests/training/test_launched.py::"
        "test_a_job_of_a_study_on_two_machines",
    },
    "nnunet_ssp/study/jobs.py": {
        "_train_job() begins with nnUNetv2_train": ITSELF,
        "_model_jobs() begins with nnUNetv2_predict": ITSELF,
        "_model_jobs() begins with nnunet-ssp": ITSELF,
    },
    "nnunet_ssp/study/preparing.py": {
        "make_phantom() begins with nnunet-ssp": ITSELF,
        "_planning() asks planning_command()": DRY + "test_plans_that_the_study_makes",
        "make_folds() begins with nnunet-ssp": ITSELF,
        "nnunet-ssp folds {}": WORD,
        "folds_that_cannot_be_made() begins with nnunet-ssp": ITSELF,
        "nnunet-ssp folds with {}": WORD,
    },
    "nnunet_ssp/study/results.py": {"nnunet-ssp evaluate": WORD},
    "nnunet_ssp/training/advice.py": {
        "nnunet-ssp doctor lists ours": WORD,
        "nnunet-ssp prepare ID prepares one": WORD,
        "_file() asks planning_command()": LINES
        + "test_an_unprepared_dataset_is_prepared_by_the_line",
    },
    "nnunet_ssp/training/base.py": {
        "_on_cpu() asks command()": CHAIN,
        "folds() asks command()": LINES + "test_without_folds_all_is_trained_by_the_line",
        "nnunet-ssp folds {}": LINES + "test_folds_of_a_dataset_that_differ_are_copied_by_the_line",
        "nnunet-ssp folds {} and": LINES
        + "test_folds_of_a_dataset_that_differ_are_copied_by_the_line",
        "require_stored() asks prepare_command()": STORE,
        "open_checkpoint() begins with cp": LINES
        + "test_a_damaged_checkpoint_is_replaced_by_the_line",
    },
    "nnunet_ssp/training/checks.py": {
        "refuse_changed_masks() asks prepare_command()": LINES
        + "test_changed_masks_are_prepared_by_the_line",
        "nnunet-ssp prepare": WORD,
        "nnunet-ssp folds {} lists them": LINES
        + "test_folds_that_do_not_exist_are_listed_by_the_line",
        "refuse_lost_start() asks command()": LINES
        + "test_a_training_that_lost_its_start_begins_again_by_the_line",
        "refuse_unsuitable() asks command()": LINES
        + "test_the_2d_configuration_is_trained_by_the_line",
    },
    "nnunet_ssp/training/finetuning.py": {
        "_check_preprocessed() asks prepare_command()": STORE,
        "build() asks prepare_command()": STORE,
        "perform_actual_validation() asks command()": CHAIN,
    },
    "nnunet_ssp/training/imagenet.py": {"nnunet-ssp prepare -pl TimmPlanner": WORD},
    "nnunet_ssp/training/inspection.py": {
        "reveal() begins with nnunet-ssp": LINES
        + "test_what_a_checkpoint_reveals_is_removed_by_the_line",
        "compare_with_dataset() asks planning_command()": LINES
        + "test_plans_of_a_name_are_made_by_the_lines",
    },
    "nnunet_ssp/training/launched.py": {
        "nnunet-ssp folds {} lists them": LINES
        + "test_a_fold_that_is_no_number_is_listed_by_the_line",
        "nnUNetv2_train": WORD,
        "torchrun starts": NAME,
        "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST": (
            "tests/training/test_launched.py::test_two_machines_equal_one_process"
        ),
        "nnunet-ssp train 114 2d 0 -tr nnUNetTrainerMIMPretrain": (
            "tests/training/test_launched.py::test_one_process_trains_as_nnunets_command"
        ),
        "nnUNetv2_train -num_gpus N does the same": WORD,
        "nnUNetv2_train does": WORD,
    },
    "nnunet_ssp/training/loop.py": {
        "_end_by_signal() asks command()": LINES
        + "test_an_interrupted_training_goes_on_by_its_line",
        "command() begins with nnunet-ssp": (
            "tests/training/test_launched.py::test_a_killed_rank_ends_the_others"
        ),
        "command() begins with nnUNetv2_train": LINES
        + "test_an_interrupted_training_goes_on_by_its_line",
        "last_good() asks command()": LINES + "test_an_interrupted_training_goes_on_by_its_line",
    },
    "nnunet_ssp/training/next_steps.py": {
        "finetuning_command() asks command()": CHAIN,
        "finetuning_elsewhere() asks command()": LINES + ELSEWHERE,
        "finetuning_elsewhere() asks moving_command()": LINES + ELSEWHERE,
        "after_finetuning() begins with nnunet-ssp": LINES
        + "test_without_test_subjects_the_validation_is_evaluated_by_its_line",
        "after_finetuning() asks predicting_command()": CHAIN,
    },
    "nnunet_ssp/training/transfer.py": {"_remedy() asks moving_command()": LINES + ELSEWHERE},
    "nnunet_ssp/training/pretraining.py": {
        "nnunet-ssp prepare again": WORD,
    },
    "nnunet_ssp/training/semisupervised.py": {"nnunet-ssp prepare again": WORD},
    "nnunet_ssp/warm.py": {"start_warm() begins with nnunet-ssp": NAME},
    "dataset_conversion/cine_files.py": {
        "nnunet-ssp convert acdc": WORD,
        "nnunet-ssp convert {} -i {} -d {}": (
            "tests/dataset_conversion/test_printed_lines.py::test_the_command_for_a_public_set"
        ),
    },
    "dataset_conversion/combined.py": {
        "nnunet-ssp convert mnms+mnms2 leaves out the categories of M&Ms-2 in which they would be": WORD
    },
    "dataset_conversion/images.py": {
        "nnunet-ssp prepare {} --plans-from DATASET": LINES
        + "test_images_take_the_plans_by_the_line",
        "nnunet-ssp {}": NAME,
    },
}


def entries() -> Iterator[tuple[str, str]]:
    for file, lines in EXPECTED.items():
        for mention, how in lines.items():
            yield f"{file}: {mention}", how


def test_every_printed_command_has_its_test():
    found, known = set(all_mentions()), {name for name, _ in entries()}
    assert not found - known, f"no test: {found - known}"
    assert not known - found, f"no longer printed: {known - found}"


def test_the_search_finds_what_is_printed():
    source = """def say(x):
    "nnunet-ssp study, in a docstring"
    print(f"Next: nnunet-ssp prepare {x} -p {x.name}; then nnUNetv2_train {x} 2d 0.")
    words = ["nnUNetv2_predict", x]
    return self.command("--c")
"""
    assert list(mentions(source)) == [
        "nnunet-ssp prepare {} -p {}",
        "nnUNetv2_train {} 2d 0",
        "say() begins with nnUNetv2_predict",
        "say() asks command()",
    ]


@pytest.mark.parametrize("test", sorted({how for _, how in entries() if "::" in how}))
def test_the_test_of_a_command_exists(test: str):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of our commands."""
    (commands,) = (
        action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands.choices)


@pytest.mark.parametrize("name", [name for name, how in entries() if how not in (NAME, PIP)])
def test_commands_and_their_options_exist(name: str):
    scripts = {script.name for script in entry_points(group="console_scripts")}
    ours = parsers()
    for found in re.findall(r"nnUNetv2_\w+", name):
        assert found in scripts
    for command, rest in re.findall(r"nnunet-ssp ([a-z]+)([^&;]*)", name.partition(": ")[2]):
        parser = ours[command]
        options = [word for word in rest.split() if re.fullmatch(r"--?[a-z][\w-]*", word)]
        if command == "convert":
            (nested,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            named = [word for word in rest.split() if word in nested.choices]
            parser = nested.choices[(named or ["mnms"])[0]]
        for option in options:
            assert option in parser._option_string_actions, f"{command} has no {option}"


@pytest.mark.parametrize("name", [name for name, how in entries() if how == PIP])
def test_what_pip_is_to_install_exists(name: str):
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(text).name for text in project["dependencies"]} | {project["name"]}
    (what,) = (w for w in shlex.split(name.partition("pip install ")[2]) if w[0] != "-")
    if what == HOLE:  # a requirement of the installed package
        return
    asked = Requirement(what.replace(".[", f"{project['name']}["))
    assert asked.name in needed
    assert asked.extras <= set(project["optional-dependencies"])
