from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssp.distributed import rank, share
from nnunet_ssp.methods import BYOL, DINO, Batch, BYOLSettings, DINOSettings
from nnunet_ssp.methods.distillation import rate_by_step
from nnunet_ssp.methods.embedding import Embedding
from nnunet_ssp.network import in_encoder
from nnunet_ssp.schedules import momentum_schedule
from tests.conftest import _make_batch, _make_network
from tests.ranks import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 24)
SMALL = [(20, 40), (12, 9), (30, 30), (16, 24), (15, 33)]


METHODS: dict[str, tuple[type[Embedding], dict[str, Any]]] = {
    "BYOL": (BYOL, {"head_width": 8, "head_out": 3, "predictor_width": 6}),
    "DINO": (DINO, {"head_width": 8, "head_bottleneck": 4, "out_dim": 6, "freeze_prototypes": 0}),
}
# One start for both: the papers' values differ.
COMMON: dict[str, Any] = {
    "batch_size": 5,
    "chunk_size": None,
    "num_epochs": 20,
    "initial_lr": 0.01,
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "teacher_momentum": 0.996,
    "transfer_from": "student",
}
OWN = {"BYOL": "predictor", "DINO": "centre"}  # state besides head and teacher

each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def make_method(make_network):
    def make(kind="plain", seed=1, features=(4, 8, 8), name="BYOL", **changes):
        network = make_network(kind, outputs=3, features=features)
        torch.manual_seed(seed)
        method, tiny = METHODS[name]
        return method(network, method.settings_class(**{**COMMON, **tiny, **changes}), (16, 24), 1)

    return make


@each
def test_early_stopping_on_a_moving_target_is_warned_of(make_method, name):
    store: Any = None
    (warning,) = make_method(name=name, early_stopping=5).examine(store)
    assert "early_stopping follows a loss whose target, the teacher, moves" in warning
    assert make_method(name=name).examine(store) == []


def optimizer_of(method: Embedding) -> torch.optim.Optimizer:
    """The trainer's own choice."""
    # Not at the top: ranks import this file, and have no use for all of nnU-Net.
    from nnunet_ssp.training.pretraining import PretrainingTrainer

    trainer: Any = SimpleNamespace(method=method, settings=method.settings)
    return PretrainingTrainer.configure_optimizers(trainer)[0]


def train(method: Embedding, batches: list[Batch], lr: float = 0.1) -> None:
    optimizer = optimizer_of(method)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        method(batch)["loss"].backward()
        method.after_backward()
        optimizer.step()
        method.after_step(step, len(batches))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- the teacher -----------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_teacher_starts_as_a_copy_of_the_student(make_method, make_batch, kind, name):
    method = make_method(kind, name=name)
    assert same(values(method.teacher_encoder.copy), values(method.network.encoder))
    assert same(values(method.teacher_head.copy), values(method.head))
    train(method, [make_batch(method, SMALL)])
    assert not same(values(method.teacher_head.copy), values(method.head))


@each
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_separate_teacher_has_weights_of_its_own_decided_by_the_seed(make_method, kind, name):
    method = make_method(kind, name=name, teacher_init="separate")
    pairs = (
        (method.teacher_encoder.copy, method.network.encoder),
        (method.teacher_head.copy, method.head),
    )
    for teacher, student in pairs:
        theirs = dict(student.named_parameters())
        for key, parameter in teacher.named_parameters():
            # Weights are random, the rest starts as 0 or 1; residual blocks may end in zeros.
            drawn = parameter.ndim > 1 or parameter.detach().unique().numel() > 1
            assert torch.equal(parameter, theirs[key]) != drawn, key
            assert not parameter.requires_grad, key
            if parameter.ndim == 4:
                spread, expected = parameter.std().item(), theirs[key].std().item()
                assert spread == pytest.approx(expected, rel=0.35), key
    # The student's encoder is what it would be without a teacher of its own.
    assert same(values(method.network), values(make_method(kind, name=name).network))
    again, other = (make_method(kind, seed, name=name, teacher_init="separate") for seed in (1, 2))
    assert same(values(again), values(method))
    assert not same(values(other.teacher_encoder), values(method.teacher_encoder))


