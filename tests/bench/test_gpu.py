"""The mode for a GPU, tried in miniature on a CPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from nnunet_ssp.bench import gpu
from nnunet_ssp.bench.place import Bench, method_names
from nnunet_ssp.bench.steps import METHODS
from nnunet_ssp.launch import command_environment
from nnunet_ssp.recommended import recommended
from nnunet_ssp.study.spec import read_study
from nnunet_ssp.training.layout import CONTIGUOUS
from tests.bench.conftest import CPU, TINY, Prepared

STUDY = Path(gpu.__file__).parents[1] / "study" / "studies" / "acdc-few.yaml"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def some_tests(tmp_path: Path) -> Path:
    """Two tests marked `gpu`, in a folder of their own."""
    folder = tmp_path / "some" / "tests"
    folder.mkdir(parents=True)
    (folder.parent / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: on a GPU\n")
    (folder / "test_card.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_card():\n    pass\n\n"
        "@pytest.mark.gpu\ndef test_none():\n    pytest.skip()\n\ndef test_other():\n    assert False\n"
    )
    (folder / "test_other.py").write_text("def test_other():\n    assert False\n")
    return folder


@pytest.mark.slow
@pytest.mark.heavy
def test_every_row_on_a_cpu(bench, scratch, some_tests, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    file, written = tmp_path / "in" / "gpu.json", []
    write = gpu.write_json
    monkeypatch.setattr(
        gpu, "write_json", lambda *given: (write(*given), written.append(file.read_text()))
    )
    # Without and with all that a way can have: compiling each of them takes minutes here.
    assert len(gpu.WAYS) == 16
    some = [w for w in gpu.WAYS if {w.compiled, w.fused, w.layout != CONTIGUOUS} != {False, True}]
    monkeypatch.setattr(gpu, "WAYS", some)
    # The order of importance is the mode's own.
    found = gpu.run(["PCL", "mim"], "cpu", file, 14, None, TINY, some_tests)
    rows = found["rows"]
    assert json.loads(file.read_text()) == found
    assert [len(json.loads(text)["rows"]) for text in written] == list(range(1, len(rows) + 1))
    names = list(rows)
    assert names[:3] == ["tests", "MIM: by default", "MIM: bf16"] and names[-1] == "study"
    assert not [name for name, row in rows.items() if "failed" in row]
    left_out = {name: row["left_out"] for name, row in rows.items() if "left_out" in row}
    expected = {name for name in names if "fp16" in name} | {"CUDA graphs", "study"}
    assert left_out.keys() == expected
    assert (rows["tests"]["passed"], rows["tests"]["skipped"], rows["tests"]["rc"]) == (1, 1, 0)
    ways = [way for way in some if way.precision == "bf16"]
    assert [(way.compiled, way.fused) for way in ways] == [(False, False), (True, True)]
    speeds = [f"{m}: {w}" for m in ("MIM", "PCL") for w in ("by default", *(w.name for w in ways))]
    for name in speeds:
        for key in ("compute_images_per_s", "end_to_end_over_compute", "fraction_of_floor"):
            assert rows[name][key] > 0, (name, key)
    minutes = 9_060_000 / rows["MIM: by default"]["end_to_end_images_per_s"] / 60
    assert rows["MIM: by default"]["papers_images_in_minutes"] == pytest.approx(minutes)
    assert rows["PCL: from the host"]["host_end_to_end_over_compute"] > 0
    assert rows["MIM: views"]["views_over_stock_loader"] > 0
    assert rows["SimCLR: 8 slices"]["batch_size"] == 8
    assert rows["SimCLR: 8 slices"]["peak_memory_bytes"] > 0
    assert rows["fine-tuning"]["finetuning_over_stock"] > 0
    said = capsys.readouterr()
    header, _, *lines = said.out.splitlines()[2:]
    assert [line.count("|") for line in lines] == [header.count("|")] * len(rows)
    assert "bench: PCL: views ..." in said.err
    assert not list(scratch.iterdir()), "everything temporary is removed"


def this_run(
    bench: Bench, tests: Path, seconds: float = 60, acdc: Path | None = None
) -> gpu.GpuRun:
    return gpu.GpuRun(bench, ["MIM"], 0, tests, acdc, time.monotonic() + seconds)


def test_each_way_computes_as_its_name_says(bench, tmp_path, monkeypatch):
    seen: list[Any] = []

    def watch(self: Any, trainer: Any) -> dict[str, Any]:
        norms = [m for m in trainer.network.modules() if isinstance(m, nn.InstanceNorm2d)]
        fused = {getattr(m, "slope", None) is not None for m in norms}
        hooks = any(m._forward_pre_hooks for m in trainer.network.modules())
        seen.append((str(trainer.autocast_dtype), hooks, fused))
        return {}

    monkeypatch.setattr(gpu.GpuRun, "_speed", watch)
    ways = [
        gpu.ComputingWay("bf16", "channels_last", False, True),
        gpu.ComputingWay("fp32", "contiguous", True, False),
    ]
    assert [way.name for way in ways] == ["bf16, channels_last, fused", "fp32, compiled"]
    for way in ways:
        this_run(bench, tmp_path).in_way("MIM", way)
    assert seen == [("torch.bfloat16", True, {True}), ("None", False, {False})]


def test_rows_after_the_time_and_rows_that_fail_cost_no_others(
    bench, scratch, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def rows(self: gpu.GpuRun) -> Any:
        def take(seconds: float) -> dict[str, Any]:
            clock[0] += seconds
            return {"passed": 3}

        yield "first", lambda: take(90)
        yield "broken", lambda: 1 / 0
        yield "long", lambda: take(40)
        yield "late", lambda: pytest.fail("no row begins when the time is over")
        yield "study", lambda: take(1)

    monkeypatch.setattr(gpu.GpuRun, "rows", rows)
    file = tmp_path / "rows.json"
    with pytest.raises(RuntimeError, match=r"^1 row failed: broken\.$"):
        gpu.run(["MIM"], "cpu", file, 3, tmp_path, TINY)
    found = json.loads(file.read_text())["rows"]
    assert found["first"]["passed"] == 3
    assert found["broken"]["failed"] == "ZeroDivisionError: division by zero"
    assert found["late"] == {"left_out": "the time was over"}
    assert found["study"]["passed"] == 3, "a third of the time is the study's"
    assert "failed ZeroDivisionError" in capsys.readouterr().out


def test_the_time_is_positive():
    with pytest.raises(ValueError, match=r"`--minutes` \(=0\) must be positive"):
        gpu.run(["MIM"], "cpu", minutes=0)


def test_a_folder_without_tests_for_a_gpu(bench, tmp_path):
    assert "no tests marked gpu" in this_run(bench, tmp_path).gpu_tests()["left_out"]


def test_a_command_is_asked_to_end_when_its_time_is_over(bench, tmp_path):
    code = "import time; print('begins', flush=True); time.sleep(60)"
    found = this_run(bench, tmp_path)._command(["python", "-c", code], 2.0)
    assert found["rc"] not in (0, None) and found["seconds"] < 50
    assert found["command"].startswith("python -c ") and found["said"] == "begins"


@pytest.mark.parametrize("status", [0, 1])
def test_the_study_at_the_end(bench, tmp_path, monkeypatch, status: int):
    """`acdc-few` at size gpu, cut to a few models and five patients, on the folder that was given."""
    words: list[list[str]] = []

    def ran(self: Any, command: list[str], seconds: float, folder: Path) -> dict[str, Any]:
        words.append(list(command))
        if command[1] == "study":
            tables = Path(command[command.index("-o") + 1], "tables")
            tables.mkdir(parents=True)
            (tables / "models.csv").write_text("a,b\n")
        elif converts:
            made = Path(command_environment(folder)["nnUNet_raw"], "Dataset027_ACDC")
            made.mkdir(parents=True)
            (made / "dataset.json").touch()
        return {"rc": status}

    monkeypatch.setattr(gpu.GpuRun, "_command", ran)
    converts = False
    assert [*this_run(bench, tmp_path, acdc=Path("ACDC")).study()] == ["convert"]
    words.clear()
    converts = True
    found = this_run(bench, tmp_path, acdc=Path("ACDC")).study()
    assert found["tables"] == {"tables/models.csv": "a,b\n"}
    assert words[0][:5] == ["nnunet-ssp", "convert", "acdc", "-i", "ACDC"]
    study = words[1]
    assert study[study.index("--size") + 1] == "gpu" and study[study.index("--folds") + 1] == "5"
    assert "left_out" in this_run(bench, tmp_path).study()
    known = yaml.safe_load(STUDY.read_text())
    assert 5 in known["folds"] and "gpu" in known["by_size"]


def test_the_study_compares_what_is_recommended_with_the_control():
    known = read_study(STUDY, "gpu")
    control, *others = (known.models[name] for name in gpu.STUDY_MODELS)
    assert control.pretraining is None
    pretrainings = [known.pretraining[other.pretraining] for other in others]
    for found, frames in zip(pretrainings, (True, False), strict=True):
        wanted = recommended(5, 300, frames)
        assert f"nnUNetTrainer{found.trainer}Pretrain" == wanted.trainer
        task = {"contrast=0", "movement=0", "recipe=deep"}  # the length is the study's own
        own = {f"{name}={value}" for name, value in found.settings.items()}
        assert task.intersection(wanted.settings.split()) == own & task


def test_a_small_network_as_one_graph(make_network):
    network = make_network()
    graphs: list[tuple[Any, ...]] = []

    def graphed(copied: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
        graphs.append((copied, inputs[0].shape))
        return copied

    found = gpu.graphs_over_launches(network, CPU, 0, graphed)
    assert found["graph_over_launches"] > 0 and found["graph_over_launches_rounds"] == 3
    assert graphs[0][0] is not network and graphs[0][1] == (16, 1, 64, 64)


def test_the_leading_methods_exist():
    assert set(gpu.FIRST) == set(METHODS) <= set(method_names())
