"""The methods that train the encoder alone, as nnU-Net trainers: SimCLR, PCL, DINO and BYOL."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.methods.parts.views import Views
from nnunet_ssp.network import in_encoder, is_alias, is_output_layer
from tests.saved import final

TRAINERS = {
    "nnUNetTrainerSimCLRPretrain": "head_width=16",
    "nnUNetTrainerPCLPretrain": "head_width=16 threshold=0.3",
    "nnUNetTrainerDINOPretrain": "head_width=16 head_bottleneck=8 out_dim=32 local_crops=2",
    "nnUNetTrainerBYOLPretrain": "head_width=16 head_out=8 predictor_width=16",
}
SIMCLR, PCL, DINO, BYOL = TRAINERS
RECONSTRUCTING = [
    f"nnUNetTrainer{task}Pretrain" for task in ("MIM", "ContextPrediction", "ContextRestoration")
]
SHORT = "num_epochs=2 iterations_per_epoch=2 batch_size=4"

pytestmark = pytest.mark.usefixtures("one_thread")
every_method = pytest.mark.parametrize("name", TRAINERS)


def small(name: str, settings: str = SHORT) -> str:
    return f"{settings} {TRAINERS.get(name, '')}"


def fresh(runs, name: str) -> dict[str, torch.Tensor]:
    """The planned network as this trainer starts with it."""
    trainer = runs.make(name, small(name))
    trainer.initialize()
    return {k: v.clone() for k, v in trainer.method.network.state_dict().items()}


@every_method
def test_a_run(runs, log, name):
    start = fresh(runs, name)
    trainer = runs.run(name, small(name))
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert (folder / "views.png").is_file() and (folder / "progress.png").is_file()
    assert not (folder / "reconstructions").exists()
    text = log(trainer)
    for said in (
        ": alignment: train",
        "relative alignment: train",
        "uniformity: train",
        "spread: train",
        "effective rank: val",
    ):
        assert text.count(said) == 2, said
    assert "Linear probe, a monitor: labels of" in text and "No label is used in training" in text
    assert re.search(r"linear probe: Dice 0\.\d+ \(0\.\d+ before training\)", text)
    assert "-tr nnUNetTrainerFinetune" in text
    rows = list(csv.DictReader((folder / "monitor.csv").read_text().splitlines()))
    for column in ("val_alignment", "val_spread", "val_effective_rank", "probe_dice"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert all(float(row["change encoder 1"]) > 0 for row in rows)
    assert not [column for column in rows[0] if "decoder" in column]

    checkpoint = final(trainer)
    assert checkpoint["ssp"]["transfers"] == "encoder"
    for key, tensor in checkpoint["network_weights"].items():
        if is_output_layer(key) or not in_encoder(key):
            assert tensor.dtype == torch.float16, key
        else:
            assert tensor.dtype == torch.float32, key
            if not is_alias(key) and tensor.ndim > 1:
                assert not torch.equal(tensor, start[key]), f"{key} did not move"


@pytest.mark.slow
@pytest.mark.heavy
@every_method
def test_interrupted_runs_continue_exactly(runs, name):
    settings = small(name, "num_epochs=3 iterations_per_epoch=2 batch_size=4 chunk_size=none")
    whole = runs.run(name, settings)
    expected, curves = final(whole), whole.logger.local_logger.my_fantastic_logging
    state = {k: v.clone() for k, v in whole.method.state_dict().items()}
    shutil.rmtree(whole.output_folder)

    runs.interrupt(name, settings)
    rest = runs.make(name, settings, resume=True)
    assert rest.current_epoch == 1
    rest.run_training()
    found = rest.logger.local_logger.my_fantastic_logging
    for curve in curves:
        if curve.startswith(("train_", "val_", "lrs", "probe", "change")):
            np.testing.assert_array_equal(found[curve], curves[curve], err_msg=curve)
    for key, tensor in rest.method.state_dict().items():
        if "network.decoder" not in key:  # not trained, and not kept in full precision
            assert torch.equal(tensor, state[key]), key
    for key, tensor in final(rest)["network_weights"].items():
        if in_encoder(key):
            assert torch.equal(tensor, expected["network_weights"][key]), key


@every_method
def test_other_lengths_are_refused_on_resume(runs, name):
    runs.run(name, small(name))
    with pytest.raises(ValueError, match=r"differ: num_epochs: 2 -> 3"):
        runs.make(name, small(name).replace("num_epochs=2", "num_epochs=3"), resume=True)


@every_method
def test_fine_tuning_keeps_its_own_decoder(runs, log, name):
    pretrained = runs.run(name, small(name))
    file = Path(pretrained.output_folder) / "checkpoint_final.pth"
    weights = final(pretrained)["network_weights"]
    tuned = [runs.make("nnUNetTrainerFinetune", f"seed={seed}", weights=file) for seed in (0, 0, 1)]
    states = [trainer.network.state_dict() for trainer in tuned]
    for key, tensor in weights.items():
        a, b, c = (state[key] for state in states)
        if in_encoder(key):
            assert torch.equal(a, tensor) and torch.equal(c, tensor), key
        else:
            assert torch.equal(a, b), key
            if tensor.ndim > 1:  # biases and affine weights start as constants
                assert not torch.equal(a, c) and not torch.equal(a, tensor.float()), key
    assert "encoder 32 tensors, decoder 0, fresh" in log(tuned[0])


@pytest.mark.parametrize("name", [SIMCLR, DINO])
def test_residual_networks_and_second_frames(runs, name):
    settings = small(name, "num_epochs=1 iterations_per_epoch=2 batch_size=4 pairs=frame")
    trainer = runs.run(name, settings, plans="tinyres")
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    indices = trainer.batches.indices(0)
    assert indices.shape == (4, 2)
    store = trainer.store
    assert (store.positions[indices[:, 0]] == store.positions[indices[:, 1]]).all()
    subjects = [[store.names[store.case_of[i]].split("_")[0] for i in pair] for pair in indices]
    assert all(a == b for a, b in subjects)
    drawn = np.concatenate([trainer.batches.indices(step) for step in range(20)])
    assert (drawn[:, 0] != drawn[:, 1]).mean() > 0.5  # of 4 frames, 3 of 4 times another one


def test_second_frames_need_several_frames(runs, own_copy):
    (own_copy / "cases.csv").unlink()
    with pytest.raises(ValueError, match=r"`pairs` \(=frame\) must find several frames"):
        runs.run(SIMCLR, small(SIMCLR) + " pairs=frame")


def test_positions_count_from_the_base(runs):
    trainer = runs.make(PCL, small(PCL))
    trainer.on_train_start()
    store = trainer.store
    for number, (name, entry) in enumerate(zip(store.names, store.cases, strict=True)):
        rows = store.case_of == number
        expected = entry.first_slice + store.slice_of[rows]
        if trainer.cases[name].base == "last":
            expected = entry.n_slices - 1 - expected
        assert store.positions[rows].tolist() == [[p, entry.n_slices] for p in expected]
    assert {case.base for case in trainer.cases.values()} <= {"first", "last"}


def test_short_stacks_are_said_loudly(runs, log):
    settings = "num_epochs=1 iterations_per_epoch=1 batch_size=4 head_width=8 threshold=0.1"
    trainer = runs.run(PCL, settings)
    assert "WARNING: threshold=0.1 finds no neighbouring slices within 20 of 20" in log(trainer)


def test_single_slices_have_no_position(runs, own_copy):
    (file,) = own_copy.glob("*_slices/index.json")
    index = json.loads(file.read_text())
    for name, case in index["cases"].items():
        array = np.load(file.parent / f"{name}.npy")[:1]
        np.save(file.parent / f"{name}.npy", array)
        case |= {"shape": list(array.shape), "first_slice": 0, "n_slices": 1, "stored": []}
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"has a single slice .* nnUNetTrainerSimCLRPretrain"):
        runs.run(PCL, small(PCL))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (SIMCLR, "batch_size=1", r"`batch_size` \(=1\) must be at least 2"),
        (PCL, "threshold=0", r"`threshold` \(=0\.0\) must lie in \(0, 1\]"),
        (PCL, "threshold=1.5", r"`threshold` \(=1\.5\) must lie in \(0, 1\]"),
        (DINO, "out_dim=1", r"`out_dim` \(=1\) must be at least 2"),
        (DINO, "teacher_momentum=1.5", r"`teacher_momentum` \(=1\.5\) must lie in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(runs, name, settings, message):
    with pytest.raises(ValueError, match=message):
        runs.make(name, settings)


def test_local_crops_too_small_for_the_plan(runs):
    with pytest.raises(ValueError, match=r"`local_ratio` \(=0\.1\) must leave at least 2 x 2"):
        runs.make(DINO, small(DINO) + " local_ratio=0.1").initialize()


def test_extreme_values_are_named(runs, own_copy):
    """A slice that overflows in the network stops the run, and the message says where to look."""
    (file,) = own_copy.glob("*_slices/index.json")
    names = list(json.loads(file.read_text())["cases"])
    for name in names:
        array = np.load(file.parent / f"{name}.npy")
        array[:] = np.nan
        np.save(file.parent / f"{name}.npy", array)
    with pytest.raises(RuntimeError, match=r"no step of epoch 0 had a finite loss .*_frame\d"):
        runs.run(SIMCLR, small(SIMCLR) + " probe=no")


def test_the_probe_can_be_left_out(runs, log):
    trainer = runs.run(SIMCLR, small(SIMCLR) + " probe=no")
    assert "robe" not in log(trainer).replace("probe = no", "")
    assert "probe_dice" not in (Path(trainer.output_folder) / "monitor.csv").read_text()


def test_byol_hands_on_its_teacher(runs):
    trainer = runs.run(BYOL, small(BYOL))
    teacher = trainer.method.teacher_encoder.copy.state_dict()
    student = trainer.method.network.encoder.state_dict()
    weights = final(trainer)["network_weights"]
    key = "stages.1.0.convs.0.conv.weight"
    assert torch.equal(weights[f"encoder.{key}"], teacher[key])
    assert torch.equal(weights[f"decoder.encoder.{key}"], teacher[key])
    assert not torch.equal(teacher[key], student[key])


@pytest.mark.parametrize("setting", ["optimizer=sgd", "optimizer=adamw", "optimizer=lars"])
def test_optimisers_leave_biases_without_decay(runs, setting):
    trainer = runs.make(BYOL, small(BYOL) + f" {setting}")
    trainer.initialize()
    decayed, free = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-5, 0)
    assert {p.ndim for p in free["params"]} == {1}
    trained = [p for p in trainer.method.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(free["params"]) == len(trained)


class OverflowAtFirst(torch.amp.GradScaler):
    """As in fp16 on a GPU, where the first scale is nearly always too large."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.steps = 0

    def scale(self, outputs):
        self.steps += 1
        return super().scale(outputs * (float("inf") if self.steps == 1 else 1))