@each
def test_the_teacher_follows_after_each_step_and_never_by_gradients(make_method, make_batch, name):
    method = make_method(name=name, teacher_momentum=0.7)
    optimizer = optimizer_of(method)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    teachers = (method.teacher_encoder, method.teacher_head)
    students = (method.network.encoder, method.head)
    assert not any(id(p) in trained for t in teachers for p in t.parameters())
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        optimizer.zero_grad()
        method(make_batch(method, SMALL, seed=step))["loss"].backward()
        before = [[p.clone() for p in t.copy.parameters()] for t in teachers]
        optimizer.step()
        for teacher, old in zip(teachers, before, strict=True):
            for parameter, value in zip(teacher.copy.parameters(), old, strict=True):
                assert parameter.grad is None and torch.equal(parameter, value)
        method.after_step(step, 3)
        m = momentum_schedule(step, 3, 0.7)
        assert (m == pytest.approx(0.7)) == (step == 0)
        for teacher, student, old in zip(teachers, students, before, strict=True):
            for found, new, value in zip(
                teacher.copy.parameters(), student.parameters(), old, strict=True
            ):
                torch.testing.assert_close(found, m * value + (1 - m) * new.detach())


@each
def test_exactly_encoder_and_head_are_trained(make_method, make_batch, name):
    method = make_method(name=name)
    method(make_batch(method, SMALL))["loss"].backward()
    for key, parameter in method.named_parameters():
        trained = key.startswith(("head.", "predictor.")) or in_encoder(
            key.removeprefix("network.")
        )
        assert parameter.requires_grad == trained, key
        assert (parameter.grad is not None) == trained, key


@each
def test_compiled_parts_are_the_networks_and_the_teachers(make_method, name):
    method = make_method(name=name)
    network, teacher = method.network, method.teacher_encoder.copy
    assert method.compiled() == [network.encoder, network.decoder, teacher]


# -- optimiser and learning rate -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_only_matrices_and_kernels_decay_and_each_parameter_is_there_once(make_method, kind):
    method = make_method(kind, weight_decay=0.3)
    decayed, spared = method.parameter_groups()
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    everything = [id(p) for group in (decayed, spared) for p in group["params"]]
    assert len(set(everything)) == len(everything)
    assert set(everything) == {id(p) for p in method.parameters() if p.requires_grad}
    for name in ("sgd", "adamw", "lars"):
        optimizer = optimizer_of(make_method(kind, weight_decay=0.3, optimizer=name))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0]


@pytest.mark.parametrize(("batch_size", "steps"), [(128, 7), (64, 3), (512, 10)])
def test_the_rate_is_scaled_with_the_batch_and_warms_up_by_step(make_method, batch_size, steps):
    settings = make_method(batch_size=batch_size, initial_lr=0.4, warmup_epochs=5).settings
    peak, warmup, total = 0.4 * batch_size / 256, 5 * steps, 20 * steps
    after = np.arange(total - warmup) / (total - warmup)
    expected = [
        *np.linspace(1e-4, peak, warmup),
        *(1e-5 + (peak - 1e-5) * (1 + np.cos(np.pi * after)) / 2),
    ]
    found = [rate_by_step(settings, step, steps, 1e-4, 1e-5) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    with pytest.raises(ValueError, match=rf"`step` \(={total}\)"):
        rate_by_step(settings, total, steps, 1e-4, 1e-5)


def test_a_warmup_of_a_part_of_an_epoch(make_method):
    settings = make_method(num_epochs=5, initial_lr=1.0, batch_size=256).settings
    assert settings.warmup == 0.5  # auto: half an epoch
    found = [rate_by_step(settings, step, 8, 0.0, 0.0) for step in range(5)]
    np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 1, 1])
    assert make_method(num_epochs=1).learning_rate(0, 1) > 0  # no warm-up of no step


