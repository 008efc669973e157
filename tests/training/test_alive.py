from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssp.heartbeat import Heartbeat
from nnunet_ssp.training import alive as module
from nnunet_ssp.training import finetuning
from nnunet_ssp.training.alive import AliveTrainer
from nnunet_ssp.training.finetuning import FinetuningTrainer
from nnunet_ssp.training.pace import SECONDS


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but when it is moved."""
    now = [100.0]
    monkeypatch.setattr(module, "Heartbeat", partial(Heartbeat, clock=lambda: now[0]))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def made(kind: type[AliveTrainer], folder: Path, **attributes: Any) -> Any:
    """Return a trainer without a dataset, which logs to a file."""
    trainer = kind.__new__(kind)
    trainer.local_rank, trainer.log_file = 0, str(folder / "log.txt")
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def lines(folder: Path) -> list[str]:
    """Return the lines of the log without their times."""
    written = (folder / "log.txt").read_text().splitlines()
    return [line.partition(": ")[2].strip() for line in written if line.strip()]


def test_a_long_step_is_not_silent(now: list[float], tmp_path: Path):
    trainer = made(AliveTrainer, tmp_path)
    with trainer.alive(lambda: "at work in epoch 0, after step 3 of 250") as heartbeat:
        for moved in (SECONDS + 2, 3, SECONDS + 2):
            now[0] += moved
            heartbeat.beat()
        trainer.print_to_log_file("a line of nnU-Net's")
        now[0] += SECONDS
        heartbeat.beat()
    assert trainer.heartbeat is None
    what = "Still at work in epoch 0, after step 3 of 250"
    assert lines(tmp_path) == [f"{what} (17 s)", f"{what} (37 s)", "a line of nnU-Net's"]


def test_the_final_validation_says_how_far_it_is(
    now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """nnU-Net logs where a case begins, and nothing while it imports, predicts, writes and scores."""

    def predict(trainer: Any, save_probabilities: bool) -> None:
        def long() -> None:
            now[0] += 20
            trainer.heartbeat.beat()

        long()  # the pool starts
        for case in ("a", "b"):
            trainer.print_to_log_file(f"predicting {case}")
            trainer.print_to_log_file(f"{case}, shape torch.Size([1, 8, 96, 96]), rank 0")
            long()
        long()  # the last case is written and all are scored

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", predict)
    monkeypatch.setattr(finetuning, "needs_no_workers", lambda _: False)
    monkeypatch.setattr(FinetuningTrainer, "command", lambda *_, **__: "a command")
    monkeypatch.setattr(FinetuningTrainer, "do_split", lambda _: ([], ["a", "b"]))
    trainer = made(
        FinetuningTrainer,
        tmp_path,
        settings=SimpleNamespace(final_validation=True),
        disable_checkpointing=True,
        device=SimpleNamespace(type="cpu"),
        warnings=[],
    )
    monkeypatch.setattr(FinetuningTrainer, "kept_settings", lambda _: "")
    trainer.perform_actual_validation()
    said = lines(tmp_path)
    assert said[0].startswith(
        "Final validation: 2 cases to predict, on a CPU each may take minutes"
    )
    assert [line for line in said if line.startswith("Still ")] == [
        "Still in the final validation, before the first case (20 s)",
        "Still in the final validation, case 1 of 2 (20 s)",
        "Still in the final validation, case 2 of 2, about 1 s left (20 s)",
        "Still in the final validation, case 2 of 2, about 1 s left (40 s)",
    ]
    assert said[1].startswith("Still in the final validation, before")
    assert trainer.heartbeat is None