@pytest.mark.parametrize(
    ("name", "setting"),
    [(SIMCLR, ""), (DINO, "optimizer=sgd"), (SIMCLR, "optimizer=adamw initial_lr=1e-5")],
)
def test_a_first_step_that_overflows_leaves_no_trace(runs, name, setting):
    moved = []
    for fused in (False, True):
        trainer = runs.make(name, small(name) + f" chunk_size=none {setting}")
        trainer.initialize()
        trainer.grad_scaler = OverflowAtFirst()
        if not fused:  # torch's plain optimiser, from its own beginning
            trainer.optimizer.state.clear()
            del trainer.optimizer._step_supports_amp_scaling
            for group in trainer.optimizer.param_groups:
                group["fused"] = False
        trainer.dataloader_train, _ = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        start = encoder_vector(trainer)
        # What the allocator hands out next is not 0.
        used = [torch.full_like(p, 1e6) for p in trainer.method.parameters() for _ in range(9)]
        del used
        batches = [next(trainer.dataloader_train) for _ in range(3)]
        for batch in batches:
            trainer.train_step(batch)
        moved.append(encoder_vector(trainer) - start)
    plain, other = moved
    assert plain.norm() > 0
    assert (other - plain).norm() < 1e-3 * plain.norm()


@pytest.mark.slow
@pytest.mark.heavy
def test_parameters_that_were_frozen_go_on_with_the_others(runs):
    """Checkpoints of DINO's first epoch had no momentum for the prototypes, which were not yet trained."""
    settings = small(DINO, "num_epochs=3 iterations_per_epoch=2 batch_size=4 optimizer=sgd")
    whole = final(runs.run(DINO, settings))
    shutil.rmtree(Path(runs.make(DINO, settings).output_folder))
    trainer = runs.interrupt(DINO, settings)
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    checkpoint = torch.load(file, weights_only=True)
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    number = next(i for i, p in enumerate(trained) if p is trainer.method.head.prototypes)
    kept = checkpoint["optimizer_state"]["state"].pop(number)
    assert not kept["momentum_buffer"].any()
    torch.save(checkpoint, file)
    resumed = runs.make(DINO, settings, resume=True)
    resumed.run_training()
    for key, tensor in final(resumed)["network_weights"].items():
        if in_encoder(key):
            assert torch.equal(tensor, whole["network_weights"][key]), key


