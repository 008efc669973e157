from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.cohort.privacy import hashed_subject
from nnunet_ssp.slices import store as slices
from tests.saved import final

MIM = "nnUNetTrainerMIMPretrain"
INPAINTING = [
    f"nnUNetTrainer{task}Pretrain"
    for task in ("ContextPrediction", "ContextRestoration", "Inpainting")
]
DENSE = "nnUNetTrainerDensePretrain"
SHORT = "num_epochs=2 iterations_per_epoch=2 batch_size=4"


@pytest.mark.parametrize("name", [MIM, *INPAINTING])
def test_files_of_a_run(runs, log, name):
    trainer = runs.run(name, SHORT)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    names = {p.name for p in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "settings.json"} <= names
    assert "checkpoint_latest.pth" not in names
    pictures = sorted(p.name for p in (folder / "reconstructions").iterdir())
    assert pictures == ["epoch_000.png", "epoch_001.png", "epoch_002.png"]
    rows = list(csv.DictReader((folder / "monitor.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert all(np.isfinite(float(row["train_losses"])) for row in rows)
    assert all(0 < float(row["change encoder 1"]) < 1 for row in rows)
    assert {p.name for p in folder.parent.iterdir()} >= {"plans.json", "dataset.json"}
    text = log(trainer)
    for said in ("train_loss", "val_loss", "error over variance", "change since", "slices/s, "):
        assert text.count(said) >= 2, said
    # Dominic et al. hand on the weights of the lowest validation loss.
    weights = folder / f"checkpoint_{'final' if name == MIM else 'best'}.pth"
    command = f"-tr nnUNetTrainerFinetune -device cpu -pretrained_weights {weights}"
    assert f"nnUNetv2_train 901 2d 0 -p tiny {command}" in text


def test_who_is_in(runs, log, preprocessed):
    trainer = runs.make(MIM, SHORT)
    trainer.on_train_start()
    cases = read_cases(preprocessed / "cases.csv")
    val = json.loads((preprocessed / "splits_final.json").read_text())[0]["val"]
    held_out = {cases[case].subject_key for case in val}
    assert len(held_out) == 1
    stored = [c for c in cases.values() if c.split == "train"]
    train = [c for c in stored if c.subject_key not in held_out]
    assert trainer.store.names == sorted(c.case for c in train)
    assert len({c.subject_key for c in train}) == 5  # 3 labelled and both unlabelled subjects
    assert {c.subject_key for c in train if not c.labelled} - {
        c.subject_key for c in train if c.labelled
    }, "unlabelled-only subjects are always in"
    text = log(trainer)
    assert "6 subjects, 24 frames, 96 slices" in text
    assert "Fold 0 trains on 5 subjects, 20 frames, 80 slices" in text
    left_out = held_out.pop().removeprefix("mm1-")  # as cases and tables of one source call it
    assert f"left out for validation: {left_out} (1 subject, 4 frames, 16 slices)" in text
    (test,) = {c.subject for c in cases.values() if c.split == "test"}
    assert f"test subjects, never in the store: {test}" in text
    assert "3 subjects with labelled frames: " in text
    assert "2 subjects without labelled frames: " in text
    assert "mm1-" not in text
    assert not [name for name in trainer.store.names if cases[name].subject_key == test]


def test_shares_of_the_training_subjects_are_nested(runs, log):
    def subjects(fraction: float) -> set[str]:
        trainer = runs.make(MIM, f"{SHORT} data_fraction={fraction}")
        train, val = trainer.do_split()
        assert not set(train) & set(val)
        return set(trainer.train_subjects)

    everybody, some, few = subjects(1.0), subjects(0.6), subjects(0.01)
    assert (len(everybody), len(some), len(few)) == (5, 3, 1)
    assert few < some < everybody
    trainer = runs.make(MIM, f"{SHORT} data_fraction=0.6")
    trainer.on_train_start()
    assert "3 of 5 training subjects, drawn with seed=0" in log(trainer)
    assert "Fold 0 trains on 3 subjects, 12 frames, 48 slices" in log(trainer)


def test_fold_all_takes_everybody_but_test_subjects(runs, log):
    trainer = runs.make(MIM, SHORT, fold="all")
    trainer.on_train_start()
    assert len(trainer.store) == 96
    assert "is taken on 96 training slices" in log(trainer)


def test_checkpoint_is_the_planned_network(runs, preprocessed):
    trainer = runs.run(MIM, SHORT)
    checkpoint = final(trainer)
    weights = checkpoint["network_weights"]
    planned = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 4, True
    )
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in planned.state_dict().items()
    }
    own = trainer.method.network.state_dict()
    for key, tensor in weights.items():
        if ".seg_layers." in key:
            assert tensor.dtype == torch.float16
        else:
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, own[key])
    ssp = checkpoint["ssp"]
    assert ssp["method"] == "MIM"
    assert ssp["counts"] == {"subjects": 5, "frames": 20, "slices": 80}
    assert len(ssp["subjects"]) == 5
    assert ssp["settings"]["num_epochs"] == 2
    assert "2409.18100" in ssp["papers"][0]
    assert ssp == json.loads((Path(trainer.output_folder) / "settings.json").read_text())


