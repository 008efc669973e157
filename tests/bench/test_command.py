from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.bench import command, files, predicting, rows, scoring, sharing, starting
from nnunet_ssp.bench.place import (
    ON_CUDA,
    Bench,
)
from nnunet_ssp.bench.running import setting
from nnunet_ssp.cli import main
from tests.bench.conftest import CPU, TINY, Prepared

pytestmark = pytest.mark.usefixtures("one_thread")


# What every method must say, by name.
KEYS = (
    "compute_images_per_s",
    "end_to_end_images_per_s",
    "end_to_end_over_compute",
    "views_over_stock_loader",
    "peak_memory_bytes",
    "fraction_of_floor",
)

PREDICTING = {
    "predict_over_nnunet": 1.5,
    "predict_over_nnunet_outside": None,
    "predict_host_memory_ratio": 0.25,
    "predict_frames": 20,
    "predict_slices": 10,
    "predict_parameters": 1_200_000,
    "predict_frames_per_s": 7.0,
}


FILES = {"convert_over_zlib": 1.75, "unlabelled_over_resampled_mask": 1.5}


SCORING = {"scoring_over_before": 1.5, "scoring_over_nnunet": 0.25, "scoring_pairs": 4}


PREPARING = {"prepare_over_nnunet": 0.625, "prepare_cases": 4}


STARTING = {
    "start_cold_over_warm": 5.5,
    "start_cold_s": 5.5,
    "start_warm_s": 1.0,
    "start_runner_s": 6.6,
}


SHARING = {
    "export_over_copy": 1.25,
    "import_over_copy": 1.375,
    "export_memory_over_tensors": 1.125,
    "import_memory_over_tensors": None,
    "shared_bytes": 5e8,
}


