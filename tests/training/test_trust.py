"""Our trainers open files of anybody: nothing runs, nothing is written elsewhere, nothing spoilt is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.malice import Copy

FEW = "num_epochs=2 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"
PRETRAINING = "num_epochs=2 iterations_per_epoch=1 batch_size=4"


def armed(file: Path, marker: Path, place: str = "logging") -> Path:
    """Put code into a checkpoint."""
    content = torch.load(file, weights_only=False)
    content[place] = {**content[place], "extra": [Copy(marker)]}
    torch.save(content, file)
    return file


def spoilt(file: Path) -> Path:
    """Put NaN into a checkpoint's weights."""
    content = torch.load(file, weights_only=False)
    next(iter(content["network_weights"].values())).reshape(-1)[0] = float("nan")
    torch.save(content, file)
    return file


@pytest.fixture
def copied(pretrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(pretrained, tmp_path / "elsewhere.pth"))


@pytest.fixture
def interrupted(runs) -> Path:
    """The folder of a fine-tuning that wrote `checkpoint_latest.pth` and `checkpoint_best.pth`."""
    return Path(runs.interrupt("nnUNetTrainerScratch", FEW).output_folder)


@pytest.mark.parametrize("flag", ["-pretrained_weights", "-pretrained_weights="])
def test_pretrained_weights_run_nothing(runs, copied, tmp_path, monkeypatch, flag):
    from nnunetv2.run import run_training

    marker = tmp_path / "marker"
    armed(copied, marker)
    monkeypatch.setenv("nnUNet_ssp_settings", FEW)
    words = [f"{flag}{copied}"] if flag.endswith("=") else [flag, str(copied)]
    command = ["nnUNetv2_train", "901", "2d", "0", "-p", "tiny", "-tr", "nnUNetTrainerFinetune"]
    # argparse takes the last one of two.
    monkeypatch.setattr(
        "sys.argv", [*command, "-device", "cpu", "-pretrained_weights", "x", *words]
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with pytest.raises(
        ValueError, match=r"elsewhere\.pth is not opened, because it would run code"
    ):
        run_training.run_training_entry()
    assert not marker.exists()


def test_pretrained_weights_given_in_python_run_nothing(runs, copied, tmp_path, monkeypatch):
    """As programs and notebooks call nnU-Net, with other words on their own command line."""
    from nnunetv2.run import run_training

    marker = tmp_path / "marker"
    armed(copied, marker)
    monkeypatch.setenv("nnUNet_ssp_settings", FEW)
    monkeypatch.setattr("sys.argv", ["notebook", "-f", "kernel.json"])
    with pytest.raises(
        ValueError, match=r"elsewhere\.pth is not opened, because it would run code"
    ):
        run_training.run_training(
            "901",
            "2d",
            0,
            "nnUNetTrainerFinetune",
            "tiny",
            pretrained_weights=str(copied),
            device=torch.device("cpu"),
        )
    assert not marker.exists()


def test_weights_that_nobody_has_checked_are_not_loaded(runs, copied, monkeypatch):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = runs.make("nnUNetTrainerFinetune", FEW)
    trainer.initialize()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match="loads only weights that it has checked"):
        load_pretrained_weights(trainer.network, str(copied))
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_trust_opens_one_s_own_pretrained_weights(runs, copied, tmp_path):
    marker = tmp_path / "marker"
    armed(copied, marker)
    with pytest.raises(ValueError, match="trust=yes"):
        runs.make("nnUNetTrainerFinetune", FEW, weights=copied)
    assert not marker.exists()
    runs.make("nnUNetTrainerFinetune", f"{FEW} trust=yes", weights=copied)
    assert marker.exists()


def test_pretrained_weights_must_be_finite(runs, copied):
    with pytest.raises(ValueError, match=r"values: [1-9] of \d+ tensors hold NaN or infinity"):
        runs.make("nnUNetTrainerFinetune", FEW, weights=spoilt(copied))


