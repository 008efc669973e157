from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nnunet_ssp.training.base import keep_threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("told", "kept"), [("1", 1), ("2", 2), ("0", 3), ("two", 3), (None, 3)])
def test_threads_are_those_that_the_user_asked_for(monkeypatch, told, kept):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    torch.set_num_threads(3)  # as nnU-Net's command does, with every core
    keep_threads()
    assert torch.get_num_threads() == kept
