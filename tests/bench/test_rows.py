from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssp.bench import place, rows
from nnunet_ssp.slices.drawing import SliceStore
from tests.bench.conftest import CPU

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", ["SimCLR", "ContextPrediction"])
def test_fixed_views_are_the_batchs_own_and_made_once(bench, method):
    with bench.pretraining(method, batch=6, chunk_size=4) as trainer:
        batch = next(trainer.dataloader_train)
        calls = []
        make = trainer.method.make_views

        def counted(*arguments):
            calls.append(arguments)
            return make(*arguments)

        with rows.make_views_with(trainer.method, counted):
            expected = trainer.validation_step(batch)["loss"]
            fixed = rows.fixed_views(trainer.method)
        made = len(calls)
        with rows.make_views_with(trainer.method, fixed):
            losses = [trainer.validation_step(batch)["loss"] for _ in range(3)]
        assert len(calls) == 2 * made
        assert "make_views" not in vars(trainer.method)
        assert losses == [expected] * 3


class Clock:
    """Stand-in for `time`: a step works 0.1 s, and its slices are waited for 0.3 s, whatever else the machine does."""

    def __init__(self) -> None:
        self.worked = self.waited = 0.0

    def process_time(self) -> float:
        return self.worked

    def perf_counter(self) -> float:
        return self.worked + self.waited

    def train_step(self, step):
        def timed(batch):
            self.worked += 0.1
            return step(batch)

        return timed

    def batches(self, loader):
        for batch in loader:
            self.waited += 0.3
            yield batch


def test_waiting_for_slices_is_seen(bench, monkeypatch):
    """Core-seconds alone miss it, because a waiting process keeps no core busy."""
    clock = Clock()
    with bench.pretraining("SimCLR", batch=4) as trainer:
        trainer.train_step = clock.train_step(trainer.train_step)
        trainer.dataloader_train = clock.batches(trainer.dataloader_train)
        monkeypatch.setattr(place, "time", clock)
        found = rows.speed(trainer, 0)
    assert found["end_to_end_over_compute"] == pytest.approx(0.25)
    assert found["compute_images_per_s"] == pytest.approx(4 / 0.1)
    assert found["end_to_end_images_per_s"] == pytest.approx(4 / 0.4)
    assert found["end_to_end_over_compute_rounds"] == 3


def test_slices_on_the_host_have_their_own_names(bench):
    found = rows.from_host(bench, "MIM", 0)
    assert found["host_end_to_end_over_compute"] > 0
    assert found["host_end_to_end_images_per_s"] > 0
    assert all(name.startswith("host_end_to_end_") for name in found)


def test_each_way_to_compute_has_its_precision_and_compiler(bench, monkeypatch):
    seen = []
    pretraining = bench.pretraining

    @contextmanager
    def watched(*arguments: Any, **settings: Any) -> Iterator[Any]:
        with pretraining(*arguments, **settings) as trainer:
            seen.append((trainer.autocast_dtype, trainer._do_i_compile()))
            yield trainer

    monkeypatch.setattr(bench, "pretraining", watched)
    ways = {"single": ("fp32", False), "half": ("bf16", False)}
    found = rows.ways_to_compute(bench, "PCL", ways, 0.1)
    assert seen == [(None, False), (torch.bfloat16, False)]
    assert found.keys() == ways.keys()
    assert all(way["images_per_s"] > 0 for way in found.values())
    assert rows.GPU_WAYS["bf16, compiled"] == ("bf16", True) and len(rows.GPU_WAYS) == 6


@pytest.mark.parametrize("method", ["MIM", "SimCLR", "BYOL", "DINO"])
def test_views_that_student_and_teacher_both_make_count_once(bench, method):
    with bench.pretraining(method, batch=6, chunk_size=4) as trainer:
        calls = rows.calls_of_make_views(trainer)
        found = rows.number_of_views(calls, trainer.method.patch_size)
        made = sum(len(views) for _, _, views, _ in calls)
        if method == "DINO":
            local = trainer.settings.local_crops * math.prod(trainer.method.local_size) / 48**2
            assert made == 6 * (2 + 2 + trainer.settings.local_crops)
            assert found == pytest.approx(6 * (2 + local))
        else:
            expected = {"MIM": (6, 6), "SimCLR": (12, 12), "BYOL": (24, 12)}[method]
            assert (made, found) == expected


def test_without_lightly_its_row_is_left_out(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    monkeypatch.delitem(sys.modules, "nnunet_ssp.bench.peer", raising=False)
    assert rows.over_lightly(bench) is None


def test_peak_memory_follows_the_batch_in_one_piece_and_not_in_chunks(bench, monkeypatch):
    (four, small), (twelve, large) = (rows.peak_memory(bench, "SimCLR", n) for n in (4, 12))
    assert (four, twelve) == (4, 12)
    assert large > 1.5 * small
    monkeypatch.setattr(rows, "CHUNK", 4)
    assert rows.peak_memory(bench, "SimCLR", 12)[1] < 0.8 * large


def test_a_sparse_store_takes_no_space_and_can_be_read(tmp_path):
    rows.write_sparse_store(tmp_path / "store", 25)
    store = SliceStore(tmp_path / "store")
    assert len(store) == 25
    assert store.nbytes == 25 * 256 * 256 * 2
    assert not store.read(np.array([0, 24])).any()
    used = sum(file.stat().st_blocks * 512 for file in store.folder.iterdir())
    assert used < store.nbytes / 10


@pytest.mark.heavy
def test_growth_compares_with_the_first_store():
    used = [torch.zeros(2**20) for _ in range(8)] + [bytes(1000) for _ in range(100_000)]
    del used  # room in this process, where a store would show as nothing
    found = rows.growth((10, 30), CPU)
    assert found["10"]["batch_over_first"] == 1.0
    assert found["30"]["stored_bytes"] == 3 * found["10"]["stored_bytes"]
    batch = 10 * 256 * 256 * 2
    assert all(f["open_s"] > 0 and f["grown_bytes"] > batch for f in found.values())


def test_memory_that_the_system_does_not_tell_is_not_measured(monkeypatch):
    monkeypatch.setattr(rows, "resident", lambda which: None)
    monkeypatch.setattr(rows, "SliceStore", lambda folder: None)
    monkeypatch.setattr(rows, "_reading", lambda *arguments: lambda: None)
    assert rows.grown_bytes(Path("store"), 10) is None