@pytest.mark.parametrize(
    ("epochs", "setting", "warmup"),
    [
        (400, "auto", 10),
        (100, "auto", 10),
        (50, "auto", 5),
        (1, "auto", 0.1),
        (30, 7, 7),
        (9, 0, 0),
    ],
)
@pytest.mark.parametrize("settings", [DINOSettings, BYOLSettings])
def test_the_length_of_the_warmup(settings, epochs, setting, warmup):
    assert settings(num_epochs=epochs, warmup_epochs=setting).warmup == warmup


def test_lars_by_its_closed_form(make_method):
    method = make_method(optimizer="lars", weight_decay=1e-2, momentum=0.9)
    optimizer = optimizer_of(method)
    parameters = [p for p in method.parameters() if p.requires_grad]
    expected = [p.detach().double().numpy().copy() for p in parameters]
    velocity: list[Any] = [0.0] * len(parameters)
    rng = np.random.default_rng(0)
    clipped = []
    for lr in (3e-5, 0.1, 0.25, 0.25, 0.02):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, parameter in enumerate(parameters):
            gradient = rng.normal(size=parameter.shape) * 10 ** rng.uniform(-3, 1)
            parameter.grad = torch.from_numpy(gradient).float()
            w = expected[i]
            if w.ndim > 1:
                size, change = np.linalg.norm(w), np.linalg.norm(gradient)
                trust = 0.02 * size / (change + 1e-2 * size + 1e-8) / lr
                clipped.append(trust > 1)
                gradient = (gradient + 1e-2 * w) * min(trust, 1)
            velocity[i] = 0.9 * velocity[i] + gradient
            expected[i] = w - lr * velocity[i]
        optimizer.step()
    assert any(clipped) and not all(clipped)
    for parameter, value in zip(parameters, expected, strict=True):
        found = parameter.detach().double().numpy()
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-6 * np.abs(value).max())


# -- what is handed on and kept --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("whose", ["student", "teacher"])
@each
def test_whose_encoder_is_handed_on(make_method, make_batch, kind, whose, name):
    method = make_method(kind, name=name, transfer_from=whose)
    train(method, [make_batch(method, SMALL, seed) for seed in (0, 1)])
    student, teacher = values(method.network), values(method.teacher_encoder.copy)
    exported = method.exported()
    assert exported.decoder.encoder is exported.encoder
    found = values(exported)
    assert found.keys() == student.keys()
    assert not same(teacher, values(method.network.encoder))
    for key, value in found.items():
        expected = student[key]
        if whose == "teacher" and in_encoder(key):
            expected = teacher[key.removeprefix("decoder.").removeprefix("encoder.")]
        assert torch.equal(value, expected), key
    # Aliases still share their memory, so that a file holds them once.
    memory = {k: v.data_ptr() for k, v in exported.state_dict().items()}
    original = {k: v.data_ptr() for k, v in method.network.state_dict().items()}
    assert len(set(memory.values())) == len(set(original.values()))
    assert (method.handed_on() is method.network.encoder) == (whose == "student")
    # Looking at what goes into the file changes nothing about the training.
    assert same(values(method.network), student)
    assert (exported is method.network) == (whose == "student")


@pytest.mark.parametrize("init", ["copy", "separate"])
@pytest.mark.parametrize("whose", ["student", "teacher"])
@each
def test_a_run_goes_on_from_the_file_and_the_extra_state(
    make_method, make_batch, whose, init, name
):
    method = make_method(name=name, transfer_from=whose, teacher_init=init)
    batches = [make_batch(method, SMALL, seed) for seed in range(4)]
    train(method, batches[:2])
    # What a file holds: the exported network and the extra state, by value.
    weights, state = values(method.exported()), copy.deepcopy(method.extra_state())
    named = {key.split(".")[0] for key in state}
    assert named == {"head", "teacher_encoder", "teacher_head", OWN[name]} | (
        {"network"} if whose == "teacher" else set()
    )
    resumed = make_method(seed=9, name=name, transfer_from=whose, teacher_init=init)
    resumed.network.load_state_dict(weights)
    resumed.load_extra_state(state)
    assert same(values(resumed), values(method))
    for either in (method, resumed):
        train(either, batches[2:])
    assert same(values(resumed), values(method))


