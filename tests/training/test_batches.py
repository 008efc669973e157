"""The batches of a pretraining, made without nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssp.methods.mim import MIM, MIMSettings
from nnunet_ssp.methods.simclr import SimCLR, SimCLRSettings
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.training import batches as module
from nnunet_ssp.training.batches import SHOWN_SLICES, Batches

CPU = torch.device("cpu")
SETTINGS = MIMSettings(batch_size=4, seed=5)
SHAPES = [(5, 1, 32, 32), (4, 1, 30, 28)]


@pytest.fixture
def store(make_store: Callable[..., SliceStore]) -> SliceStore:
    return make_store(SHAPES)


@pytest.fixture
def make(store: SliceStore, make_network: Callable[..., Any]) -> Callable[..., Batches]:
    def batches(settings: Any = SETTINGS, validation: SliceStore | None = None) -> Batches:
        kind = SimCLR if isinstance(settings, SimCLRSettings) else MIM
        method = kind(make_network(), settings, (32, 32), 1)
        return Batches(method, settings, store, validation, lambda case: "one", CPU)

    return batches


def test_an_epoch_shows_every_slice_at_most_once(make):
    batches = make()
    assert batches.per_epoch == 2  # 9 slices, 4 at a time
    epoch = np.concatenate([batches.indices(step) for step in range(2)])
    assert len(set(epoch)) == 8
    assert make(replace(SETTINGS, iterations_per_epoch=7)).per_epoch == 7


def test_a_run_that_goes_on_sees_what_follows(make):
    whole = list(islice(make().training(0), 5))
    rest = list(islice(make().training(3), 2))
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.slices, other.slices)
        assert torch.equal(one.drawn["hidden_blocks"], other.drawn["hidden_blocks"])


def test_pixels_are_those_of_the_numbers_drawn(make, store):
    batches = make()
    for step, batch in enumerate(islice(batches.training(0), 3)):
        assert torch.equal(batch.slices, store.read(batches.indices(step)))


def test_two_ranks_share_the_batch_of_one(make, monkeypatch):
    whole = next(make().training(0))
    parts = []
    for rank in range(2):
        monkeypatch.setattr(module, "share", lambda n, r=rank: slice(r * n // 2, (r + 1) * n // 2))
        parts.append(next(make().training(0)))
    sizes = torch.cat([part.sizes for part in parts])
    assert torch.equal(sizes, whole.sizes)
    pixels = [image for part in parts for image in part.slices]
    for own, image, (rows, columns) in zip(pixels, whole.slices, sizes.tolist(), strict=True):
        assert torch.equal(own[:, :rows, :columns], image[:, :rows, :columns])
    views = [part.drawn["hidden_blocks"] for part in parts]
    assert torch.equal(torch.cat(views), whole.drawn["hidden_blocks"])
    assert [part.total for part in parts] == [4, 4]


def test_the_cases_of_a_step_have_names(make, store):
    batches = make()
    wanted = {store.names[store.case_of[number]] for number in batches.indices(0)}
    assert batches.cases_of(0) == sorted(wanted)


def test_validation_is_the_same_in_every_epoch_and_run(make):
    first, second = make(), make()
    assert (first.validates_on, first.n_validation()) == ("training", 2)
    rounds = list(islice(first.validation(), 4))
    for one, again, other in zip(rounds[:2], rounds[2:], second.validation(), strict=False):
        assert one is again
        assert torch.equal(one.slices, other.slices)
        assert torch.equal(one.drawn["hidden_blocks"], other.drawn["hidden_blocks"])
    assert sum(len(batch) for batch in rounds[:2]) == 9


@pytest.mark.parametrize(("asked", "batches", "slices"), [(1, 1, 4), (2, 2, 8), (9, 2, 9)])
def test_as_many_validation_batches_as_asked_for(make, asked, batches, slices):
    """As far as there are slices, of which there are nine."""
    made = make(replace(SETTINGS, val_iterations_per_epoch=asked))
    assert made.n_validation() == batches
    assert sum(len(batch) for batch in islice(made.validation(), batches)) == slices


def test_the_fold_validates_on_slices_of_its_own(make, make_store, store):
    other = SliceStore(store.folder, ["case1"], {})
    batches = make(validation=other)
    assert batches.validates_on == "validation"
    shown = torch.cat([batch.slices for batch in islice(batches.validation(), 1)])
    assert torch.equal(shown[: len(other)], other.read(np.arange(len(other))))


def test_pictures_show_a_few_slices_along_the_stack(make):
    shown = make().pictured()
    assert len(shown) == SHOWN_SLICES


def test_too_few_slices_are_refused(make):
    with pytest.raises(ValueError, match=r"`batch_size` \(=10\) must .*9"):
        make(replace(SETTINGS, batch_size=10))


def test_too_many_processes_are_refused(make, monkeypatch):
    monkeypatch.setattr(module, "world_size", lambda: 5)
    with pytest.raises(
        ValueError, match=r"`batch_size` \(=4\) must be at least the number of processes"
    ):
        make()


def test_second_frames_come_from_the_same_place_of_the_same_subject(make_store, make_network):
    frames = make_store([(5, 1, 32, 32)] * 3)
    settings = SimCLRSettings(batch_size=4, pairs="frame")
    method = SimCLR(make_network(), settings, (32, 32), 1)
    batches = Batches(method, settings, frames, None, lambda case: "one", CPU)
    pairs = batches.indices(0)
    first, second = frames.positions[pairs[:, 0]], frames.positions[pairs[:, 1]]
    assert np.array_equal(first, second)
    # Drawn among all frames of the subject, its own too.
    drawn = np.concatenate([batches.indices(step) for step in range(9)])
    assert 0 < np.mean(frames.case_of[drawn[:, 0]] == frames.case_of[drawn[:, 1]]) < 0.8
    assert pairs.shape == (4, 2)
    batch = next(batches.training(0))
    assert batch.slices.ndim == 5


def test_second_frames_that_are_nowhere_are_refused(store, make_network):
    settings = SimCLRSettings(batch_size=4, pairs="frame")
    method = SimCLR(make_network(), settings, (32, 32), 1)
    with pytest.raises(ValueError, match=r"`pairs` \(=frame\) must find several frames"):
        Batches(method, settings, store, None, lambda case: case, CPU)
