from __future__ import annotations

import os
import time

import numpy as np
import pytest

from nnunet_ssp.bench import command
from nnunet_ssp.bench.place import (
    DATASET,
    NARROW,
    PLANS,
    Bench,
    both_clocks,
    in_turns,
    method_names,
    ratio,
)
from nnunet_ssp.parallel import small_machine_environment
from tests.bench.conftest import CPU, TINY

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_methods_are_all_pretraining_trainers():
    assert {"MIM", "SimCLR", "PCL", "DINO", "BYOL", "Inpainting"} <= set(method_names())
    with pytest.raises(ValueError, match=r"`--methods` \(=moco\) must be some of BYOL, "):
        command.run(["MIM", "moco"], "cpu")


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
