from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.cohort.privacy import findings, hashed_subject, stripped
from nnunet_ssp.files.saving import save
from nnunet_ssp.network import in_encoder, is_output_layer
from nnunet_ssp.training import finetuning
from nnunet_ssp.training.evidence import gain_in_words
from nnunet_ssp.training.starting import StartingTrainer
from nnunet_ssp.training.transfer import pretrained_weights
from tests.saved import load

FINETUNE, SCRATCH = "nnUNetTrainerFinetune", "nnUNetTrainerScratch"
ENCODER, NO_DA = "nnUNetTrainerFinetuneEncoder", "nnUNetTrainerFinetuneNoDA"
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"


def changed(file: Path, to: Path, **changes) -> Path:
    """A copy of a checkpoint with some of its entries replaced."""
    torch.save({**load(file), **changes}, to)
    return to


def with_configuration(file: Path, to: Path, **values) -> Path:
    """A copy whose plans say something else."""
    arguments = load(file)["init_args"]
    arguments["plans"]["configurations"]["2d"].update(values)
    return changed(file, to, init_args=arguments)


def test_weights_before_the_first_step(runs, pretrained, log):
    weights = load(pretrained)["network_weights"]
    states = []
    for seed in (0, 1):
        trainer = runs.make(FINETUNE, f"seed={seed}", weights=pretrained)
        states.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        assert "encoder 32 tensors, decoder 30, fresh 6" in log(trainer)
        assert "(MIM, 80 slices)" in log(trainer)
    assert states[0].keys() == weights.keys()
    for key, tensor in weights.items():
        for state in states:
            if ".seg_layers." in key:
                assert not key.endswith("weight") or not torch.equal(state[key], tensor.float())
            else:
                assert torch.equal(state[key], tensor), key
        if key.endswith("weight") and ".seg_layers." in key:
            assert not torch.equal(states[0][key], states[1][key]), "two seeds differ in them"


def test_forgotten_weights_are_refused(runs):
    with pytest.raises(ValueError, match="got no weights: give -pretrained_weights FILE"):
        runs.run(FINETUNE, SHORT)


def test_continuing_without_a_checkpoint_is_refused(runs):
    with pytest.raises(ValueError, match="got no weights"):
        runs.run(FINETUNE, SHORT, resume=True)


def test_scratch_refuses_weights(runs, pretrained):
    with pytest.raises(ValueError, match="trains from scratch and takes no -pretrained_weights"):
        runs.make(SCRATCH, SHORT, weights=pretrained)


def test_scratch_refuses_weights_that_another_program_loads(runs, pretrained):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = runs.make(SCRATCH, SHORT)
    trainer.initialize()
    with pytest.raises(ValueError, match="trains from scratch and takes no pretrained weights"):
        load_pretrained_weights(trainer.network, str(pretrained))


@pytest.mark.parametrize(("trainer", "rate"), [(FINETUNE, 0.005), (SCRATCH, 0.01)])
def test_learning_rate(runs, trainer, rate):
    assert runs.make(trainer).initial_lr == rate
    assert runs.make(trainer, "initial_lr=0.2").initial_lr == 0.2


def test_settings_reach_nnunet(runs):
    trainer = runs.make(SCRATCH, "num_epochs=7 iterations_per_epoch=3 val_iterations_per_epoch=2")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (7, 3)
    assert trainer.num_val_iterations_per_epoch == 2


def test_run_and_files(runs, pretrained, log):
    trainer = runs.run(FINETUNE, SHORT, weights=pretrained)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    checkpoint = load(folder / "checkpoint_final.pth")
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1)
    assert checkpoint["ssp"]["weights_from"] == pretrained.name
    assert checkpoint["ssp"]["pretraining"]["method"] == "MIM"
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["trainer"] == FINETUNE
    assert settings["validation_subjects_seen_in_pretraining"] == 0
    assert not (folder / "validation").exists()
    assert "final_validation=no: no validation case was predicted" in log(trainer)


