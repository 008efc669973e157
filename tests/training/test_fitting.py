"""The network that plans describe, and weights that are made to fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_ssp.training import transfer
from nnunet_ssp.training.fitting import (
    Asking,
    adapt_misfit,
    adaptation_in_words,
    build_network,
    filled_weights,
    planned_network,
)
from tests.training.test_inspection import CONFIGURATION, make_plans, write_checkpoint

ARCHITECTURE = CONFIGURATION["architecture"]
DATASET = {
    "channel_names": {"0": "a", "1": "b"},
    "labels": {"background": 0, "heart": 1, "other": 2},
    "file_ending": ".nii.gz",
}
FIRST = "encoder.stages.0.0.convs.0.conv.weight"


def test_the_initial_weights_are_always_the_same():
    state = torch.random.get_rng_state()
    first, second = (build_network(ARCHITECTURE, 1, 2, "x", "cpu").state_dict() for _ in range(2))
    assert all(torch.equal(second[key], tensor) for key, tensor in first.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert build_network(ARCHITECTURE, 1, 2, "x").state_dict()[FIRST].is_meta


def test_plans_of_no_network():
    wrong = ARCHITECTURE | {"arch_kwargs": ARCHITECTURE["arch_kwargs"] | {"n_stages": 2}}
    with pytest.raises(ValueError, match=r"^x: nnU-Net cannot build a network from it"):
        build_network(wrong, 1, 2, "x")


def test_a_file_that_fits_is_left_as_it_is(tmp_path: Path):
    pretrained = transfer.read(write_checkpoint(tmp_path / "x.pth", make_plans()))
    planned = planned_network(make_plans(), "2d", DATASET | {"channel_names": {"0": "a"}}, "x")
    assert planned.n_classes == 3
    comparison = planned.compare(pretrained)
    assert adapt_misfit(pretrained, comparison, planned.network, DATASET) is None


def test_another_number_of_channels(tmp_path: Path):
    pretrained = transfer.read(write_checkpoint(tmp_path / "x.pth", make_plans(), "encoder"))
    plans = make_plans(
        lambda c: c.update(
            normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2
        )
    )
    planned = planned_network(plans, "2d", DATASET, "x", "cpu")
    comparison = planned.compare(pretrained)
    given = (pretrained, comparison, planned.network, DATASET)
    with pytest.raises(ValueError, match=r"have 2\. The setting adapt=yes takes what can be made"):
        adapt_misfit(*given, wanted=False)
    asking = Asking("The option", "--adapt", "--min-transferred ")
    with pytest.raises(
        ValueError, match=r"With --adapt 100% .*--min-transferred 1\.1 asks for more"
    ):
        adapt_misfit(*given, least=1.1, asking=asking)
    adaptation = adapt_misfit(*given)
    assert adaptation is not None
    first = adaptation_in_words(comparison, adaptation, asking)[0]
    assert first.startswith("--adapt: channels: ")
    weights = filled_weights(planned, adaptation)
    half = pretrained.weights[FIRST] / 2
    assert torch.equal(weights[FIRST], torch.cat([half, half], 1))
    assert weights[FIRST].dtype == torch.float32
    assert transfer.fresh_keys(weights) == transfer.fresh_keys(pretrained.weights)
    assert weights["decoder.seg_layers.0.weight"].shape[0] == 3
