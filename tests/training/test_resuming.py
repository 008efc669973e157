"""State that a run needs to go on exactly where it stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ssp.training.resuming import (
    lasting_buffers,
    load_planned,
    pack_steps,
    random_state,
    require_same_data,
    restore_random_state,
    unpack_steps,
)

CPU = torch.device("cpu")


class Summing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("epoch_sum", torch.full((2,), 3.0), persistent=False)


def test_random_numbers_go_on():
    torch.manual_seed(4)
    torch.rand(3)
    state = random_state(CPU)
    wanted = torch.rand(5)
    torch.manual_seed(99)
    restore_random_state(state, CPU)
    assert torch.equal(torch.rand(5), wanted)
    assert state["cuda_random_state"] is None


def test_steps_come_back_as_they_were():
    outputs = [{"loss": torch.tensor(float(i)), "error": torch.tensor(2.0 * i)} for i in range(3)]
    packed = pack_steps(outputs, (7,), Summing(), 1.5)
    assert packed["skipped"] == [7] and packed["seconds"] == 1.5
    assert packed["buffers"].keys() == {"epoch_sum"}
    assert unpack_steps(packed["outputs"], CPU) == outputs


def test_before_the_first_step_there_is_nothing_to_keep():
    packed = pack_steps([], (), Summing(), 1.5)
    assert packed == {"outputs": {}, "skipped": [], "buffers": {}, "seconds": 0.0}
    assert unpack_steps(packed["outputs"], CPU) == []


def test_buffers_of_the_state_dict_are_saved_with_it():
    assert lasting_buffers(Summing()).keys() == {"epoch_sum"}


def test_the_planned_network_is_loaded_but_for_its_output_layers(make_network):
    network, other = make_network(), make_network()
    weights = {k: v.clone() for k, v in other.state_dict().items()}
    own = {k: v.clone() for k, v in network.state_dict().items() if "seg_layers" in k}
    load_planned(network, weights)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, own[name] if name in own else weights[name]), name


def test_other_networks_are_refused(make_network):
    network = make_network()
    weights = dict(network.state_dict())
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(ValueError, match="does not fit the planned network"):
        load_planned(network, weights)


def test_a_run_goes_on_with_the_data_that_it_began_with():
    counts, subjects = {"subjects": 1, "frames": 2, "slices": 9}, {"a"}
    require_same_data((counts, subjects, ""), {"counts": dict(counts), "subjects": ["a"]}, 0)
    for other in (
        {"counts": {**counts, "slices": 8}, "subjects": ["a"]},
        {"counts": counts, "subjects": ["b"]},
    ):
        with pytest.raises(ValueError, match=r"--c must go on with the same data.*fold 0 now has"):
            require_same_data((counts, subjects, ""), other, 0)