def test_going_on_with_fine_tuning_runs_nothing(runs, interrupted, tmp_path):
    latest, marker = interrupted / "checkpoint_latest.pth", tmp_path / "marker"
    kept = latest.read_bytes()
    armed(latest, marker)
    advice = r"To go on from an older one: cp .*checkpoint_best\.pth .*checkpoint_latest\.pth"
    with pytest.raises(ValueError, match=rf"is not opened, because it would run code.*{advice}"):
        runs.make("nnUNetTrainerScratch", FEW, resume=True)
    assert not marker.exists()
    # `trust` is no difference to the settings of before.
    latest.write_bytes(kept)
    assert runs.make("nnUNetTrainerScratch", f"{FEW} trust=yes", resume=True).current_epoch == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(current_epoch="one"),
            r"`current_epoch` \(=one\) must be a whole number",
        ),
        (lambda c: c.pop("optimizer_state"), r"latest\.pth: `optimizer_state` is missing"),
        (lambda c: c["optimizer_state"].pop("state"), r"this run cannot continue from it"),
        (lambda c: c.update(logging={}), r"`logging`: `mean_fg_dice` is missing"),
        (lambda c: c["ssp_early_stopping"].clear(), r"this run cannot continue from it"),
        (lambda c: c["network_weights"].popitem(), r"this run cannot continue from it"),
    ],
)
def test_going_on_with_other_content_is_refused_in_words(runs, interrupted, change, message):
    latest = interrupted / "checkpoint_latest.pth"
    content = torch.load(latest, weights_only=True)
    change(content)
    torch.save(content, latest)
    with pytest.raises(ValueError, match=message):
        runs.make("nnUNetTrainerScratch", FEW, resume=True)


def test_going_on_from_half_a_file_offers_the_older_one(runs, interrupted):
    latest, best = (interrupted / f"checkpoint_{name}.pth" for name in ("latest", "best"))
    latest.write_bytes(latest.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"damaged or not whole.*: cp {best} {latest}"):
        runs.make("nnUNetTrainerScratch", FEW, resume=True)
    shutil.copy(best, latest)
    assert runs.make("nnUNetTrainerScratch", FEW, resume=True).current_epoch == 1
    spoilt(latest)
    with pytest.raises(ValueError, match="tensors hold NaN or infinity"):
        runs.make("nnUNetTrainerScratch", FEW, resume=True)


def test_going_on_with_pretraining_runs_nothing(runs, tmp_path):
    folder = Path(runs.interrupt("nnUNetTrainerMIMPretrain", PRETRAINING).output_folder)
    latest, marker = folder / "checkpoint_latest.pth", tmp_path / "marker"
    kept = latest.read_bytes()
    armed(latest, marker, "ssp_state")
    with pytest.raises(ValueError, match="is not opened, because it would run code"):
        runs.make("nnUNetTrainerMIMPretrain", PRETRAINING, resume=True)
    assert not marker.exists()
    for name in ("ssp_state", "ssp"):
        latest.write_bytes(kept)
        content = torch.load(latest, weights_only=True)
        content[name] = {}
        torch.save(content, latest)
        with pytest.raises(ValueError, match=r"checkpoint_latest|settings of the checkpoint"):
            runs.make("nnUNetTrainerMIMPretrain", PRETRAINING, resume=True)


ESCAPING = {
    "dataset_name": "../outside",
    "plans_name": "a/b",
    "data_identifier": "../../outside",
    "loop": "2d",
}


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"])
@pytest.mark.parametrize("name", ESCAPING)
def test_plans_that_lead_elsewhere_are_refused_before_a_folder_is_made(
    runs, own_copy, tmp_path, trainer, name
):
    file = own_copy / "tiny.json"
    content = json.loads(file.read_text())
    configuration = content["configurations"]["2d"]
    if name == "loop":
        configuration["inherits_from"] = "2d"
    else:
        (configuration if name == "data_identifier" else content)[name] = ESCAPING[name]
    file.write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    rule = "inherit from itself" if name == "loop" else rf"`{name}` .* must be one plain name"
    with pytest.raises(ValueError, match=rule):
        runs.make(trainer, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_configuration_that_leads_elsewhere_is_refused(runs, own_copy, tmp_path):
    file = own_copy / "tiny.json"
    content = json.loads(file.read_text())
    content["configurations"]["../2d"] = content["configurations"]["2d"]
    file.write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"`configuration` \(=\.\./2d\) must be one plain name"):
        runs.make("nnUNetTrainerScratch", "", configuration="../2d")
    with pytest.raises(
        ValueError, match=r"`configuration` \(=none\) must be one that plans tiny has"
    ):
        file.write_text(
            json.dumps({**content, "configurations": {"2d": configuration_of(content)}})
        )
        runs.make("nnUNetTrainerScratch", "", configuration="none")
    assert sorted(tmp_path.rglob("*")) == before


def configuration_of(content):
    return content["configurations"]["2d"]