def test_names_stay_out_of_checkpoints(runs, preprocessed, own_copy, tmp_path):
    """Also those of cases that dataset.json lists, where there are only unlabelled ones."""
    content = json.loads((own_copy / "dataset.json").read_text())
    cases = read_cases(own_copy / "cases.csv")
    listed = {name: {"images": [f"imagesUn/{name}_0000.nii.gz"], "label": "x"} for name in cases}
    (own_copy / "dataset.json").write_text(json.dumps(content | {"dataset": listed}))
    trainer = runs.run(MIM, SHORT)
    folder = Path(trainer.output_folder)
    text = repr({k: v for k, v in final(trainer).items() if k != "network_weights"})
    files = [*folder.glob("*.pth"), *folder.glob("*.json"), folder / "monitor.csv"]
    files = [file for file in files if file.name != "debug.json"]  # nnU-Net's
    files += folder.parent.glob("*.json")
    assert {file.name for file in files} >= {
        "checkpoint_final.pth",
        "settings.json",
        "dataset.json",
    }
    private = [*{case.subject for case in cases.values()}, str(tmp_path), str(own_copy)]
    for found in (text, *(file.read_bytes().decode("latin1") for file in files)):
        assert [word for word in private if word in found] == []
    subjects = {hashed_subject(c.subject_key) for c in cases.values()}
    assert set(final(trainer)["ssp"]["subjects"]) < subjects


def test_a_run_goes_on_from_a_file_with_names(runs, preprocessed):
    """As earlier versions wrote it; other subjects under these names are refused."""
    stopped = runs.interrupt(MIM, SHORT)
    file = Path(stopped.output_folder) / "checkpoint_latest.pth"
    content = torch.load(file, map_location="cpu", weights_only=True)
    hashes = content["ssp"]["subjects"]
    assert len(hashes) == 5 and not {*hashes} & {*stopped.train_subjects}
    content["ssp"]["subjects"] = [*stopped.train_subjects[1:], "mm1-other"]
    torch.save(content, file)
    with pytest.raises(ValueError, match="--c must go on with the same data"):
        runs.make(MIM, SHORT, resume=True).run_training()
    content["ssp"]["subjects"] = stopped.train_subjects
    torch.save(content, file)
    resumed = runs.make(MIM, SHORT, resume=True)
    resumed.run_training()
    assert final(resumed)["ssp"]["subjects"] == hashes


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        (MIM, "paper"),
        (DENSE, "paper"),  # has none: another trainer's setting
        *(
            pytest.param(name, recipe, marks=[pytest.mark.slow, pytest.mark.heavy])
            for name, recipe in (
                *((name, "paper") for name in INPAINTING),
                (MIM, "deep"),
                (INPAINTING[1], "deep"),
            )
        ),
    ],
)
def test_resume_is_exact(runs, name, recipe):
    settings = f"num_epochs=3 iterations_per_epoch=2 batch_size=4 recipe={recipe} skip_dropout=0.3"
    whole = runs.run(name, settings)
    expected = final(whole)
    best = whole.best_loss
    shutil.rmtree(whole.output_folder)

    interrupted = runs.interrupt(name, settings)
    resumed = runs.make(name, settings, resume=True)
    assert resumed.best_loss == interrupted.best_loss == resumed.logger.get_value("val_losses", 0)
    resumed.run_training()
    assert resumed.best_loss == best
    found = final(resumed)
    curves = [f"val_{curve}" for curve in whole.method.curves]
    for key in ("train_losses", "val_losses", "lrs", *curves):
        assert found["logging"][key] == expected["logging"][key]
    assert len(found["logging"]["train_losses"]) == 3
    for key, tensor in expected["network_weights"].items():
        if ".seg_layers." not in key:
            assert torch.equal(found["network_weights"][key], tensor), key
    for a, b in zip(
        expected["optimizer_state"]["state"].values(),
        found["optimizer_state"]["state"].values(),
        strict=True,
    ):
        assert all(
            torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a if a[k] is not None
        )