@pytest.mark.parametrize("unsaved", [False, True])
def test_the_printed_validation_keeps_settings_and_needs_a_checkpoint(unsaved, monkeypatch):
    said: list[str] = []
    trainer = finetuning.FinetuningTrainer.__new__(finetuning.FinetuningTrainer)
    trainer.settings = replace(trainer.defaults, trust=True, final_validation=False)
    trainer.disable_checkpointing = unsaved
    trainer.print_to_log_file = said.append
    trainer.command = lambda flag, settings: f"[{settings}] {flag}"
    trainer.plans_manager = SimpleNamespace(dataset_name="Dataset007_Heart")
    trainer.output_folder, trainer.fold, trainer.device = "x", 0, SimpleNamespace(type="cpu")
    monkeypatch.setattr(finetuning, "after_finetuning", lambda *_: "")
    trainer.perform_actual_validation()
    assert len(said) == 1
    assert ("nothing was saved" in said[0]) == unsaved
    assert ("[trust=yes final_validation=yes] --val" in said[0]) != unsaved


@pytest.mark.parametrize(("device", "unsaved"), [("cpu", False), ("cuda", False), ("cpu", True)])
def test_the_final_validation_is_announced_with_the_way_out(monkeypatch, device, unsaved):
    said: list[str] = []
    trainer = finetuning.FinetuningTrainer.__new__(finetuning.FinetuningTrainer)
    trainer.settings, trainer.disable_checkpointing = trainer.defaults, unsaved
    trainer.print_to_log_file = said.append
    trainer.command = lambda flag, settings: f"[{settings}] {flag}"
    trainer.plans_manager = SimpleNamespace(dataset_name="Dataset007_Heart")
    trainer.output_folder, trainer.fold, trainer.device = "x", 0, SimpleNamespace(type=device)
    trainer.do_split = lambda: (["a"], ["b", "c"])
    trainer.repeat_warnings = lambda: None
    after = {True: "", False: "Predict the test subjects with:\na line"}
    monkeypatch.setattr(finetuning, "after_finetuning", lambda *words: after[words[-1]])
    monkeypatch.setattr(
        finetuning, "ending_at_once", lambda later: nullcontext(said.append(later()))
    )
    monkeypatch.setattr(StartingTrainer, "perform_actual_validation", lambda *_: None)
    monkeypatch.setattr(finetuning, "needs_no_workers", lambda _: False)
    trainer.perform_actual_validation()
    kept = "the training is finished and checkpoint_final.pth saved; validate with: [] --val"
    assert said[0] == ("nothing was saved" if unsaved else f"{kept}\n{after[False]}")
    assert said[1].startswith("Final validation: 2 cases to predict")
    assert ("minutes" in said[1]) == (device == "cpu")
    assert ("the training is saved" in said[1]) != unsaved


def test_scratch_run(runs):
    trainer = runs.run(SCRATCH, SHORT)
    assert trainer.record()["weights_from"] == "scratch"
    # By which `evaluate` knows whether new patients are better predicted without mirroring
    assert json.loads((Path(trainer.output_folder) / "debug.json").read_text())["device"] == "cpu"


def test_same_seed_same_result_without_workers(runs, pretrained):
    results = []
    for _ in range(2):
        trainer = runs.run(FINETUNE, SHORT + " seed=5", weights=pretrained)
        results.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        shutil.rmtree(trainer.output_folder)
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


@pytest.mark.parametrize("trainer", [FINETUNE, ENCODER])
def test_resume(runs, pretrained, trainer):
    two = SHORT.replace("num_epochs=1", "num_epochs=2")
    stopped = runs.interrupt(trainer, two, weights=pretrained)
    with pytest.raises(ValueError, match=r"--c must go on .* initial_lr: 0\.005 -> 0\.1"):
        runs.make(trainer, two + " initial_lr=0.1", resume=True)
    resumed = runs.make(trainer, two, resume=True)
    assert resumed.current_epoch == 1
    for key, tensor in stopped.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], tensor), key
    resumed.run_training()
    record = load(Path(resumed.output_folder) / "checkpoint_final.pth")["ssp"]
    assert record["weights_from"] == pretrained.name
    assert record["pretraining"]["method"] == "MIM"


def test_other_settings_do_not_overwrite_a_finished_run(runs):
    runs.run(SCRATCH, SHORT)
    with pytest.raises(FileExistsError, match=r"was made with other settings \(seed: 0 -> 3\)"):
        runs.run(SCRATCH, SHORT + " seed=3")


