from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssp.methods import Batch, Method, Pictures
from nnunet_ssp.methods.parts.views import Views, ViewSettings, draw_views
from nnunet_ssp.schedules import warmup_cosine
from nnunet_ssp.settings import PretrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 16)
SIZES = [(20, 24), (16, 16), (30, 18)]


class Least(Method):
    """The least that a method is."""

    settings_class = PretrainingSettings
    transfers = "encoder"
    paper = "none"

    def draw(self, rng: np.random.Generator, sizes: Any) -> dict[str, Any]:
        views = draw_views(rng, sizes, self.channels, self.patch_size, ViewSettings())
        return {"views": views, "row": torch.from_numpy(rng.random(len(sizes))), "number": 7}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        x, _ = self.make_views(batch.slices, batch.sizes, batch.drawn["views"], self.patch_size)
        return {"loss": self.network.encoder(x)[-1].square().mean()}


class WithTeacher(Least):
    """A method that exports another encoder than the network's."""

    def __init__(self, network: Any, *arguments: Any) -> None:
        super().__init__(network, *arguments)
        self.teacher = copy.deepcopy(network.encoder)
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter.add_(1)

    def handed_on(self) -> nn.Module:
        return self.teacher


@pytest.fixture
def make_method(make_network):
    def make(method=Least, **changes):
        return method(make_network(), PretrainingSettings(**changes), PATCH, 1)

    return make


def test_the_rows_of_a_rank(make_method, make_batch):
    whole = make_batch(make_method(), SIZES)
    assert (len(whole), whole.total) == (3, 3)
    part = whole.share(slice(1, 3))
    assert (len(part), part.total) == (2, 3)
    for name in ("slices", "sizes", "positions"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:3])
    assert torch.equal(part.drawn["row"], whole.drawn["row"][1:3])
    assert torch.equal(part.drawn["views"].matrix, whole.drawn["views"].matrix[1:3])
    assert part.drawn["number"] == 7, "single numbers belong to the whole batch"


def test_page_locked_memory_holds_the_same(make_method, make_batch):
    if not torch.cuda.is_available():
        pytest.skip("page-locked memory needs CUDA")
    batch = make_batch(make_method(), SIZES)
    pinned = batch.pinned()
    assert pinned.sizes.is_pinned() and pinned.positions.is_pinned()
    assert pinned.drawn["row"].is_pinned() and torch.equal(pinned.drawn["row"], batch.drawn["row"])
    for field in fields(Views):
        column = getattr(pinned.drawn["views"], field.name)
        assert column.is_pinned()
        assert torch.equal(column, getattr(batch.drawn["views"], field.name))
    assert pinned.drawn["number"] == 7


def test_the_rate_is_the_papers_cosine_by_epoch(make_method):
    method = make_method(num_epochs=5, initial_lr=0.2, warmup_epochs=2)
    found = [method.learning_rate(step, 3) for step in range(15)]
    expected = [0.2 * warmup_cosine(epoch, 5, 2) for epoch in range(5)]
    assert found == pytest.approx(np.repeat(expected, 3))


def test_a_method_has_nothing_to_say_unless_it_does(make_method, make_batch, make_store):
    method = make_method()
    assert method.examine(make_store([(3, 1, 8, 8)])) == []
    assert method.warnings({"val_loss": 1.0}) == []
    assert method.warnings({}, {"encoder 1": 0.3, "encoder 2": 0.0, "encoder 3": 0.0}) == []
    assert method.panels(make_batch(method, SIZES)) is None
    assert method.end_epoch() == method.summarise({"loss": 1.0}) == {}
    assert method.pictures == Pictures("views.png", change=False)


def test_the_networks_own_encoder_is_exported(make_method):
    method = make_method()
    assert method.exported() is method.network
    assert method.handed_on() is method.network.encoder
    assert method.extra_state() == {}


def test_another_encoder_is_exported_in_place_of_the_networks(make_method):
    method = make_method(WithTeacher)
    exported, network = method.exported(), method.network
    assert exported is not network and exported.decoder.encoder is exported.encoder
    teacher = method.teacher.state_dict()
    for key, value in exported.encoder.state_dict().items():
        assert torch.equal(value, teacher[key])
    # What the file lacks is in the extra state: the student goes on from there.
    state = copy.deepcopy(method.extra_state())
    assert {key.split(".")[0] for key in state} == {"teacher", "network"}
    resumed = make_method(WithTeacher)
    resumed.network.load_state_dict(exported.state_dict())
    resumed.load_extra_state(state)
    for key, value in method.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_views_are_made_without_a_gradient_and_in_float32(make_method, make_batch):
    method = make_method()
    batch = make_batch(method, SIZES)
    batch.slices.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        views, inside = method.make_views(batch.slices, batch.sizes, batch.drawn["views"], PATCH)
    assert (views.dtype, views.requires_grad) == (torch.float32, False)
    assert (views.shape, inside.shape) == ((3, 1, *PATCH), (3, 1, *PATCH))


def test_a_state_of_another_shape_is_refused(make_method):
    method = make_method(WithTeacher)
    state = {key: value[:1] for key, value in method.extra_state().items()}
    with pytest.raises(ValueError, match="state does not fit the method: "):
        method.load_extra_state(state)
