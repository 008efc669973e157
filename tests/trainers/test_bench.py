from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.bench import command, rows
from nnunet_ssp.bench.counting import Floor
from nnunet_ssp.bench.place import (
    DATASET,
    NARROW,
    ON_CUDA,
    PLANS,
    Bench,
    Workload,
    both_clocks,
    in_turns,
    method_names,
    ratio,
)
from nnunet_ssp.parallel import small_machine_environment
from nnunet_ssp.slices.store import SliceStore

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TINY = Workload(
    side=48, batch=4, narrow=8, seconds=0, unlabelled=1, frames=4, batches=(4, 8), growth=(20, 40)
)
# What every method must say, by name.
KEYS = (
    "compute_images_per_s",
    "end_to_end_images_per_s",
    "end_to_end_over_compute",
    "views_over_stock_loader",
    "peak_memory_bytes",
    "fraction_of_floor",
)


class Prepared:
    """Instead of `Bench.prepared`."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __enter__(self) -> Bench:
        return self.bench

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def bench(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The prepared phantom of the trainers' tests, whose network is narrow everywhere."""
    tiny = json.loads((own_copy / "tiny.json").read_text())
    for name in (PLANS, NARROW):
        (own_copy / f"{name}.json").write_text(json.dumps({**tiny, "plans_name": name}))
    return Bench(own_copy, CPU, TINY)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command makes its temporary folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_table_and_the_figures(bench, scratch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    peer = {name: {"images_over_lightly": x} for name, x in (("SimCLR", 1.25), ("DINO", 1.5))}
    monkeypatch.setattr(rows, "over_lightly", lambda _: peer)
    file = tmp_path / "figures" / "bench.json"
    figures = command.run(["contextprediction", "PCL"], "cpu", file, TINY)

    assert json.loads(file.read_text()) == figures
    assert list(figures["methods"]) == ["ContextPrediction", "PCL"]
    for found in figures["methods"].values():
        assert set(KEYS) <= found.keys()
        assert all(math.isfinite(found[key]) and found[key] > 0 for key in KEYS)
        for key in ("end_to_end_over_compute", "views_over_stock_loader"):
            low, high = found[f"{key}_quartiles"]
            assert low <= found[key] <= high
            assert found[f"{key}_rounds"] == 3
        share = found["end_to_end_images_per_s"] / found["compute_images_per_s"]
        assert share == pytest.approx(found["end_to_end_over_compute"])
    assert figures["methods"]["ContextPrediction"]["peak_memory_batch_size"] == 9
    assert list(figures["simclr_peak_memory_bytes"]) == ["4", "8"]
    assert list(figures["growth"]) == ["20", "40"]
    assert figures["finetuning_over_stock"] > 0
    assert isinstance(figures["finetuning_images_per_s"], float)
    assert figures["finetuning_images_per_s"] > 0
    assert torch.__version__.startswith(figures["setting"]["versions"]["torch"])
    assert not list(scratch.iterdir()), "everything temporary is removed"

    said = capsys.readouterr()
    lines = said.out.splitlines()
    header = next(line for line in lines if line.startswith("| method"))
    body = [line for line in lines if line.startswith(("| ContextPrediction |", "| PCL |"))]
    assert [line.count("|") for line in body] == [header.count("|")] * 2
    assert "images/s" not in said.out, "absolute times are a GPU's"
    assert f"{os.cpu_count()} cores, PyTorch with 1 thread(s)" in lines[0]
    for word in ("SimCLR's memory: 4 slices", "Slice store of 40", "SimCLR 1.25x", "Fine-tuning"):
        assert word in said.out
    assert "bench: PCL ..." in said.err


def test_absolute_times_come_from_a_gpu():
    method = {key: 0.5 for key in KEYS} | {"batch_size": 9, "peak_memory_batch_size": 9}
    figures = {
        "setting": {
            **command._setting(CPU, ON_CUDA),
            "device": "cuda",
        },
        "methods": {
            "MIM": {
                **method,
                "compute_images_per_s": 1234.4,
                "host_end_to_end_over_compute": 0.9321,
            }
        },
        "rates": {"torch.float16": {"flops_per_s": 3e14, "bytes_per_s": 2e12}},
        "simclr_peak_memory_bytes": {"64": 2**30, "256": 2**30},
        "growth": {},
        "images_over_lightly": None,
        "finetuning_over_stock": 1.0,
    }
    text = "\n".join(command.table(figures))
    assert "| 1234 |" in text
    header, _, row = (line.split(" | ") for line in text.splitlines()[4:7])
    assert row[header.index("from the host / compute")] == "0.93"
    assert "300.0 TFLOP/s and 2000 GB/s" in text
    assert "256 slices 1024 MiB (1.00x)" in text
    assert "Lightly: left out" in text
    assert "of its widths" not in text


def test_the_methods_are_all_pretraining_trainers():
    assert {"MIM", "SimCLR", "PCL", "DINO", "BYOL", "Inpainting"} <= set(method_names())
    with pytest.raises(ValueError, match=r"`--methods` \(=moco\) must be some of BYOL, "):
        command.run(["MIM", "moco"], "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"`--device` \(=cuda\)"):
        command.run(["MIM"], "cuda")


def test_sigterm_ends_it_as_an_error_does(bench, scratch, monkeypatch):
    def terminated(*_: object) -> None:
        assert list(scratch.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(command, "_measure", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        command.run(["MIM"], "cpu", workload=TINY)
    assert not list(scratch.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_phantom_is_prepared_for_the_occasion(tmp_path, monkeypatch):
    for name, value in small_machine_environment({}, cores=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with Bench.prepared(tmp_path, CPU, TINY) as bench:
        assert bench.folder == tmp_path / "nnUNet_preprocessed" / DATASET
        widths = {}
        for plans in (PLANS, NARROW):
            with bench.pretraining("MIM", plans, batch=4) as trainer:
                assert len(trainer.store) == 3 * 4 * 8
                assert trainer.configuration_manager.patch_size == [48, 48]
                widths[plans] = trainer.method.network.encoder.output_channels
        assert widths[NARROW] == [n // 8 for n in widths[PLANS]]
    assert "nnUNet_raw" not in os.environ


# -- its rows --------------------------------------------------------------------------------------


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


def test_waiting_for_slices_is_seen(bench):
    """Core-seconds alone do not see it: a process that waits keeps no core busy."""
    with bench.pretraining("SimCLR", batch=4) as trainer:
        read = trainer.store.read

        def slow(*arguments):
            time.sleep(0.3)
            return read(*arguments)

        trainer.store.read = slow
        found = rows.speed(trainer, 0)
    assert found["end_to_end_over_compute"] < 0.5
    assert found["end_to_end_images_per_s"] < 0.5 * found["compute_images_per_s"]


def test_slices_on_the_host_have_their_own_names(bench):
    found = rows.from_host(bench, "MIM", 0)
    assert found["host_end_to_end_over_compute"] > 0
    assert found["host_end_to_end_images_per_s"] > 0
    assert all(name.startswith("host_end_to_end_") for name in found)


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


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_lightlys_row(bench):
    pytest.importorskip("lightly.transforms", exc_type=ImportError)
    found = rows.over_lightly(bench)
    assert found is not None
    assert list(found) == ["SimCLR", "DINO"]
    for figures in found.values():
        value = figures["images_over_lightly"]
        assert math.isfinite(value) and value > 0


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_pass_of_lightlys_has_its_steps_whatever_the_number_of_slices(bench):
    pytest.importorskip("lightly.transforms", exc_type=ImportError)
    from nnunet_ssp.bench.peer import SimCLRPeer

    with bench.pretraining("SimCLR", NARROW, batch=60) as trainer:
        assert len(trainer.store) < 3 * 60
        peer, sizes = SimCLRPeer(trainer), []
        peer.step = lambda views: sizes.append(len(views[0]))
        peer.one_pass()
    assert sizes == [60] * peer.steps


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


def test_growth_compares_with_the_first_store():
    used = [torch.zeros(2**20) for _ in range(8)] + [bytes(1000) for _ in range(100_000)]
    del used  # room in this process, where a store would show as nothing
    found = rows.growth((10, 30), CPU)
    assert found["10"]["batch_over_first"] == 1.0
    assert found["30"]["stored_bytes"] == 3 * found["10"]["stored_bytes"]
    batch = 10 * 256 * 256 * 2
    assert all(f["open_s"] > 0 and f["grown_bytes"] > batch for f in found.values())


def test_memory_that_the_system_does_not_tell_is_not_measured(monkeypatch):
    monkeypatch.setattr(rows, "_resident", lambda which: None)
    monkeypatch.setattr(rows, "SliceStore", lambda folder: None)
    monkeypatch.setattr(rows, "_reading", lambda *arguments: lambda: None)
    assert rows.grown_bytes(Path("store"), 10) is None


# -- counting and clocks ---------------------------------------------------------------------------


def test_the_floor_of_a_matrix_product_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Floor(flops_per_s=10.0, bytes_per_s=1000.0) as floor:
        a @ b
    assert floor.flops == 2 * 3 * 5 * 7
    assert floor.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert floor.seconds == floor.flops / 10
    with Floor(flops_per_s=1e9, bytes_per_s=10.0) as floor:
        a.T[1:].unsqueeze(0).expand(2, 4, 3)
    assert floor.seconds == floor.bytes == 0
    with Floor(flops_per_s=1e9, bytes_per_s=10.0) as floor:
        a + a
    assert floor.seconds == 4 * 3 * 15 / 10  # read twice, written once


def test_the_floor_counts_the_backward_pass():
    convolution = torch.nn.Conv2d(2, 3, 3, bias=False)
    x = torch.ones(1, 2, 6, 6, requires_grad=True)
    with Floor(1.0, 1e30) as floor:
        y = convolution(x)
        forward = floor.flops
        y.sum().backward()
    assert forward == 2 * 9 * 2 * 3 * 4 * 4
    assert floor.flops == 3 * forward  # gradients of input and weights


def test_turns_are_taken_in_order_and_the_first_round_does_not_count():
    done, ticks = [], iter(range(1000))
    works = {name: lambda name=name: done.append(name) for name in "ab"}
    took = in_turns(works, CPU, seconds=0, clock=lambda _: float(next(ticks)))
    assert done == ["a", "b"] * 4
    assert took == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert len(in_turns(works, CPU, seconds=60, most=2)["a"]) == 2


def test_the_round_that_does_not_count_takes_none_of_the_time():
    waits = iter([0.3] + [0.0] * 1000)
    took = in_turns({"a": lambda: time.sleep(next(waits))}, CPU, seconds=0.2, most=500)
    assert len(took["a"]) == 500


def test_several_clocks():
    took = in_turns({"a": lambda: time.sleep(0.05)}, CPU, seconds=0, clock=both_clocks)
    busy, wall = np.transpose(took["a"])
    assert (busy < 0.02).all() and (wall >= 0.05).all()


def test_a_ratio_is_the_median_of_its_rounds():
    assert ratio("x", [2.0, 30.0, 8.0], [1.0, 1.0, 2.0], factor=0.5) == {
        "x": 2.0,
        "x_quartiles": [1.5, 8.5],
        "x_rounds": 3,
    }
