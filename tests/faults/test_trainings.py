"""Messages of a training on a dataset whose parts do not fit, and of a second training in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.lock import LOCK
from nnunet_ssp.slices import store as slices
from tests.holders import held
from tests.training.conftest import *  # noqa: F403  # its fixtures

PRETRAIN, SCRATCH = "nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"
SHORT = "num_epochs=1 iterations_per_epoch=1 batch_size=4"


def change_fold(folder: Path, **sides: list[str]) -> None:
    splits = read_splits(folder / "splits_final.json")
    splits[0] |= sides
    write_json(folder / "splits_final.json", splits)


def warnings(trainer: Any) -> list[str]:
    lines = Path(trainer.log_file).read_text().splitlines()
    return [line.partition(": ")[2] for line in lines if "WARNING" in line]


@pytest.mark.parametrize("trainer", [PRETRAIN, SCRATCH])
@pytest.mark.parametrize("side", ["train", "val"])
def test_names_that_are_no_cases_are_refused(own_copy, runs, trainer, side):
    change_fold(own_copy, **{side: ["nobody_frame00", "neither_frame01"]})
    made = runs.make(trainer, SHORT)
    said = f"fold 0: `{side}` names neither_frame01, nobody_frame00, which must be labelled"
    with pytest.raises(ValueError, match=f"splits_final.json: {said}"):
        made.do_split()


def test_pretraining_that_holds_nobody_out_says_so_at_the_end_too(own_copy, runs):
    change_fold(own_copy, val=[])
    trainer = runs.run(PRETRAIN, SHORT)
    said = "fold 0: `val` is empty, so nobody is held out"
    assert sum(said in line for line in warnings(trainer)) == 2
    assert any(said in line for line in Path(trainer.log_file).read_text().splitlines()[-5:])


def test_fine_tuning_validates_on_training_cases_where_nobody_is_held_out(own_copy, runs):
    change_fold(own_copy, val=[])
    trainer = runs.make(SCRATCH, SHORT)
    train, val = trainer.do_split()
    assert train == val and train
    assert len(trainer.warnings) == 2  # nobody held out, and unlike nnUNet_raw
    assert "nobody is held out" in trainer.warnings[0]


@pytest.mark.parametrize("trainer", [PRETRAIN, SCRATCH])
def test_copies_of_the_folds_that_differ_are_said_to(own_copy, runs, monkeypatch, trainer):
    splits = read_splits(own_copy / "splits_final.json")
    change_fold(own_copy, train=splits[0]["train"][:-1])
    made = runs.make(trainer, SHORT)
    made.do_split()
    made.do_split()
    assert len(warnings(made)) == 1
    assert (
        "splits_final.json in" in warnings(made)[0]
        and "run nnunet-ssp folds 901" in warnings(made)[0]
    )
    monkeypatch.delenv("nnUNet_raw")  # a machine that only trains
    made = runs.make(trainer, SHORT)
    made.do_split()
    assert made.warnings == []


def test_cases_that_are_missing_in_the_store_are_named(own_copy, runs):
    store = own_copy / "tiny_2d_slices"
    preprocessing, index = slices.read_index(store)
    unlabelled = [name for name in index if not (own_copy / "tiny_2d" / f"{name}.pkl").is_file()]
    gone = unlabelled[0]
    slices.write_index(store, preprocessing, {n: e for n, e in index.items() if n != gone})
    trainer = runs.make(PRETRAIN, SHORT)
    with (
        held(own_copy) as holder,
        pytest.raises(
            ValueError,
            match=rf"1 case of .* missing, {gone}: run nnunet-ssp prepare 901 .*process {holder.pid}",
        ),
    ):
        trainer.do_split()
    left = {n: e for n, e in index.items() if n != gone}
    slices.write_index(store, preprocessing, left, {gone: "truncated"})
    train, _ = trainer.do_split()
    assert gone not in train
    assert f"prepare left 1 case of the dataset out of training, {gone}" in warnings(trainer)[0]


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
def test_fine_tuning_names_a_damaged_or_missing_file(own_copy, runs, ending):
    name = read_splits(own_copy / "splits_final.json")[0]["train"][0]
    file = own_copy / "tiny_2d" / f"{name}{ending}"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .* run nnunet-ssp prepare 901"):
        runs.make(SCRATCH, SHORT).do_split()
    for other in (own_copy / "tiny_2d").glob(f"{name}*"):
        other.unlink()
    with pytest.raises(
        ValueError, match=rf"{name} of fold 0 must be there: run nnunet-ssp prepare"
    ):
        runs.make(SCRATCH, SHORT).do_split()


def test_pretraining_names_a_damaged_file(own_copy, runs):
    file = sorted((own_copy / "tiny_2d_slices").glob("*.npy"))[0]
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .* run nnunet-ssp prepare 901"):
        runs.run(PRETRAIN, SHORT, fold="all")


def test_a_second_training_in_a_fold_is_refused(preprocessed, runs):
    first = runs.make(PRETRAIN, SHORT)
    with held(Path(first.output_folder)) as holder:
        with pytest.raises(RuntimeError, match=rf"fold_0 is in use by .*process {holder.pid} on"):
            first.run_training()
        assert not list(Path(first.output_folder).glob("*.pth"))
        runs.run(PRETRAIN, SHORT, fold=1)
    first.run_training()
    folder = Path(first.output_folder)
    assert (folder / "checkpoint_final.pth").is_file()
    assert not (folder / LOCK).exists()
    assert json.loads((folder / "settings.json").read_text())["trainer"] == PRETRAIN
    assert os.environ["nnUNet_results"] in str(folder)


def test_what_an_interrupted_prepare_left_is_named(own_copy, runs):
    """nnU-Net says there that it found more than one ending."""
    for file in (own_copy / "tiny_2d").iterdir():
        file.unlink()
    trainer = runs.make(SCRATCH, SHORT)
    said = "tiny_2d: no case is preprocessed: run nnunet-ssp prepare 901 -p tiny"
    with pytest.raises(ValueError, match=said):
        trainer.initialize()