def test_an_epoch_is_one_pass(runs):
    trainer = runs.make(MIM, "num_epochs=1 batch_size=7")
    trainer.on_train_start()
    assert trainer.num_iterations_per_epoch == 80 // 7


def test_resume_with_other_settings_is_refused(runs):
    runs.run(MIM, SHORT)
    with pytest.raises(ValueError, match=r"--c must go on .* mask_ratio: 0\.75 -> 0\.5"):
        runs.make(MIM, SHORT + " mask_ratio=0.5", resume=True)


def test_resume_with_other_data_is_refused(runs, own_copy):
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=4")
    splits = json.loads((own_copy / "splits_final.json").read_text())
    splits[0] = splits[1]
    (own_copy / "splits_final.json").write_text(json.dumps(splits))
    resumed = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=4", resume=True)
    assert resumed.current_epoch == trainer.current_epoch
    with pytest.raises(ValueError, match="--c must go on with the same data"):
        resumed.on_train_start()


def test_other_settings_do_not_overwrite_a_finished_run(runs):
    short = "num_epochs=1 iterations_per_epoch=1 batch_size=4"
    runs.run(MIM, short)
    with pytest.raises(
        FileExistsError, match=r"checkpoint_final\.pth was made with .*seed: 0 -> 1"
    ):
        runs.run(MIM, short + " seed=1")
    runs.run(MIM, short + " data_device=host")  # changes nothing of the result


def test_seed_fixes_the_initial_weights(runs):
    def weights(seed: int) -> torch.Tensor:
        trainer = runs.make(MIM, f"seed={seed}")
        trainer.initialize()
        return next(trainer.method.network.parameters()).detach().clone()

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_residual_encoder_plans(runs):
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2", plans="tinyres")
    assert type(trainer.method.network).__name__ == "ResidualEncoderUNet"
    assert "change encoder stem" in trainer.logger.get_checkpoint()


def test_early_stopping(runs, log):
    settings = (
        "num_epochs=5 iterations_per_epoch=1 batch_size=2 early_stopping=2 early_stopping_delta=100"
    )
    trainer = runs.run(MIM, settings)
    assert trainer.current_epoch == 3  # the first improves on infinity, the next two do not
    assert "Early stopping after epoch 2" in log(trainer)
    assert final(trainer)["current_epoch"] == 3


def test_divergence_stops_and_keeps_the_last_good_state(runs):
    trainer = runs.make(MIM, "num_epochs=3 iterations_per_epoch=2 batch_size=2")
    trainer.on_epoch_end_of_nnunet = trainer.on_epoch_end

    def poison() -> None:
        trainer.on_epoch_end_of_nnunet()
        with torch.no_grad():
            next(trainer.method.parameters()).fill_(float("nan"))

    trainer.on_epoch_end = poison
    with pytest.raises(
        RuntimeError,
        match=r"no step of epoch 1 had a finite loss .* batch of \w+_frame.* weights are lost .*checkpoint_\w+\.pth",
    ):
        trainer.run_training()
    kept = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=True)
    assert all(torch.isfinite(w).all() for w in kept["network_weights"].values())


