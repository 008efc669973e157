"""Precision in which a pretraining computes."""

from __future__ import annotations

import pytest
import torch

from nnunet_ssp.training.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "native", "device", "dtype"),
    [
        ("auto", True, CPU, None),
        ("fp32", True, CUDA, None),
        ("bf16", True, CPU, torch.bfloat16),
        ("auto", True, CUDA, torch.bfloat16),
        ("auto", False, CUDA, torch.float16),
        ("fp16", False, CUDA, torch.float16),
    ],
)
def test_the_type_to_compute_in(asked, native, device, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision(asked, "bf16", device) is dtype


def test_auto_takes_what_the_method_prefers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", "fp16", CUDA) is torch.float16


def test_half_precision_needs_its_scaler():
    with pytest.raises(ValueError, match=r"`precision` \(=fp16\) must be used on CUDA"):
        choose_precision("fp16", "bf16", CPU)