@pytest.mark.parametrize("trainer", [FINETUNE, SCRATCH])
def test_fold_out_of_range(runs, trainer, pretrained):
    weights = pretrained if trainer == FINETUNE else None
    # Before anything is built, and without a folder left behind.
    runs.monkeypatch.setattr("nnunet_ssp.training.base.require_device", pytest.fail)
    with pytest.raises(ValueError, match=r"fold \(=9\) must be all or one of the 4 folds"):
        runs.run(trainer, SHORT, fold=9, weights=weights)
    assert not any(Path(os.environ["nnUNet_results"]).rglob("fold_*"))


def test_early_stopping(runs):
    settings = SHORT.replace("num_epochs=1", "num_epochs=9")
    trainer = runs.run(SCRATCH, settings + " early_stopping=1 early_stopping_delta=1000")
    assert trainer.current_epoch == 2


@pytest.mark.parametrize(
    "flag", ["-pretrained_weights", "-pretrained", "-pre", "-pretrained_weights="]
)
def test_every_spelling_of_the_flag_is_seen(flag, monkeypatch):
    from nnunet_ssp.training.base import SettingsTrainer

    words = [flag + "F"] if flag.endswith("=") else [flag, "F"]
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "1", "2d", "0", "-p", "plans", *words])
    assert SettingsTrainer.pretrained_argument() == "F"


def test_plans_are_not_taken_for_weights(monkeypatch):
    from nnunet_ssp.training.base import SettingsTrainer

    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "1", "2d", "0", "-p", "plans"])
    assert SettingsTrainer.pretrained_argument() is None


def test_early_stopping_survives_an_interruption(runs):
    settings = SHORT.replace("num_epochs=1", "num_epochs=9")
    settings += " early_stopping=1 early_stopping_delta=1000"
    stopped = runs.run(SCRATCH, settings)
    resumed = runs.run(SCRATCH, settings, resume=True)
    assert resumed.current_epoch == stopped.current_epoch == 2


def test_a_resumed_run_draws_other_batches_than_the_first_epoch(runs):
    settings = SHORT.replace("num_epochs=1", "num_epochs=2")
    drawn = []
    for epoch in (0, 0, 1):
        trainer = runs.make(SCRATCH, settings)
        trainer.initialize()
        trainer.current_epoch = epoch
        trainer.on_train_start()
        drawn.append(float(next(trainer.dataloader_train)["data"].sum()))
    assert drawn[0] == drawn[1] != drawn[2]


def test_validation_alone_needs_no_settings(runs, monkeypatch):
    trainer = runs.run(SCRATCH, SHORT)
    monkeypatch.setenv("nnUNet_ssp_settings", "")
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "--val"])
    trainer.settings = type(trainer).defaults
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))


def test_other_weights_do_not_overwrite_a_finished_run(runs, pretrained, tmp_path):
    runs.run(FINETUNE, SHORT, weights=pretrained)
    shutil.copyfile(pretrained, tmp_path / "other.pth")
    with pytest.raises(FileExistsError, match=r"weights from: .* -> .*other\.pth"):
        runs.run(FINETUNE, SHORT, weights=tmp_path / "other.pth")


# -- what is transferred ---------------------------------------------------------------------------


@pytest.mark.parametrize(("trainer", "settings"), [(ENCODER, ""), (FINETUNE, "transfer=encoder")])
def test_the_encoder_alone_of_a_full_file(runs, pretrained, log, trainer, settings):
    weights = load(pretrained)["network_weights"]
    control = runs.make(SCRATCH, "seed=3")
    control.initialize()
    tuned = runs.make(trainer, f"seed=3 {settings}", weights=pretrained)
    assert "encoder 32 tensors, decoder 0, fresh 36" in log(tuned)
    assert "note: the file holds" not in log(tuned)
    for key, tensor in tuned.network.state_dict().items():
        source = weights if in_encoder(key) else control.network.state_dict()
        assert torch.equal(tensor, source[key]), key