# -- fast paths and plain ones ---------------------------------------------------------------------


@every_method
def test_where_the_slices_are_kept_changes_nothing(runs, name):
    trained = []
    for place in ("host", "device"):
        trainer = runs.make(name, small(name) + f" data_device={place} pairs=frame")
        trainer.initialize()
        trainer.dataloader_train, _ = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        for step in range(3):
            batch = next(trainer.dataloader_train)
            assert torch.equal(batch.slices, trainer.store.read(trainer.batches.indices(step)))
            loss = trainer.train_step(batch)["loss"]
        trained.append((loss, trainer.method.state_dict()))
    (host_loss, host), (device_loss, device) = trained
    assert host_loss == device_loss
    assert all(torch.equal(host[key], device[key]) for key in host)


def encoder_vector(trainer) -> torch.Tensor:
    parameters = trainer.method.network.encoder.parameters()
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


# In one step: a second one multiplies the rounding of the first. Momentum begins with the second.
@pytest.mark.parametrize(("changed", "steps"), [("memory layout", 1), ("fusion", 2)])
@every_method
def test_layout_and_fusion_change_rounding_only(runs, name, changed, steps):
    moved = []
    for fast in (False, True):
        trainer = runs.make(name, small(name))
        trainer.initialize()
        if changed == "memory layout" and fast:
            trainer.method.to(memory_format=torch.channels_last)
        if changed == "fusion" and not fast:
            for group in trainer.optimizer.param_groups:
                group["fused"] = False
        trainer.dataloader_train, _ = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        start = encoder_vector(trainer)
        for _ in range(steps):
            trainer.train_step(next(trainer.dataloader_train))
        moved.append(encoder_vector(trainer) - start)
    plain, other = moved
    assert plain.norm() > 0
    assert (other - plain).norm() < 1e-3 * plain.norm()


