"""Snapshots: light files to fine-tune from, of encoder and whole-network methods, resumed and started anew."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.files.saving import save
from nnunet_ssp.network import in_encoder, is_output_layer
from nnunet_ssp.training import snapshots
from nnunet_ssp.training.inspection import inspect
from nnunet_ssp.training.snapshots import BEFORE, FOLDER, Snapshot, snapshot_file
from tests.saved import final, load

MIM, SIMCLR = "nnUNetTrainerMIMPretrain", "nnUNetTrainerSimCLRPretrain"
FINETUNE = "nnUNetTrainerFinetune"
PRETRAIN = "num_epochs=3 iterations_per_epoch=1 batch_size=4 snapshot_epochs=1"
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def folder_of(trainer: Any) -> Path:
    return Path(trainer.output_folder)


def names(trainer: Any, folder: str = FOLDER) -> list[str]:
    return sorted(file.name for file in (folder_of(trainer) / folder).glob("*"))


def stored_bytes(file: Path) -> int:
    """Bytes of the tensors in a file: its pickle and the record are not among them."""
    with zipfile.ZipFile(file) as archive:
        return sum(m.file_size for m in archive.infolist() if "/data/" in m.filename)


def transferred(trainer: Any) -> dict[str, torch.Tensor]:
    """What a finished pretraining hands on, each tensor once."""
    only = trainer.method.transfers == "encoder"
    weights = final(trainer)["network_weights"]
    kept = {k: t for k, t in weights.items() if not is_output_layer(k)}
    by_place = {t.data_ptr(): k for k, t in reversed(kept.items()) if in_encoder(k) or not only}
    return {key: weights[key] for key in by_place.values()}


@pytest.mark.parametrize("name", [MIM, SIMCLR])
def test_a_snapshot_holds_what_is_transferred_and_the_record(runs, name):
    trainer = runs.run(name, PRETRAIN)
    assert names(trainer) == [f"epoch_{n:04d}.pth" for n in (1, 2, 3)]
    last = snapshot_file(folder_of(trainer), 3)
    content, whole = load(last), final(trainer)
    wanted = transferred(trainer)
    for key, tensor in wanted.items():
        assert torch.equal(content["network_weights"][key], tensor), key
    assert all(t.dtype == torch.float32 for t in content["network_weights"].values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in wanted.values())
    assert size <= stored_bytes(last) <= 1.05 * size
    about = content["ssp"].pop("snapshot")
    assert (about["epochs"], about["of"]) == (3, 3)
    assert content["ssp"] == whole["ssp"]
    assert content["init_args"] == whole["init_args"]
    assert "optimizer_state" not in content and "ssp_state" not in content


@pytest.fixture
def simclr(runs) -> Any:
    return runs.run(SIMCLR, PRETRAIN)


def test_fine_tuning_from_a_snapshot_takes_its_encoder(simclr, runs, log, capsys):
    file = snapshot_file(folder_of(simclr), 2)
    fresh = runs.make("nnUNetTrainerScratch", SHORT)
    fresh.initialize()
    own = {k: v.clone() for k, v in fresh.network_module.state_dict().items()}
    tuned = runs.make(FINETUNE, SHORT, weights=file)
    state = tuned.network_module.state_dict()
    for key, tensor in load(file)["network_weights"].items():
        assert torch.equal(state[key], tensor), key
    for key in (key for key in state if not in_encoder(key)):
        assert torch.equal(state[key], own[key]), key
    said = log(tuned)
    assert "note: the file is a snapshot after 2 of 3 epochs" in said
    assert "note: the file holds a pretrained encoder and no decoder" in said
    tuned.run_training()
    record = final(tuned)["ssp"]
    assert record["chain"][0]["snapshot"]["epochs"] == 2
    assert set(load(file)["ssp"]["subjects"]) <= set(record["subjects"])
    inspect(folder_of(tuned) / "checkpoint_final.pth")
    assert "1. SimCLR, snapshot after 2 epochs: " in capsys.readouterr().out

    # A pretraining goes on from it, too.
    later = runs.make(MIM, PRETRAIN, fold=1, weights=file)
    state = later.method.network.state_dict()
    for key, tensor in load(file)["network_weights"].items():
        assert torch.equal(state[key], tensor), key
    assert "the heads of MIM are new (the file is of SimCLR)" in log(later)


def test_a_snapshot_that_saw_a_test_subject_is_refused(runs, own_copy):
    trainer = runs.run(MIM, PRETRAIN)
    cases = read_cases(own_copy / "cases.csv")
    subject = trainer.train_subjects[0]
    for case in cases.values():
        if case.subject_key == subject:
            cases[case.case] = type(case)(**{**vars(case), "split": "test"})
    write_cases(own_copy / "cases.csv", list(cases.values()))
    with pytest.raises(ValueError, match=f"have seen test subject {subject.partition('-')[2]}"):
        runs.make(FINETUNE, SHORT, weights=snapshot_file(folder_of(trainer), 1))


def test_a_resumed_run_makes_the_same_snapshots(runs, tmp_path):
    whole = runs.run(SIMCLR, PRETRAIN)
    expected = {n: load(snapshot_file(folder_of(whole), n)) for n in (1, 2, 3)}
    shutil.rmtree(folder_of(whole))
    stopped = runs.interrupt(SIMCLR, PRETRAIN, epochs=1)
    later = snapshot_file(folder_of(stopped), 3)
    shutil.copy(snapshot_file(folder_of(stopped), 1), later)  # of a part that is lost
    resumed = runs.make(SIMCLR, PRETRAIN, resume=True)
    epoch_start = resumed.on_epoch_start
    seen: list[list[str]] = []
    resumed.on_epoch_start = lambda: (seen.append(names(resumed)), epoch_start())
    resumed.run_training()
    assert seen[0] == ["epoch_0001.pth"]
    for n, content in expected.items():
        found = load(snapshot_file(folder_of(resumed), n))
        assert found["ssp"]["snapshot"] == pytest.approx(content["ssp"]["snapshot"])
        for key, tensor in content["network_weights"].items():
            torch.testing.assert_close(found["network_weights"][key], tensor)


def test_a_run_that_is_started_anew(simclr, runs, log):
    before = load(snapshot_file(folder_of(simclr), 2))["network_weights"]
    stopped = runs.interrupt(SIMCLR, PRETRAIN, epochs=1)
    assert names(stopped) == ["epoch_0001.pth"]
    assert names(stopped, BEFORE) == [f"epoch_{n:04d}.pth" for n in (1, 2, 3)]
    with pytest.raises(FileNotFoundError, match="started anew and has not come this far; the ear"):
        runs.make(FINETUNE, SHORT, weights=snapshot_file(folder_of(stopped), 2))
    old = folder_of(stopped) / BEFORE / "epoch_0002.pth"
    assert all(torch.equal(before[k], t) for k, t in load(old)["network_weights"].items())
    tuned = runs.make(FINETUNE, SHORT, weights=old)
    assert "note: its training was started anew since" in log(tuned)
    runs.run(SIMCLR, PRETRAIN, resume=True)
    assert names(stopped) == [f"epoch_{n:04d}.pth" for n in (1, 2, 3)]
    assert not (folder_of(stopped) / BEFORE).exists()


def test_a_finished_run_without_snapshots_is_not_replaced_by_one_with(runs):
    runs.run(MIM, PRETRAIN.replace(" snapshot_epochs=1", ""))
    with pytest.raises(FileExistsError, match="snapshot_epochs: none -> 1"):
        runs.run(MIM, PRETRAIN)


def test_inspect_ranks_by_the_probe(simclr, capsys):
    scores = {n: load(snapshot_file(folder_of(simclr), n))["ssp"]["snapshot"] for n in (1, 2, 3)}
    dice = simclr.progress.logger.local_logger.my_fantastic_logging["probe_dice"]
    assert [scores[n]["probe_dice"] for n in (1, 2, 3)] == pytest.approx(dice)
    for n, score in {1: 0.2, 2: 0.7, 3: 0.4}.items():
        file = snapshot_file(folder_of(simclr), n)
        content = load(file)
        content["ssp"]["snapshot"]["probe_dice"] = score
        save(file, content)
    expected = [
        f"snapshots in {folder_of(simclr) / FOLDER}, best linear probe first:",
        "  1. epoch_0002.pth, 2 of 3: Dice 0.7000",
        "  2. epoch_0003.pth, 3 of 3: Dice 0.4000",
        "  3. epoch_0001.pth, 1 of 3: Dice 0.2000",
    ]
    for file in (
        folder_of(simclr) / "checkpoint_final.pth",
        snapshot_file(folder_of(simclr), 1),
        folder_of(simclr) / FOLDER,
    ):
        assert inspect(file) == 0
        assert "\n".join(expected) in capsys.readouterr().out
    assert inspect(snapshot_file(folder_of(simclr), 2)) == 0
    said = capsys.readouterr().out
    assert (
        "a snapshot after 2 of 3 epochs" in said and "decoder 0; the file holds no decoder" in said
    )
    with pytest.raises(FileNotFoundError, match="holds no snapshots"):
        inspect(folder_of(simclr) / BEFORE)


def test_without_a_probe_the_order_is_that_of_the_epochs(runs, capsys):
    trainer = runs.run(MIM, PRETRAIN)
    capsys.readouterr()
    assert inspect(folder_of(trainer) / FOLDER) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  epoch_000{n}.pth, {n} of 3" for n in (1, 2, 3)
    ]


def test_words_for_some_scores_only():
    ranked = [
        Snapshot(Path("s/epoch_0002.pth"), 2, 4, 0.5),
        Snapshot(Path("s/epoch_0004.pth"), 4, 4, math.nan),
    ]
    assert snapshots.ranking_in_words(ranked) == [
        "snapshots in s, best linear probe first:",
        "  1. epoch_0002.pth, 2 of 4: Dice 0.5000",
        "  epoch_0004.pth, 4 of 4",
    ]
    assert snapshots.ranking_in_words([]) == []


@pytest.mark.heavy
def test_with_nnunet_s_own_command(preprocessed, command):
    """Pretrain with snapshots, fine-tune from one of them, and list them."""
    train = ("nnUNetv2_train", "901", "2d", "0", "-p", "tiny", "-device", "cpu")
    command(*train, "-tr", SIMCLR, nnUNet_ssp_settings=PRETRAIN)
    results = Path(os.environ["nnUNet_results"]) / preprocessed.name
    folder = results / f"{SIMCLR}__tiny__2d" / "fold_0"
    file = snapshot_file(folder, 2)
    said = command(*train, "-tr", FINETUNE, "-pretrained_weights", file, nnUNet_ssp_settings=SHORT)
    assert "the file is a snapshot after 2 of 3 epochs" in said
    record = load(results / f"{FINETUNE}__tiny__2d" / "fold_0" / "checkpoint_final.pth")["ssp"]
    assert record["chain"][0]["snapshot"]["epochs"] == 2
    listed = command("nnunet-ssp", "inspect", folder / FOLDER)
    assert "best linear probe first" in listed and listed.count("Dice 0.") == 3