@pytest.mark.parametrize("epoch", [0, 1])
def test_weights_lost_in_an_epochs_last_step_are_not_saved(runs, epoch):
    """The step's own loss is still finite; what it did to the weights shows in the validation only."""
    trainer = runs.make(MIM, "num_epochs=2 iterations_per_epoch=2 batch_size=2")
    step = trainer.train_step

    def lose(batch):
        output = step(batch)
        if trainer._step == 2 * (epoch + 1):
            with torch.no_grad():
                next(trainer.method.parameters()).fill_(float("nan"))
        return output

    trainer.train_step = lose
    with pytest.raises(
        RuntimeError,
        match=rf"validation loss of epoch {epoch} is not finite .* step {2 * epoch + 1} ",
    ):
        trainer.run_training()
    files = list(Path(trainer.output_folder).glob("checkpoint_*.pth"))
    assert bool(files) == (epoch == 1)
    for file in files:
        kept = torch.load(file, weights_only=True)["network_weights"]
        assert all(torch.isfinite(weight).all() for weight in kept.values())


def test_batch_size_larger_than_the_data(runs):
    with pytest.raises(
        ValueError, match=r"`batch_size` \(=81\) must lie .* slices to train on \(=80\)"
    ):
        runs.run(MIM, "batch_size=81")


@pytest.mark.parametrize("fold", [4, 7, -1])
def test_fold_out_of_range(runs, fold):
    # Before anything is built, and without a folder left behind.
    runs.monkeypatch.setattr("nnunet_ssp.training.base.require_device", pytest.fail)
    with pytest.raises(ValueError, match=rf"fold \(={fold}\) must be all or one of the 4 folds"):
        runs.run(MIM, SHORT, fold=fold)
    assert not any(Path(os.environ["nnUNet_results"]).rglob("fold_*"))


def test_missing_folds(runs, own_copy):
    (own_copy / "splits_final.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"splits_final\.json is missing, so only fold `all`"
    ):
        runs.run(MIM, SHORT)


def test_unknown_setting(runs):
    with pytest.raises(
        ValueError, match=r"no setting is called mask_ration.*Valid here: .*mask_ratio"
    ):
        runs.make(MIM, "mask_ration=0.5")


def test_settings_of_other_trainers_are_ignored_with_a_note(runs, log):
    trainer = runs.make(MIM, "final_validation=no num_epochs=2")
    assert "Settings of other trainers, ignored here: final_validation" in log(trainer)


def test_3d_is_refused(runs):
    with pytest.raises(ValueError, match=r"configuration \(=3d_fullres\) must be 2D"):
        runs.run(MIM, SHORT, configuration="3d_fullres")


def test_test_subject_in_the_store_is_refused(runs, own_copy):
    cases = read_cases(own_copy / "cases.csv")
    leaked = next(iter(cases.values())).subject
    from dataclasses import replace

    moved = [replace(c, split="test") if c.subject == leaked else c for c in cases.values()]
    write_cases(own_copy / "cases.csv", moved)
    with pytest.raises(ValueError, match=rf"test subject {leaked} must not be in the slice store"):
        runs.run(MIM, SHORT)


def test_case_missing_in_the_table(runs, own_copy):
    cases = list(read_cases(own_copy / "cases.csv").values())
    gone = next(c for c in cases if c.split == "train")
    write_cases(own_copy / "cases.csv", [c for c in cases if c is not gone])
    with pytest.raises(ValueError, match=rf"{gone.case} is not in cases\.csv"):
        runs.run(MIM, SHORT)


def test_store_of_other_plans(runs, own_copy):
    folder = own_copy / "tiny_2d_slices"
    preprocessing, index = slices.read_index(folder)
    slices.write_index(folder, {**preprocessing, "spacing": [9.0, 9.0]}, index)
    with pytest.raises(ValueError, match=r"made by other plans \(spacing differ\)"):
        runs.run(MIM, SHORT)


def test_missing_store(runs, own_copy):
    shutil.rmtree(own_copy / "tiny_2d_slices")
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing: run nnunet-ssp prepare"):
        runs.run(MIM, SHORT)


@pytest.fixture
def plain(own_copy, monkeypatch) -> Path:
    """A dataset as stock nnU-Net prepares it: neither our tables nor our slice store."""
    monkeypatch.delenv("nnUNet_raw")  # which has tables: as if this dataset were not ours
    for name in ("cases.csv", "folds.csv", "splits_final.json"):
        (own_copy / name).unlink()
    shutil.rmtree(own_copy / "tiny_2d_slices")
    return own_copy


