"""What every run of the bench says and does; SIGTERM is tested in test_command."""

from __future__ import annotations

import os

import torch

from nnunet_ssp.bench.running import announce, heading, setting


def test_the_place_is_said_in_a_line(capsys):
    place = setting(torch.device("cpu")) | {"threads": 1, "load": 2.5}
    place["versions"] = {"torch": place["versions"]["torch"], "other": "not installed"}
    assert torch.__version__.startswith(place["versions"]["torch"])
    said = heading(place)
    assert f"{os.cpu_count()} cores, PyTorch with 1 thread, load 2.5; torch " in said
    assert said.endswith("other not installed.")
    announce("MIM")
    assert capsys.readouterr().err == "bench: MIM ...\n"