def without_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the rows that run commands or large files by what they might have found."""
    monkeypatch.setattr(predicting, "predicting_over_stock", lambda _: PREDICTING)
    monkeypatch.setattr(files, "files_over_zlib", lambda _: FILES)
    monkeypatch.setattr(scoring, "scoring_over_before", lambda _: SCORING)
    monkeypatch.setattr(starting, "prepare_over_nnunet", lambda _: PREPARING)
    monkeypatch.setattr(starting, "warm_over_cold", lambda: STARTING)
    monkeypatch.setattr(sharing, "sharing_over_copy", lambda _: SHARING)


@pytest.mark.slow
@pytest.mark.heavy
def test_the_table_and_the_metrics(bench, scratch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    peer = {name: {"images_over_lightly": x} for name, x in (("SimCLR", 1.25), ("DINO", 1.5))}
    monkeypatch.setattr(rows, "over_lightly", lambda _: peer)
    without_commands(monkeypatch)
    file = tmp_path / "metrics" / "bench.json"
    metrics = command.run(["contextprediction", "PCL"], "cpu", file, TINY)

    assert json.loads(file.read_text()) == metrics
    assert list(metrics["methods"]) == ["ContextPrediction", "PCL"]
    for found in metrics["methods"].values():
        assert set(KEYS) <= found.keys()
        assert all(math.isfinite(found[key]) and found[key] > 0 for key in KEYS)
        for key in ("end_to_end_over_compute", "views_over_stock_loader"):
            low, high = found[f"{key}_quartiles"]
            assert low <= found[key] <= high
            assert found[f"{key}_rounds"] == 3
        share = found["end_to_end_images_per_s"] / found["compute_images_per_s"]
        assert share == pytest.approx(found["end_to_end_over_compute"])
    assert metrics["methods"]["ContextPrediction"]["peak_memory_batch_size"] == 9
    assert list(metrics["simclr_peak_memory_bytes"]) == ["4", "8"]
    assert list(metrics["growth"]) == ["20", "40"]
    assert metrics["finetuning_over_stock"] > 0
    assert metrics["bf16_over_fp32"] > 0
    fused = metrics["fused_over_plain"]
    assert fused["auto"]["steps"] > 0 and fused["yes"]["steps"] > 0
    assert fused["yes"]["memory"] < 0.9 < fused["auto"]["memory"] < 1.1
    assert isinstance(metrics["finetuning_images_per_s"], float)
    assert metrics["finetuning_images_per_s"] > 0
    assert torch.__version__.startswith(metrics["setting"]["versions"]["torch"])
    assert not list(scratch.iterdir()), "everything temporary is removed"

    said = capsys.readouterr()
    lines = said.out.splitlines()
    header = next(line for line in lines if line.startswith("| method"))
    body = [line for line in lines if line.startswith(("| ContextPrediction |", "| PCL |"))]
    assert [line.count("|") for line in body] == [header.count("|")] * 2
    assert "images/s" not in said.out, "absolute times are a GPU's"
    assert f"{os.cpu_count()} cores, PyTorch with 1 thread," in lines[0]
    words = (
        "SimCLR's memory: 4 slices",
        "Slice store of 40",
        "SimCLR 1.25x",
        "Fine-tuning",
        "over zlib 1.75x",
    )
    for word in (*words, "Predicting 20 frames of 10 slices with 1.2 million parameters"):
        assert word in said.out
    assert "bench: PCL ..." in said.err


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(torch.cuda.is_available(), reason="the line measures the GPU")
def test_the_line_of_a_dry_run_measures_what_it_then_estimates_from(
    bench, scratch, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "demooij", "--dry-run"]) == 0
    said = capsys.readouterr().out
    line = re.search(r"(nnunet-ssp bench \S+ \S+) measures the speeds here", said)[1]
    (option,) = re.findall(r"then add (.*)\.$", said, re.MULTILINE)
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(command, "ON_CPU", TINY)
    monkeypatch.setattr(rows, "over_lightly", lambda _: {})
    monkeypatch.setattr(rows, "peak_memory", lambda *_: (9, 512))
    without_commands(monkeypatch)
    assert main(shlex.split(line)[1:]) == 0
    capsys.readouterr()
    assert main(["study", "demooij", "--dry-run", *shlex.split(option)]) == 0
    said = capsys.readouterr().out
    setting = json.loads(Path("bench.json").read_text())["setting"]
    assert f" hours of one {setting['name']}, {setting['date']}" in said
    assert "That is an estimate" not in said


def test_absolute_times_come_from_a_gpu():
    method = {key: 0.5 for key in KEYS} | {"batch_size": 9, "peak_memory_batch_size": 9}
    metrics = {
        "setting": {
            **setting(CPU),
            "side": ON_CUDA.side,
            "narrow": ON_CUDA.narrow,
            "device": "cuda",
        },
        "methods": {
            "MIM": {
                **method,
                "compute_images_per_s": 1234.4,
                "host_end_to_end_over_compute": 0.9321,
                "ways": {"fp32": {"images_per_s": 400.2}, "bf16, compiled": {"images_per_s": 1250}},
            }
        },
        "rates": {"torch.float16": {"flops_per_s": 3e14, "bytes_per_s": 2e12}},
        "simclr_peak_memory_bytes": {"64": 2**30, "256": 2**30},
        "growth": {},
        "images_over_lightly": None,
        "finetuning_over_stock": 1.0,
        "bf16_over_fp32": 1.75,
        "fused_over_plain": {},
        **FILES,
        "convert_over_zlib": None,
        **SCORING,
        **PREPARING,
        **STARTING,
        **SHARING,
        **PREDICTING,
        "predict_over_nnunet_outside": 2.5,
    }
    text = "\n".join(command.table(metrics))
    assert "| 1234 |" in text
    header, _, row = (line.split(" | ") for line in text.splitlines()[4:7])
    assert row[header.index("from the host / compute")] == "0.93"
    assert "| images/s | fp32 | bf16, compiled |\n| --- | --- | --- |\n| MIM | 400 | 1250 |" in text
    assert "300.0 TFLOP/s and 2000 GB/s" in text
    assert "256 slices 1024 MiB (1.00x)" in text
    assert "Lightly: left out" in text
    assert "bf16 over fp32, steps per second: 1.75x" in text
    assert "ISA-L over zlib isal is not installed; unlabelled frames" in text
    assert (
        "500 MB, seconds over a plain copy of what is written: export 1.25x, memory 1.12x" in text
    )
    assert "the tensors; import 1.38x." in text
    found = "1.50x, outside of the forward passes 2.50x, host memory 0.25x, 7.0 frames/s."
    assert f"nnUNetv2_predict, start-up included: {found}" in text
    assert "of its widths" not in text
    assert "1.50x those without crop and with whole distance maps; 0.25x nnU-Net's" in text
    assert "for 4 labelled cases over nnUNetv2_plan_and_preprocess -c 2d: 0.62x." in text
    assert "5.5x; the runner takes those of 1.2 commands by themselves, once." in text
    cold = "\n".join(command.table(metrics | dict.fromkeys(STARTING)))
    assert "- Starting up: there is no warm runner here" in cold


def test_a_run_that_is_cut_short_keeps_its_rows(bench, scratch, tmp_path, monkeypatch):
    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(rows, "method_row", lambda *_: {"batch_size": 4})
    monkeypatch.setattr(rows, "peak_memory", lambda *_: (9, 512))
    monkeypatch.setattr(rows, "growth", cut)
    file = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        command.run(["MIM"], "cpu", file, TINY)
    kept = json.loads(file.read_text())
    row = {"batch_size": 4, "peak_memory_bytes": 512, "peak_memory_batch_size": 9}
    assert kept["methods"] == {"MIM": row} and kept["simclr_peak_memory_bytes"] == {
        "4": 512,
        "8": 512,
    }


def test_rows_of_whole_works_reach_file_and_table(scratch, tmp_path, monkeypatch, capsys):
    bench = Bench(tmp_path, CPU, TINY)
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(rows, "method_row", lambda *_: {key: 0.5 for key in (*KEYS, "batch_size")})
    monkeypatch.setattr(rows, "peak_memory", lambda *_: (9, 512))
    monkeypatch.setattr(rows, "growth", lambda *_: {})
    monkeypatch.setattr(rows, "over_lightly", lambda _: None)
    monkeypatch.setattr(rows, "finetuning_over_stock", lambda _: {"finetuning_over_stock": 1.0})
    monkeypatch.setattr(rows, "bf16_over_fp32", lambda _: {"bf16_over_fp32": 1.5})
    monkeypatch.setattr(rows, "fused_over_plain", lambda _: {"fused_over_plain": {}})
    without_commands(monkeypatch)
    file = tmp_path / "bench.json"
    command.run(["MIM"], "cpu", file, TINY)
    found = json.loads(file.read_text())
    whole = FILES | SCORING | PREPARING | STARTING | SHARING | PREDICTING
    assert {name: found[name] for name in whole} == whole
    said = capsys.readouterr()
    for word in ("- Scoring 4 pairs", "4 labelled cases", "- Starting up", "- Predicting"):
        assert word in said.out
    for word in ("scoring", "prepare", "starting up"):
        assert f"bench: {word} ..." in said.err


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