def test_plain_dataset_builds_its_store_on_first_use(runs, plain, log):
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    assert (plain / "tiny_2d_slices" / "index.json").is_file()
    assert len(json.loads((plain / "splits_final.json").read_text())) == 5  # nnU-Net's own
    text = log(trainer)
    assert "8 subjects, 8 frames, 32 slices" in text  # without a table, a case is a subject
    assert "WARNING: cases on both sides of this fold share a prefix" in text


def test_plain_dataset_whose_numbers_continue(runs, plain, log, monkeypatch):
    pair = ("genius_0800", "genius_0801")
    monkeypatch.setattr("nnunet_ssp.cohort.repeats.continuing_names", lambda *_: [pair])
    trainer = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    trainer.on_train_start()
    said = "continue across the sides of this fold, as in genius_0800 and genius_0801 (1 such pair)"
    assert f"NOTE: numbers of cases {said}: possible repeats" in log(trainer)


def test_plain_dataset_with_subject_pattern(runs, plain, log):
    settings = r"num_epochs=1 iterations_per_epoch=1 batch_size=2 subject_pattern=(.+)_frame"
    trainer = runs.make(MIM, settings)
    trainer.on_train_start()
    split = json.loads((plain / "splits_final.json").read_text())[0]
    held_out = {case.split("_frame")[0] for case in split["val"]}
    assert not held_out & {name.split("_frame")[0] for name in trainer.store.names}
    assert "4 subjects, 8 frames" in log(trainer)
    assert "WARNING" not in log(trainer)


def test_subject_pattern_that_does_not_match(runs, plain):
    with pytest.raises(ValueError, match=r"`subject_pattern` \(=\^x\) must match every case name"):
        runs.run(MIM, r"subject_pattern=^x batch_size=2")


def test_plain_store_follows_the_preprocessed_folder(runs, plain):
    settings = "num_epochs=1 iterations_per_epoch=1 batch_size=2"
    trainer = runs.make(MIM, settings, fold="all")
    trainer.on_train_start()
    names = trainer.store.names
    assert len(names) == 8
    folder = plain / "tiny_2d"
    for file in folder.glob(f"{names[0]}*"):
        file.rename(folder / file.name.replace(names[0], "another_case"))
    trainer = runs.make(MIM, settings, fold="all")
    trainer.on_train_start()
    assert sorted(trainer.store.names) == sorted({*names[1:], "another_case"})


def test_store_of_prepare_is_not_touched_without_a_table(runs, own_copy):
    """A plain raw dataset with imagesUn: prepared by us, but without cases.csv."""
    (own_copy / "cases.csv").unlink()
    trainer = runs.make(MIM, SHORT, fold="all")
    trainer.on_train_start()
    assert (
        len(trainer.store) == 96
    )  # the unlabelled frames, which nnU-Net's folder does not have, too


def test_replaced_patches_in_odd_validation_batches(runs):
    """16 validation slices in batches of 3: none may be a single slice."""
    runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=3 fill=replace_patches")


def test_many_ranks_and_few_validation_slices(runs, monkeypatch):
    """Every rank gets a part of every validation batch; the pictures are rank 0's alone."""
    from nnunet_ssp import distributed
    from nnunet_ssp.training import batches, pretraining

    for module in (batches, distributed):
        monkeypatch.setattr(module, "world_size", lambda: 20)
    monkeypatch.setattr(distributed, "rank", lambda: 19)
    monkeypatch.setattr(
        pretraining, "require_equal_ranks", lambda _: None
    )  # the others are not there
    trainer = runs.make(MIM, "num_epochs=1 batch_size=20")
    trainer.initialize()
    _, val = trainer.get_dataloaders()
    assert len(next(val)) == 1
    assert len(trainer.batches.pictured()) == 6
    with pytest.raises(
        ValueError, match=r"`batch_size` \(=19\) must be at least .* processes \(=20\)"
    ):
        small = runs.make(MIM, "num_epochs=1 batch_size=19")
        small.initialize()
        small.get_dataloaders()


def test_more_files_than_a_process_may_open(runs):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    trainer = runs.make(MIM, "num_epochs=1 batch_size=80")
    trainer.on_train_start()
    import os

    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 8, hard))  # fewer than the 20 cases
    try:
        assert len(next(trainer.dataloader_train)) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        trainer.dataloader_train.close()


