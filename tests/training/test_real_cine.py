"""The whole path on real cine, with the small patch that suits a CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import hashed_subject
from tests.own_folders import use_own_folders

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

PLANS = ("-p", "small")


@pytest.fixture(scope="module")
def cine(
    real_data: Path, tmp_path_factory: pytest.TempPathFactory, command: Callable[..., str]
) -> Iterator[Path]:
    """Sunnybrook, converted and prepared at 128 x 128 with our own commands."""
    base = tmp_path_factory.mktemp("sunnybrook")
    with pytest.MonkeyPatch.context() as patch:
        use_own_folders(patch, base, command, processes=2)
        assert main(["convert", "mnms", "-i", str(real_data / "sunnybrook_mnms"), "-d", "114"]) == 0
        small = ["-gpu_memory_target", "0.1", "-overwrite_plans_name", "small"]
        assert main(["prepare", "114", *small]) == 0
        folder = base / "preprocessed" / "Dataset114_MNMs"
        plans = json.loads((folder / "small.json").read_text())
        arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [n // 4 for n in arguments["features_per_stage"]]
        plans["plans_name"] = (
            "narrow"  # a quarter of the widths: the same data at a tenth of the time
        )
        (folder / "narrow.json").write_text(json.dumps(plans))
        yield base


def test_whole_path(cine: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    device = ("-device", "cpu")
    said = command(
        *("nnUNetv2_train", 114, "2d", 0, *PLANS, "-tr", "nnUNetTrainerMIMPretrain", *device),
        nnUNet_ssp_settings="num_epochs=4 iterations_per_epoch=10 batch_size=6 initial_lr=1e-3 recipe=deep",
    )
    assert "4 subjects, 80 frames, 920 slices" in said
    assert "Fold 0 trains on 3 subjects, 60 frames" in said
    (trained_on,) = re.findall(r"Fold 0 trains on .*, (\d+) slices", said)
    (held_out,) = re.findall(r"left out for validation: (\w+) \(1 subject, 20 frames, (\d+)", said)
    assert int(trained_on) + int(held_out[1]) == 920
    assert "test subjects, never in the store: SCD0000501" in said

    losses = [float(x) for x in re.findall(r"val_loss ([\d.]+)", said)]
    assert len(losses) == 4
    assert losses[-1] < 0.98 * losses[0]
    cases = read_cases(cine / "preprocessed" / "Dataset114_MNMs" / "cases.csv")
    weights = Path(said.split("-pretrained_weights ")[-1].split()[0])
    ssp = torch.load(weights, weights_only=True)["ssp"]
    assert len(ssp["subjects"]) == 3
    assert hashed_subject("mm1-SCD0000401") in ssp["subjects"]  # unlabelled
    tests = {c.subject_key for c in cases.values() if c.split == "test"}
    assert not {*map(hashed_subject, tests)} & set(ssp["subjects"])
    store = cine / "preprocessed" / "Dataset114_MNMs" / "small_2d_slices"
    assert not list(store.glob("SCD0000501*"))
    assert main(["inspect", str(weights), "-d", "114", "-p", "small"]) == 0

    said = command(
        *("nnUNetv2_train", 114, "2d", 0, *PLANS, "-tr", "nnUNetTrainerFinetune", *device),
        *("-pretrained_weights", weights),
        nnUNet_ssp_settings="num_epochs=1 iterations_per_epoch=3 val_iterations_per_epoch=1 final_validation=no",
    )
    assert re.search(r"encoder 48 tensors, decoder 50, fresh 10", said)
    images = cine / "raw" / "Dataset114_MNMs" / "imagesTs"
    command(
        *(
            "nnUNetv2_predict",
            "-d",
            114,
            "-c",
            "2d",
            "-f",
            0,
            *PLANS,
            "-tr",
            "nnUNetTrainerFinetune",
        ),
        *("-i", images, "-o", tmp_path, *device, "--disable_tta", "-npp", 1, "-nps", 1),
    )
    assert len(list(tmp_path.glob("SCD0000501_frame*.nii.gz"))) == 2


@pytest.mark.parametrize("task", ["ContextPrediction", "Inpainting"])
def test_inpainting_methods_learn(cine: Path, command: Callable[..., str], task: str) -> None:
    said = command(
        *("nnUNetv2_train", 114, "2d", 0, "-p", "narrow", "-device", "cpu"),
        *("-tr", f"nnUNetTrainer{task}Pretrain"),
        nnUNet_ssp_settings="num_epochs=4 iterations_per_epoch=12",
    )
    for curve in ("val_loss", "l2 norm", "error over variance"):
        found = [float(x) for x in re.findall(rf"{curve}[: ].*?([\d.]+)$", said, re.MULTILINE)]
        assert len(found) == 4, curve
        assert found[-1] < 0.95 * found[0], curve


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ("nnUNetTrainerSimCLRPretrain", "batch_size=24"),
        ("nnUNetTrainerPCLPretrain", "batch_size=24 threshold=0.15"),
        ("nnUNetTrainerBYOLPretrain", "batch_size=16 head_width=512 predictor_width=512"),
        ("nnUNetTrainerDINOPretrain", "batch_size=24 recipe=short"),
    ],
)
def test_encoder_methods_learn(
    cine: Path, command: Callable[..., str], trainer: str, settings: str
) -> None:
    said = command(
        *("nnUNetv2_train", 114, "2d", 0, "-p", "narrow", "-tr", trainer, "-device", "cpu"),
        nnUNet_ssp_settings=f"num_epochs=5 iterations_per_epoch=10 {settings}",
    )
    found = {
        curve: [float(x) for x in re.findall(rf"{curve}[: ].*?val ([\d.]+)", said)]
        for curve in ("relative alignment", "spread", "effective rank")
    }
    losses = [float(x) for x in re.findall(r"train_loss ([\d.]+)", said)]
    assert losses[-1] < losses[0]
    nearness = found["relative alignment"]
    assert len(nearness) == 5
    if trainer == "nnUNetTrainerDINOPretrain":
        losses = [float(x) for x in re.findall(r"kl: train ([\d.]+)", said)]
    if trainer in ("nnUNetTrainerBYOLPretrain", "nnUNetTrainerDINOPretrain"):
        # Takes longer than 50 steps to draw views together: the student follows its teacher.
        assert losses[-1] < 0.85 * losses[0]
    else:  # Views of one slice come nearer to each other than views of any two
        assert nearness[-1] < nearness[0] < 1
    # ... and the features do not collapse.
    assert found["spread"][-1] > 0.1 and found["effective rank"][-1] > 2
    assert "the features have collapsed" not in said
    assert "Linear probe, a monitor: labels of" in said
