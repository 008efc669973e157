"""Settings of a checkpoint, named settings and defaults: which counts."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from nnunet_ssp.settings import FinetuningSettings, PretrainingSettings, TrainingSettings
from nnunet_ssp.training.recorded_settings import differences, from_checkpoint


@pytest.mark.parametrize(("name", "old"), [("fused_norm", "no"), ("memory_format", "contiguous")])
def test_what_came_later_computes_as_nothing_did_then(name, old):
    record = {k: v for k, v in asdict(TrainingSettings()).items() if k != name}
    settings = from_checkpoint(TrainingSettings(), "", record, ())
    assert getattr(settings, name) == old
    assert differences(record, settings) == []
    assert differences(record, TrainingSettings()) == [f"{name}: {old} -> auto"]


def test_what_is_named_counts_and_some_is_not_the_checkpoints_to_decide():
    record = asdict(FinetuningSettings(seed=1, num_epochs=7, trust=True))
    settings = from_checkpoint(FinetuningSettings(), "seed=3", record, ("trust",))
    assert (settings.seed, settings.num_epochs, settings.trust) == (3, 7, False)


def test_differences_name_old_and_new():
    old = asdict(PretrainingSettings(num_epochs=3))
    assert differences(old, PretrainingSettings(num_epochs=3)) == []
    del old["nesterov"]
    old["retired"] = 1
    # A version without a setting did what is the default now.
    assert differences(old, PretrainingSettings(num_epochs=3)) == ["retired: 1 -> none"]
    lines = differences(old, PretrainingSettings(num_epochs=3, gradient_clip=None, nesterov=True))
    assert sorted(lines) == [
        "gradient_clip: 12.0 -> none",
        "nesterov: no -> yes",
        "retired: 1 -> none",
    ]