@pytest.mark.parametrize("trainer", [FINETUNE, ENCODER])
def test_a_file_of_an_encoder_alone_is_accepted_with_a_note(
    runs, pretrained, tmp_path, log, trainer
):
    source = runs.make(FINETUNE, weights=pretrained).network
    weights = pretrained_weights(source, "encoder", 4)
    file = changed(pretrained, tmp_path / "encoder.pth", network_weights=weights)
    tuned = runs.make(trainer, weights=file)
    assert "note: the file holds a pretrained encoder and no decoder; the decoder starts" in log(
        tuned
    )
    for key, tensor in tuned.network.state_dict().items():
        if not is_output_layer(key) and tensor.ndim > 1:
            assert torch.equal(tensor, source.state_dict()[key]) == in_encoder(key), key


# -- variants --------------------------------------------------------------------------------------


def test_the_encoders_trainer_cannot_be_told_to_take_all(runs, pretrained):
    with pytest.raises(ValueError, match=r"`transfer` \(=all\) must be encoder"):
        runs.make(FINETUNE + "Encoder", "transfer=all", weights=pretrained)


@pytest.mark.parametrize(
    ("variant", "control"),
    [
        ("Encoder", ""),
        *((name, name) for name in ("Frozen", "Warmup", "NoDA", "Cine", "Averaged", "Semi")),
    ],
)
def test_every_variant_has_a_control_with_its_settings(runs, variant, control):
    tuned, scratch = runs.make(FINETUNE + variant), runs.make(SCRATCH + control)
    assert tuned.needs_weights and not scratch.needs_weights
    # As of nnUNetTrainerFinetune and nnUNetTrainerScratch, which have the paper's two rates.
    rates = None if variant in ("Frozen", "Warmup") else (0.005, 0.01)
    if rates:
        assert (tuned.initial_lr, scratch.initial_lr) == rates
    same = {"initial_lr": 0, "transfer": "all"} if rates else {}
    assert asdict(tuned.settings) | same == asdict(scratch.settings) | same
    with pytest.raises(ValueError, match=f"{FINETUNE}{variant} got no weights"):
        tuned.run_training()


