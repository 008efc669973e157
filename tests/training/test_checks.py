"""Checks of what a trainer is given, before it follows it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssp.training.checks import (
    check_files,
    of_unfinished,
    refuse_unsuitable,
    refuses_other_content,
    require_device,
    require_fold,
)
from nnunet_ssp.training.transfer import Pretrained
from tests.malformed.datasets import plans

LABELS = {"labels": {"background": 0, "LV": 1}}


def test_plans_of_nnunet_are_taken():
    check_files(plans(), "2d", 0, LABELS)
    check_files(plans(), "2d", "all", LABELS)


@pytest.mark.parametrize(
    ("change", "fold", "dataset_json", "message"),
    [
        ({"plans_name": "../x"}, 0, LABELS, "`plans_name` .* must be one plain name"),
        ({}, "../../0", LABELS, r"`fold` \(=\.\./\.\./0\) must be one plain name"),
        ({}, 0, {}, "`labels` is missing"),
        ({}, 0, [], "`dataset.json` .* must be names"),
        ({"configurations": {}}, 0, LABELS, "configurations"),
    ],
)
def test_what_would_lead_elsewhere_is_refused(
    change: dict[str, Any], fold: int | str, dataset_json: Any, message: str
):
    with pytest.raises(ValueError, match=message):
        check_files(plans() | change, "2d", fold, dataset_json)


def test_what_is_no_plans_is_refused():
    with pytest.raises(ValueError, match=r"`plans` .* must be names"):
        check_files([], "2d", 0, LABELS)  # type: ignore[arg-type]


def test_a_network_of_one_s_own_needs_trust():
    own = plans()
    own["configurations"]["2d"]["architecture"]["network_class_name"] = "mine.UNet"
    with pytest.raises(ValueError, match=r"`network_class_name` \(=mine\.UNet\) must be .*trust"):
        check_files(own, "2d", 0, LABELS)
    check_files(own, "2d", 0, LABELS, trust=True)


class Trainer:
    @refuses_other_content
    def load(self, source: Any) -> None:
        raise source if isinstance(source, Exception) else KeyError(source)


@pytest.mark.parametrize("error", [KeyError, TypeError, AttributeError, IndexError, RuntimeError])
def test_a_part_that_is_missing_is_said_in_words(error: type[Exception]):
    with pytest.raises(
        ValueError, match=rf"^the checkpoint: this run cannot continue .*{error.__name__}: .*x"
    ):
        Trainer().load(error("x"))
    with pytest.raises(ValueError, match=r"^a\.pth: this run cannot continue from it"):
        Trainer().load("a.pth")


def test_other_errors_pass():
    with pytest.raises(OSError, match="disk"):
        Trainer().load(OSError("disk"))


def test_a_machine_without_a_gpu_is_told_how_to_train(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device(torch.device("cpu"), "train -device cpu")
    with pytest.raises(
        ValueError, match="no CUDA GPU here; to train on the CPU: train -device cpu"
    ):
        require_device(torch.device("cuda"), "train -device cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_device(torch.device("cuda"), "train -device cpu")


def trainer(**changes: Any) -> SimpleNamespace:
    values = {
        "configuration_name": "2d",
        "configuration_manager": SimpleNamespace(patch_size=[32, 32]),
        "is_cascaded": False,
        "dataset": "901",
        "command": lambda configuration: f"nnUNetv2_train 901 {configuration}",
    }
    return SimpleNamespace(**(values | changes))


def test_planned_2d_networks_are_suitable():
    refuse_unsuitable(trainer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"configuration_manager": SimpleNamespace(patch_size=[8, 32, 32])},
            r"must be 2D: SimpleNamespace pretrains .* 8 x 32 x 32\. Use: nnUNetv2_train 901 2d",
        ),
        ({"is_cascaded": True}, "must not be a cascade"),
    ],
)
def test_others_are_told_what_to_use(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        refuse_unsuitable(trainer(**change))


def test_weights_of_an_unfinished_training_are_noted(tmp_path: Path):
    file, ssp = tmp_path / "checkpoint_latest.pth", {"settings": {"num_epochs": 5}}
    weights = {"encoder.weight": torch.zeros(1)}
    torch.save({"network_weights": weights, "current_epoch": 3}, file)
    pretrained = partial(Pretrained, weights=weights, plans={}, configuration="2d", epochs=3)
    (note,) = of_unfinished(pretrained(file, ssp=ssp))
    assert note.endswith("has not ended: 3 of 5 epochs")
    assert of_unfinished(pretrained(file, ssp={})) == []
    # The best checkpoint of a finished training is an early one.
    final = file.with_name("checkpoint_final.pth")
    torch.save({"network_weights": weights, "current_epoch": 4}, final)  # stopped early
    assert of_unfinished(pretrained(file, ssp=ssp)) == []
    assert of_unfinished(pretrained(final, ssp=ssp)) == []


@pytest.mark.parametrize("fold", [-1, 3, 9])
def test_a_fold_that_does_not_exist(fold: int, tmp_path: Path):
    file = tmp_path / "splits_final.json"
    with pytest.raises(ValueError, match=rf"fold \(={fold}\) must be all or one of the 3 folds"):
        require_fold(fold, [{}, {}, {}], file, "114")
    require_fold(2, [{}, {}, {}], file, "114")


def test_a_training_does_not_begin_with_masks_of_an_earlier_conversion(
    own_copy: Path, runs: Any, log: Any
):
    """Swapped labels were mended by a second conversion, and `prepare` was forgotten."""
    copies = sorted((own_copy / "gt_segmentations").glob("*.nii.gz"))
    copies[0].write_bytes(copies[1].read_bytes())
    case = copies[0].name.removesuffix(".nii.gz")
    said = rf"1 mask of \w+ changed after nnunet-ssp prepare \({case}\): this"
    with pytest.raises(ValueError, match=f"{said} training would .* Run nnunet-ssp prepare 901"):
        runs.make("nnUNetTrainerScratch").initialize()
    trainer = runs.make("nnUNetTrainerScratch", resume=True)
    trainer.initialize()
    assert re.search(f"{said} run uses the earlier", log(trainer))


def test_masks_that_were_prepared_for_other_plans_alone_are_the_earlier_here(
    own_copy: Path, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`prepare` with other plans copies the new masks, which these plans' cases do not have yet."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "elsewhere"))
    runs.make("nnUNetTrainerScratch").initialize()
    copy = sorted((own_copy / "gt_segmentations").glob("*.nii.gz"))[0]
    copy.write_bytes(copy.read_bytes() + bytes(3))
    with pytest.raises(ValueError, match=r"1 mask of .* changed .* Run nnunet-ssp prepare 901"):
        runs.make("nnUNetTrainerScratch").initialize()
