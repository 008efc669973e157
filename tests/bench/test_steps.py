"""Steps as they are computed by default, beside float32 with nnU-Net's modules."""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_ssp.bench import steps
from nnunet_ssp.bench.place import Bench
from nnunet_ssp.bench.steps import StepSize
from nnunet_ssp.recommended import MOVEMENT
from nnunet_ssp.training.fused import FusedNorm
from tests.bench.conftest import Prepared

pytestmark = pytest.mark.usefixtures("one_thread")

TINY_SIZE = StepSize(side=48, narrow=8, batch=8, large=16, seconds=0)


@pytest.mark.slow
def test_each_row_is_written_when_it_is_there(bench, scratch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(steps, "CHUNK", 8)
    monkeypatch.setattr(steps, "has_bf16", lambda: False)
    file, written = tmp_path / "in" / "steps.json", []
    write = steps.write_json
    monkeypatch.setattr(
        steps, "write_json", lambda *given: (write(*given), written.append(file.read_text()))
    )
    found = steps.run(["mim"], file, [TINY_SIZE])
    rows = found["steps"]["48x48, 1/8 widths"]
    assert list(rows) == ["MIM", steps.FINETUNING, steps.IN_CHUNKS]
    assert [len(json.loads(text)["steps"]["48x48, 1/8 widths"]) for text in written] == [1, 2, 3]
    for row in rows.values():
        low, high = row["steps_over_plain_quartiles"]
        assert 0 < low <= row["steps_over_plain"] <= high
        assert row["steps_over_plain_rounds"] == 3
        assert row["computes"] == {"precision": "fp32", "memory_format": "contiguous"}
        assert all(seconds > 0 for seconds in row["seconds_per_image"].values())
        assert all(0 < share < 1 for share in row["share_of_convolutions"].values())
    kept = rows["MIM"]["activations_per_image"]
    assert kept["joined"] < 0.75 * kept["plain"] and kept["default"] < 1.05 * kept["plain"]
    said = capsys.readouterr()
    header, _, *lines, empty, loader = said.out.splitlines()[2:]
    assert [line.count("|") for line in lines] == [header.count("|")] * 3
    tuned = rows[steps.FINETUNING]
    part = tuned["loader_seconds_per_image"] / tuned["seconds_per_image"]["default"]
    assert part > 0 and empty == ""
    assert loader.startswith(f"nnU-Net's loader adds {part:.2f}x the time of fine-tuning, 48x48")
    assert "bench: MIM, 128 in chunks, 48x48, 1/8 widths ..." in said.err


def test_the_recommended_pretraining_has_a_row_as_it_is_recommended(bench, scratch, monkeypatch):
    monkeypatch.setattr(Bench, "prepared", lambda *_: Prepared(bench))
    monkeypatch.setattr(steps, "steps_over_plain", lambda *given: {"given": given[1:]})
    monkeypatch.setattr(steps, "finetuning_over_plain", lambda *_: {})
    size = StepSize(side=48, narrow=8, batch=8, large=None, seconds=3)
    *_, found = steps.measure_steps([size], steps.METHODS)
    rows = found[size.title]
    alone = f"Dense, {MOVEMENT}"
    assert {*rows} == {*steps.METHODS, alone, steps.FINETUNING}
    assert rows["Dense"]["given"] == ("Dense", 3, "")
    assert rows[alone]["given"] == ("Dense", 3, MOVEMENT)


@pytest.mark.slow
def test_a_row_with_settings_has_them_in_every_way(bench, monkeypatch):
    monkeypatch.setattr(steps, "has_bf16", lambda: True)
    counted = []
    monkeypatch.setattr(steps, "_activations", lambda *how: counted.append(how[2]) or 1.0)
    taken = []
    settled = steps._settled
    monkeypatch.setattr(steps, "_settled", lambda *how: taken.append(how[2]) or settled(*how))
    row = steps.steps_over_plain(bench, "Dense", 0, MOVEMENT)
    assert taken == [{"contrast": "0"} | how for how in (steps.PLAIN, {}, {"precision": "bf16"})]
    assert len(counted) == 5 and all(how["contrast"] == "0" for how in counted)
    assert row["steps_over_plain"] > 0 and row["bf16_over_plain"] > 0


def test_the_old_way_is_switches_of_todays_code(bench):
    """Without them the defaults choose; with them nothing of the new does."""
    with steps._settled(bench, "MIM", steps.PLAIN) as trainer:
        assert trainer.autocast_dtype is None
        assert not any(isinstance(m, FusedNorm) for m in trainer.network.modules())
    with steps._settled(bench, "MIM", {}) as trainer:
        assert any(isinstance(m, FusedNorm) for m in trainer.network.modules())


def test_a_table_with_bfloat16_and_without_activations():
    row = {
        "steps_over_plain": 1.5,
        "steps_over_plain_quartiles": [1.25, 1.75],
        "bf16_over_plain": 2.0,
        "computes": {"precision": "bf16", "memory_format": "channels_last"},
        "activations_per_image": {},
        "share_of_convolutions": {"plain": 0.5, "default": 0.75},
    }
    *_, line = steps.steps_table({"96x96": {"MIM": row}})
    assert line == "| MIM | 96x96 | 1.50x | 1.25 to 1.75 | bf16, channels_last | 2.00x | 75% | - |"


def test_the_share_of_convolutions():
    convolution, x = torch.nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 32, 32)
    # Another program may take the core in the middle of a step.
    assert max(steps.convolutions(lambda: convolution(x).sum().backward()) for _ in range(9)) > 0.5
    assert steps.convolutions(lambda: (x * x).sum()) == 0