@pytest.mark.parametrize("trainer", [NO_DA, "nnUNetTrainerScratchNoDA"])
def test_without_augmentation(runs, pretrained, monkeypatch, trainer):
    """Neither in training nor, mirroring, in prediction."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = runs.run(trainer, SHORT, weights=pretrained if trainer == NO_DA else None)
    training, validation = trainer.dataloader_train, trainer.dataloader_val
    names = [
        [type(step).__name__ for step in loader.data_loader.transforms.transforms]
        for loader in (training, validation)
    ]
    assert names[0] == names[1] == ["RemoveLabelTransform", "DownsampleSegForDSTransform"]
    checkpoint = load(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    assert predictor.allowed_mirroring_axes is None


@pytest.mark.parametrize("trainer", ["nnUNetTrainerFinetuneCine", "nnUNetTrainerScratchCine"])
def test_the_papers_augmentation(runs, pretrained, trainer):
    trainer = runs.run(trainer, SHORT, weights=pretrained if "Finetune" in trainer else None)
    steps = trainer.dataloader_train.data_loader.transforms.transforms
    assert [type(step).__name__ for step in steps][5] == "Shift"
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape == (2, 1, 48, 48) and batch["data"].isfinite().all()
    for target in batch["target"]:
        assert set(target.unique().tolist()) <= {0, 1, 2, 3}
    checkpoint = load(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1)


def test_the_papers_augmentation_is_of_2d(runs, own_copy):
    plans = json.loads((own_copy / "tiny.json").read_text())
    plans["configurations"]["3d_fullres"] = {
        **plans["configurations"]["2d"],
        "patch_size": [4, 48, 48],
    }
    (own_copy / "tiny.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"configuration \(=3d_fullres\) must be 2D"):
        runs.run("nnUNetTrainerScratchCine", SHORT, configuration="3d_fullres")


def test_learning_curve(runs, pretrained):
    """The record holds the whole run, also one that was interrupted."""
    settings = SHORT.replace(
        "num_epochs=1 iterations_per_epoch=1", "num_epochs=2 iterations_per_epoch=3"
    )
    runs.interrupt(FINETUNE, settings, weights=pretrained)
    trainer = runs.run(FINETUNE, settings, resume=True)
    text = (Path(trainer.output_folder) / "learning_curve.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    logging = trainer.logger.local_logger.my_fantastic_logging
    assert [row["step"] for row in rows] == ["3", "6"]
    for column, curve in (("pseudo_dice", "mean_fg_dice"), ("val_loss", "val_losses")):
        values = [float(row[column]) for row in rows]
        assert values == [float(value) for value in logging[curve]]
        assert float(rows[-1][f"{column}_area"]) == pytest.approx(sum(values) / 2)


# -- pretrained files that do not fit --------------------------------------------------------------


def test_other_architecture(runs, pretrained):
    with pytest.raises(ValueError, match=r"does not fit .*architecture: \d+ of \d+ tensors differ"):
        runs.make(FINETUNE, weights=pretrained, plans="tinyres")


def test_other_number_of_channels(runs, pretrained, tmp_path):
    weights = load(pretrained)["network_weights"]
    for key in weights:
        if "encoder.stages.0.0.convs.0" in key and weights[key].ndim == 4:
            weights[key] = weights[key].repeat(1, 3, 1, 1)
    file = changed(pretrained, tmp_path / "three.pth", network_weights=weights)
    with pytest.raises(
        ValueError, match=r"channels: pretrained with 3 input channels, these plans have 1"
    ):
        runs.make(FINETUNE, weights=file)


def test_other_spacing(runs, pretrained, tmp_path):
    file = with_configuration(pretrained, tmp_path / "a.pth", spacing=[1.0, 1.0])
    with pytest.raises(
        ValueError, match=r"spacing: pretrained with \[1\.0, 1\.0\], these plans have"
    ):
        runs.make(FINETUNE, weights=file)


def test_other_normalisation(runs, pretrained, tmp_path):
    changes = {"normalization_schemes": ["CTNormalization"]}
    file = with_configuration(pretrained, tmp_path / "a.pth", **changes)
    with pytest.raises(ValueError, match=r"normalisation: pretrained with \['CTNormalization'\]"):
        runs.make(FINETUNE, weights=file)


def test_other_patch_size_is_a_note(runs, pretrained, tmp_path, log):
    file = with_configuration(pretrained, tmp_path / "a.pth", patch_size=[320, 320])
    assert "note: patch size: pretrained [320, 320]" in log(runs.make(FINETUNE, weights=file))


def test_the_gain_that_is_told_depends_on_the_dataset_of_the_weights(
    runs, pretrained, tmp_path, log
):
    content = load(pretrained)
    settings = {"contrast": 0.0}
    record = content["ssp"] | {
        "method": "Dense",
        "settings": settings,
        "counts": dict.fromkeys(("subjects", "frames", "slices"), 40),
    }
    plans = content["init_args"]["plans"]
    for name, elsewhere in ((plans["dataset_name"], False), ("Dataset161_Other", True)):
        arguments = content["init_args"] | {"plans": plans | {"dataset_name": name}}
        file = changed(pretrained, tmp_path / "a.pth", ssp=record, init_args=arguments)
        said = gain_in_words("Dense", settings, elsewhere=elsewhere)
        assert said in log(runs.make(FINETUNE, weights=file))


def test_plain_nnunet_checkpoint_is_accepted_with_a_note(runs, tmp_path, log):
    trainer = runs.run(SCRATCH, SHORT)
    plain = load(Path(trainer.output_folder) / "checkpoint_final.pth")
    del plain["ssp"]
    torch.save(plain, tmp_path / "plain.pth")
    tuned = runs.make(FINETUNE, SHORT, weights=tmp_path / "plain.pth")
    assert "note: a plain nnU-Net checkpoint" in log(tuned)
    for key, tensor in plain["network_weights"].items():
        if ".seg_layers." not in key:
            assert torch.equal(tuned.network.state_dict()[key], tensor)


def test_missing_file(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Checkpoint .*nowhere\.pth does not exist"):
        runs.make(FINETUNE, weights=tmp_path / "nowhere.pth")


# -- leaks -----------------------------------------------------------------------------------------


def test_weights_that_have_seen_a_test_subject(runs, pretrained, own_copy):
    cases = read_cases(own_copy / "cases.csv").values()
    hashes = load(pretrained)["ssp"]["subjects"]
    seen = next(c.subject_key for c in cases if hashed_subject(c.subject_key) in hashes)
    write_cases(
        own_copy / "cases.csv",
        [replace(c, split="test") if c.subject_key == seen else c for c in cases],
    )
    with pytest.raises(
        ValueError, match=f"pretrained weights have seen test subject {seen.partition('-')[2]}"
    ):
        runs.make(FINETUNE, weights=pretrained)


def names_of(folder: Path) -> dict[str, str]:
    """The subjects of a dataset by their hash."""
    keys = {case.subject_key for case in read_cases(folder / "cases.csv").values()}
    return {hashed_subject(key): key for key in keys}


def as_before(file: Path, to: Path, folder: Path) -> Path:
    """A copy of a checkpoint as earlier versions wrote it: with names, paths and a list of cases."""
    content = load(file)
    names = names_of(folder)
    ssp = content["ssp"] | {
        "subjects": sorted(names[subject] for subject in content["ssp"]["subjects"]),
        "weights_from": f"/data/erika/{content['ssp']['weights_from']}",
    }
    ssp.pop("weights_from_hash", None)
    content["init_args"]["dataset_json"]["dataset"] = {"mm1-x": {"images": ["a"], "label": "b"}}
    return changed(file, to, ssp=ssp, init_args=content["init_args"])


def private_in(file: Path, words: Iterable[str]) -> list[str]:
    """The words that a checkpoint holds, as Python reads it or as it lies on the disk."""
    content = {k: v for k, v in load(file).items() if k != "network_weights"}
    text = repr(content) + file.read_bytes().decode("latin1")
    return [word for word in words if word in text]


@pytest.mark.parametrize("trainer", [FINETUNE, SCRATCH])
def test_no_name_and_no_path_in_a_checkpoint(runs, pretrained, preprocessed, tmp_path, trainer):
    weights = pretrained if trainer == FINETUNE else None
    content = json.loads((preprocessed / "dataset.json").read_text())
    made = runs.run(trainer, SHORT, weights=weights)
    final = Path(made.output_folder) / "checkpoint_final.pth"
    names = {key.partition("-")[2] for key in names_of(preprocessed).values()}
    assert len(names) == 7 and "dataset" not in content
    private = [*names, str(tmp_path), str(pretrained.parent), str(preprocessed), "/pytest-"]
    for file in (final, pretrained):
        assert private_in(file, private) == []
    settings = (Path(made.output_folder) / "settings.json").read_text()
    assert not [word for word in private if word in settings]
    assert {f.what for f in findings(load(final)) if not f.remains} <= {"dataset", "dates", "path"}
    record = load(final)["ssp"]
    assert set(record["subjects"]) <= names_of(preprocessed).keys()


@pytest.mark.parametrize("kind", ["as before", "stripped"])
def test_the_same_leak_is_found_in_other_files(runs, pretrained, own_copy, tmp_path, kind):
    """Earlier files hold names, stripped ones hardly anything; both start a training as the file does."""
    file = tmp_path / "other.pth"
    if kind == "as before":
        as_before(pretrained, file, own_copy)
    else:
        save(file, stripped(load(pretrained)))
    first, second = (runs.make(FINETUNE, SHORT, weights=f, fold=1) for f in (pretrained, file))
    (seen,) = first.seen_in_validation
    assert second.seen_in_validation == [seen]
    assert first.subjects == second.subjects
    for key, tensor in first.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[key], tensor), key
    cases = read_cases(own_copy / "cases.csv").values()
    write_cases(
        own_copy / "cases.csv",
        [replace(c, split="test") if c.subject_key == seen else c for c in cases],
    )
    with pytest.raises(
        ValueError, match=f"pretrained weights have seen test subject {seen.partition('-')[2]}:"
    ):
        runs.make(FINETUNE, weights=file)


@pytest.mark.parametrize("kind", ["as before", "stripped"])
def test_a_run_goes_on_from_other_files(runs, pretrained, preprocessed, kind):
    two = SHORT.replace("num_epochs=1", "num_epochs=2")
    stopped = runs.interrupt(FINETUNE, two, weights=pretrained)
    latest = Path(stopped.output_folder) / "checkpoint_latest.pth"
    subjects = load(latest)["ssp"]["subjects"]
    if kind == "as before":
        as_before(latest, latest, preprocessed)
    else:
        save(latest, stripped(load(latest)))
    resumed = runs.make(FINETUNE, two, resume=True)
    resumed.run_training()
    final = Path(resumed.output_folder) / "checkpoint_final.pth"
    record = load(final)["ssp"]
    assert record["subjects"] == subjects
    assert record["weights_from"] == pretrained.name
    assert private_in(final, ["/data/erika", "mm1-", "imagesUn"]) == []


def test_weights_from_another_folder_do_not_overwrite(runs, pretrained, tmp_path):
    """All files are called checkpoint_final.pth; a hash tells their paths apart."""
    runs.run(FINETUNE, SHORT, weights=pretrained)
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy(pretrained, tmp_path / "other"))
    assert other.name == pretrained.name
    with pytest.raises(FileExistsError, match=r"made with other settings \(weights from: "):
        runs.run(FINETUNE, SHORT, weights=other)
    runs.run(FINETUNE, SHORT, weights=pretrained)


def test_weights_that_have_seen_validation_subjects(runs, pretrained, log):
    """Said at the start, again behind the validation's Dice, and in both after --c, where nobody names the weights."""
    warning = "WARNING: pretraining has seen 1 subject of this fold's validation set"
    two = SHORT.replace("num_epochs=1", "num_epochs=2")
    stopped = runs.interrupt(FINETUNE, two, weights=pretrained, fold=1)
    assert log(stopped).count(warning) == 1
    trainer = runs.make(FINETUNE, two, fold=1, resume=True)
    trainer.settings = replace(trainer.settings, final_validation=True)
    assert log(trainer).count(warning) == 1
    trainer.run_training()
    settings = json.loads((Path(trainer.output_folder) / "settings.json").read_text())
    assert settings["validation_subjects_seen_in_pretraining"] == 1
    said = log(trainer)
    trainer.perform_actual_validation()
    end = log(trainer)[len(said) :]
    assert warning in end[end.index("Mean Validation Dice") :]