def test_an_extra_state_without_a_teacher_is_refused(make_method):
    method = make_method()
    state = method.extra_state()
    with pytest.raises(ValueError, match="state does not fit the method: teacher_encoder"):
        method.load_extra_state({k: v for k, v in state.items() if "teacher_encoder" not in k})


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan")])
@pytest.mark.parametrize("settings", [DINOSettings, BYOLSettings])
def test_a_momentum_outside_its_range_is_refused(settings, momentum):
    with pytest.raises(ValueError, match=r"`teacher_momentum` \(=.*\) must lie in \[0, 1\]"):
        settings(teacher_momentum=momentum)


# -- several ranks ---------------------------------------------------------------------------------


def built(name: str) -> Embedding:
    common: dict[str, Any] = {"batch_size": 5, "num_epochs": 4, "head_width": 16, "chunk_size": 2}
    torch.manual_seed(0)
    if name == "DINO":
        settings = DINOSettings(**common, head_bottleneck=8, out_dim=24, local_crops=2)
        return DINO(_make_network(), settings, PATCH, 1)
    settings = BYOLSettings(**common, head_out=8, predictor_width=12)
    return BYOL(_make_network(), settings, PATCH, 1)


def two_steps(name: str, distributed: bool) -> list[dict[str, Any]]:
    """The second step sees the first one's centre, teacher and weights."""
    method = built(name)
    module: nn.Module = method
    if distributed:
        module = nn.parallel.DistributedDataParallel(method)
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.02, 0.9, weight_decay=1e-4)
    seen = []
    for step in range(2):
        batch = _make_batch(method, SMALL, seed=step).share(share(len(SMALL)))
        method.start_epoch(step)  # DINO's prototypes are frozen in the first one
        optimizer.zero_grad(set_to_none=True)
        output = module(batch)
        output["loss"].backward()
        method.after_backward()
        named = method.named_parameters()
        gradients = {k: p.grad.clone() for k, p in named if p.grad is not None}
        optimizer.step()
        method.after_step(step, 4)
        seen.append(
            {
                "figures": {k: v.detach() for k, v in output.items()},
                "gradients": gradients,
                "state": values(method),
                "used": method.end_epoch().get("prototypes_used", 0.0),
            }
        )
    return seen


def both_methods() -> dict[str, Any]:
    assert rank() >= 0
    return {name: two_steps(name, distributed=True) for name in ("DINO", "BYOL")}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.heavy])])
def test_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    found = on_ranks(both_methods, ranks, tmp_path)
    for name in ("DINO", "BYOL"):
        expected = two_steps(name, distributed=False)
        for of_rank in found:
            for step, (mine, reference) in enumerate(zip(of_rank[name], expected, strict=True)):
                for key, value in reference["figures"].items():
                    assert float(mine["figures"][key]) == pytest.approx(float(value), rel=1e-4), key
                assert mine["used"] == reference["used"]
                assert ("head.prototypes" in mine["gradients"]) == (name == "DINO" and step == 1)
                # Rounding grows by a step: sharp targets, and standardised features that differ little.
                limit = (1e-4, 1e-3)[step]
                assert relative_error(mine["gradients"], reference["gradients"]) < limit
                assert relative_error(mine["state"], reference["state"]) < 1e-4
                assert same(mine["state"], found[0][name][step]["state"])
    expected = two_steps("DINO", distributed=False)
    for step in (0, 1):
        centre = expected[step]["state"]["centre"]
        assert centre.abs().max() > 1e-3
        torch.testing.assert_close(found[0]["DINO"][step]["state"]["centre"], centre)
        assert {"teacher_entropy", "kl"} < expected[step]["figures"].keys()


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[k].float() - expected[k].float()).flatten() for k in expected])
    whole = torch.cat([value.float().flatten() for value in expected.values()])
    return (difference.norm() / whole.norm()).item()
