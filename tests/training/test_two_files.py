"""Two files compared, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnunet_ssp.cli import main
from nnunet_ssp.files import saving
from nnunet_ssp.files.tensors import write_tensors

Weights = dict[str, Tensor]


def weights() -> Weights:
    return {
        "encoder.stages.0.weight": torch.ones(4),
        "encoder.stages.1.weight": torch.ones(4),
        "decoder.encoder.stages.0.weight": torch.ones(4),
        "decoder.stages.0.weight": torch.ones(4),
        "decoder.stages.0.bias": torch.zeros(4),
        "decoder.seg_layers.0.bias": torch.ones(4),
    }


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(change: Callable[[Weights], object]) -> tuple[int, str]:
        other = weights()
        change(other)
        saving.save(tmp_path / "a.pth", {"network_weights": weights()})
        with open(tmp_path / "b.safetensors", "wb") as stream:
            write_tensors(stream, other)
        status = main(["inspect", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")])
        return status, capsys.readouterr().out

    return run


def test_equal_files(compare) -> None:
    status, said = compare(lambda w: None)
    assert status == 0 and said.endswith("all 5 are equal\n")
    assert "  encoder 1     1 equal\n" in said


def test_how_far_tensors_are_apart(compare) -> None:
    def change(w: Weights) -> None:
        w["encoder.stages.1.weight"][0] = 2  # distance 1, norm 2
        w["decoder.stages.0.bias"][0] = 1

    status, said = compare(change)
    assert status == 1
    assert "  encoder 2     1 changed by 50 %\n" in said
    assert "  decoder 1     1 equal, 1 changed by more than 0, which it was\n" in said
    assert "2 of 5 tensors differ\nchanged most: decoder.stages.0.bias" in said


def test_missing_misshapen_and_spoiled(compare) -> None:
    def change(w: Weights) -> None:
        del w["encoder.stages.0.weight"]
        w["encoder.stages.0.other"] = torch.ones(1)
        w["encoder.stages.1.weight"] = torch.ones(5)
        w["decoder.stages.0.weight"][0] = float("nan")
        w["decoder.seg_layers.0.bias"] *= 1.1

    _, said = compare(change)
    for line in (
        "  encoder 1     1 only in A, 1 only in B\n",
        "  encoder 2     1 of another shape\n",
        "  decoder 1     1 equal, 1 not finite\n",
        "  output layers 1 changed by 10 %\n",
        "5 of 6 tensors differ\n",
    ):
        assert line in said


def test_a_range_of_changes(compare) -> None:
    def change(w: Weights) -> None:
        w["decoder.stages.0.weight"] *= 1.25
        w["encoder.stages.0.weight"] *= 3

    _, said = compare(change)
    assert "changed most: encoder.stages.0.weight, by 200 %" in said


def test_one_file_at_a_time_for_the_other_options(tmp_path: Path, capsys) -> None:
    assert main(["inspect", "a", "b", "-d", "3"]) == 1
    assert "takes no -d, --private or --strip" in capsys.readouterr().err