def test_leak_of_a_dataset_with_a_subject_pattern(runs, own_copy, log):
    """Without cases.csv, the pattern of the pretraining tells whose frames the validation shows."""
    (own_copy / "cases.csv").unlink()
    pattern = "subject_pattern=(.+)_frame"
    short = f"num_epochs=1 iterations_per_epoch=1 batch_size=2 {pattern}"
    first = runs.run("nnUNetTrainerMIMPretrain", short)
    weights = Path(first.output_folder) / "checkpoint_final.pth"
    assert runs.make(FINETUNE, SHORT, weights=weights).seen_in_validation == []
    assert len(runs.make(FINETUNE, SHORT, weights=weights, fold=1).seen_in_validation) == 1


@pytest.mark.parametrize("trainer", [FINETUNE, SCRATCH])
def test_leak_through_a_chain_of_trainings(runs, pretrained, trainer):
    first = runs.run(trainer, SHORT, weights=pretrained if trainer == FINETUNE else None)
    tuned = Path(first.output_folder) / "checkpoint_final.pth"
    second = runs.make(FINETUNE, SHORT, weights=tuned, fold=1)
    assert len(second.seen_in_validation) == 1


def test_dataset_without_labels(runs, own_copy, pretrained):
    content = json.loads((own_copy / "dataset.json").read_text())
    content["labels"] = {"background": 0}
    (own_copy / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Dataset901_Phantom has no labels"):
        runs.make(FINETUNE, weights=pretrained)


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_reference_cycles_of_an_epoch_do_not_pile_up(runs, no_pictures):
    """As those of nnU-Net's plot."""
    trainer = runs.make(
        "nnUNetTrainerScratch",
        "num_epochs=2 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no",
    )
    own, left = trainer.on_validation_epoch_end, []

    def leave(outputs: Any) -> None:
        left.append(weakref.ref(Cycle()))
        own(outputs)

    trainer.on_validation_epoch_end = leave
    gc.disable()
    try:
        trainer.run_training()
        assert left and all(cycle() is None for cycle in left)
    finally:
        gc.enable()