def test_cascade_is_refused(runs):
    trainer = runs.make(MIM, SHORT)
    trainer.is_cascaded = True
    with pytest.raises(ValueError, match=r"configuration \(=2d\) must not be a cascade"):
        trainer.initialize()


def test_half_precision_needs_a_gpu(runs):
    with pytest.raises(ValueError, match=r"`precision` \(=fp16\) must be used on CUDA"):
        runs.make(MIM, SHORT + " precision=fp16").initialize()


def test_bf16_runs_everywhere(runs):
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2 precision=bf16")
    assert all(w.dtype == torch.float32 for w in trainer.method.parameters())


def test_channels_of_store_and_dataset_differ(runs, own_copy):
    content = json.loads((own_copy / "dataset.json").read_text())
    content["channel_names"] = {"0": "cineMRI", "1": "T2"}
    (own_copy / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"slices have 1 channel, dataset.json names 2"):
        runs.run(MIM, SHORT)


def test_nothing_preprocessed(runs, plain):
    shutil.rmtree(plain / "tiny_2d")
    with pytest.raises(
        FileNotFoundError, match=r"tiny_2d does not exist: run nnunet-ssp prepare or"
    ):
        runs.run(MIM, SHORT, fold="all")


def test_checkpoint_of_another_network(runs):
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    other = final(trainer)
    other["network_weights"]["encoder.extra.weight"] = torch.zeros(1)
    torch.save(other, file)
    with pytest.raises(
        ValueError, match=r"does not fit the planned network: encoder\.extra\.weight"
    ):
        runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2", resume=True)


def test_without_labels_the_next_command_says_so(runs, own_copy, log):
    content = json.loads((own_copy / "dataset.json").read_text())
    content["labels"] = {"background": 0}
    (own_copy / "dataset.json").write_text(json.dumps(content))
    trainer = runs.run(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2", fold="all")
    trainer.perform_actual_validation()
    assert "has no labels. With the id of a labelled dataset in place of ID" in log(trainer)


def test_disabled_checkpointing(runs, log):
    trainer = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    trainer.disable_checkpointing = True
    trainer.run_training()
    trainer.perform_actual_validation()
    assert not list(Path(trainer.output_folder).glob("*.pth"))
    assert "nothing was saved" in log(trainer)


def test_validation_loss_has_fixed_views_and_masks(runs):
    losses = []
    for _ in range(2):
        trainer = runs.make(MIM, SHORT)
        trainer.on_train_start()
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            batches = [
                next(trainer.dataloader_val) for _ in range(trainer.num_val_iterations_per_epoch)
            ]
            losses.append([float(trainer.validation_step(batch)["loss"]) for batch in batches])
        trainer.dataloader_train.close()
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4  # 16 slices of the validation subject in batches of 4


def test_wandb_and_other_loggers_get_every_curve(runs):
    class Recorder:
        def __init__(self) -> None:
            self.keys: set[str] = set()

        def update_config(self, config: dict) -> None:
            pass

        def log(self, key: str, value: object, step: int) -> None:
            assert isinstance(value, float)
            self.keys.add(key)

    trainer = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    recorder = Recorder()
    trainer.logger.loggers.append(recorder)
    trainer.run_training()
    wanted = {"train_losses", "val_losses", "val_error_over_variance", "change decoder 1", "lrs"}
    assert wanted <= recorder.keys


def test_a_table_that_is_refused_leaves_no_folder(runs, own_copy):
    table = own_copy / "cases.csv"
    table.write_text(table.read_text() + '"never closed,')
    with pytest.raises(ValueError, match=r"cases\.csv"):
        runs.make(MIM, SHORT)
    assert not list(Path(os.environ["nnUNet_results"]).iterdir())


def test_what_a_killed_run_was_writing_is_removed(runs, no_pictures):
    trainer = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=2")
    folder = Path(trainer.output_folder)
    (folder / "reconstructions").mkdir(parents=True)
    for name in (".ssp-tmp-1-checkpoint_latest.pth", "reconstructions/.ssp-tmp-1-epoch_001.png"):
        (folder / name).touch()
    trainer.run_training()
    assert not [file for file in folder.rglob("*") if file.name.startswith(".ssp-tmp")]
