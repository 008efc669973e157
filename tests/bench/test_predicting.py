from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.bench import predicting
from nnunet_ssp.bench.predicting import TimedRuns, forward_seconds, memory_of_children
from nnunet_ssp.phantom import make_subject
from tests.bench.conftest import CPU

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = ("predict_over_nnunet", "predict_over_nnunet_outside")


@pytest.fixture
def fakes(monkeypatch):
    """Instead of both commands: their words; nnU-Net's takes 3 s of both clocks, ours 2 s."""
    ran: list[list[str]] = []
    clock = np.zeros(2)

    def run_logged(words, log, environment, watch):
        watch()
        ran.append([str(word) for word in words])
        clock[:] += 2 if words[0] == "nnunet-ssp" else 3
        return 0

    monkeypatch.setattr(predicting, "run_logged", run_logged)
    monkeypatch.setattr(predicting, "clocks", lambda _: clock.copy())
    return ran


def test_the_row(bench, fakes, monkeypatch):
    monkeypatch.setattr(predicting, "forward_seconds", lambda *_: (np.array([1.0, 0.5]), 1234))
    monkeypatch.setattr(predicting, "memory_of_children", iter([4, 1] * 4).__next__)
    found = predicting.predicting_over_stock(bench)
    assert found["predict_over_nnunet"] == pytest.approx(1.5)
    assert found["predict_over_nnunet_rounds"] == 3
    # (3 - 1) / (2 - 1) by cores, (3 - 0.5) / (2 - 0.5) by the wall clock, which is smaller
    assert found["predict_over_nnunet_outside"] == pytest.approx(2.5 / 1.5)
    assert found["predict_host_memory_ratio"] == 0.25
    assert (found["predict_frames"], found["predict_slices"]) == bench.workload.study
    assert found["predict_frames_per_s"] == 1
    assert found["predict_forward_share"] == 0.25
    assert found["predict_parameters"] == 1234
    theirs, ours = fakes[:2]
    assert theirs[:2] == ["nnUNetv2_predict", "-i"] and ours[:3] == ["nnunet-ssp", "predict", "-i"]
    assert theirs[theirs.index("-d") :] == ours[ours.index("-d") :]
    assert len({words[words.index("-o") + 1] for words in fakes}) == len(fakes) == 8


def test_forward_passes_that_take_all_of_the_time_leave_nothing_to_compare(
    bench, fakes, monkeypatch
):
    monkeypatch.setattr(predicting, "forward_seconds", lambda *_: (np.array([2.5, 2.5]), 1))
    monkeypatch.setattr(predicting, "memory_of_children", lambda: 0)
    found = predicting.predicting_over_stock(bench)
    assert found["predict_over_nnunet_outside"] is None
    assert found["predict_host_memory_ratio"] is None


def test_a_command_that_fails_is_an_error(bench, tmp_path, monkeypatch):
    runs = TimedRuns(bench, tmp_path, make_subject(0, matrix=48, frames=2, slices=3))

    def run_logged(words, log, environment, watch):
        log.write(b"no such model")
        return 2

    monkeypatch.setattr(predicting, "run_logged", run_logged)
    with pytest.raises(RuntimeError, match=r"nnunet-ssp failed \(status 2\):\nno such model"):
        runs.ours()


def test_the_forward_passes_of_the_model(bench, tmp_path):
    study = make_subject(0, matrix=48, frames=2, slices=3)
    runs = TimedRuns(bench, tmp_path, study)
    assert len(list((tmp_path / "frames").iterdir())) == 2
    seconds, parameters = forward_seconds(runs.model, CPU, study, tmp_path)
    assert all(0 < second < math.inf for second in seconds)
    weights = torch.load(runs.model / "fold_all" / "checkpoint_final.pth", weights_only=False)
    assert parameters == sum(p.numel() for p in bench.trainer("nnUNetTrainer").network.parameters())
    assert weights["inference_allowed_mirroring_axes"] == (0, 1)


@pytest.mark.slow
@pytest.mark.heavy
def test_both_commands_run(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # nnU-Net takes a thread for each core
    runs = TimedRuns(bench, tmp_path, make_subject(0, matrix=48, frames=2, slices=3))
    runs.theirs()
    runs.ours()
    assert runs.memory_ratio() is None or runs.memory_ratio() > 0
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("tmp")]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="Linux only")
def test_the_memory_of_children_counts_all_below():
    inner = "x = b'1' * 50_000_000; print(flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    before = memory_of_children()
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert memory_of_children() - before > 50_000_000
        process.communicate(b"\n")