@pytest.mark.parametrize("name", [*TRAINERS, *RECONSTRUCTING])
def test_all_that_is_drawn_is_pinned(runs, name, monkeypatch):
    trainer = runs.make(name, small(name))
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    trainer.method.eval()
    batch, seen = next(trainer.dataloader_train), []

    def pin(tensor):
        seen.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    pinned = batch.pinned()
    on_host = [batch.sizes, batch.positions]
    for entry in batch.drawn.values():
        on_host += vars(entry).values() if isinstance(entry, Views) else [entry]
    tensors = [x for x in on_host if isinstance(x, torch.Tensor)]
    assert {x.data_ptr() for x in tensors} == set(seen)
    assert pinned.slices is batch.slices and pinned.total == batch.total
    losses = [trainer.validation_step(b)["loss"] for b in (batch, pinned)]
    assert losses[0] == losses[1]


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("name", [*TRAINERS, *RECONSTRUCTING])
def test_no_step_waits_for_the_gpu(runs, name, place):
    if name == BYOL:
        pytest.skip("timm's LARS is not fused: in fp16 its gradients are looked at in every step")
    trainer = runs.make(name, small(name) + f" data_device={place}", device="cuda")
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            trainer.train_step(next(trainer.dataloader_train))
    finally:
        torch.cuda.set_sync_debug_mode("default")
