from __future__ import annotations

import math

import pytest

from nnunet_ssp.bench import rows
from nnunet_ssp.bench.place import (
    NARROW,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_lightlys_row(bench):
    pytest.importorskip("lightly.transforms", exc_type=ImportError)
    found = rows.over_lightly(bench)
    assert found is not None
    assert list(found) == ["SimCLR", "DINO"]
    for metrics in found.values():
        value = metrics["images_over_lightly"]
        assert math.isfinite(value) and value > 0


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_pass_of_lightlys_has_its_steps_whatever_the_number_of_slices(bench):
    pytest.importorskip("lightly.transforms", exc_type=ImportError)
    from nnunet_ssp.bench.peer import SimCLRPeer

    with bench.pretraining("SimCLR", NARROW, batch=60) as trainer:
        assert len(trainer.store) < 3 * 60
        peer, sizes = SimCLRPeer(trainer), []
        peer.step = lambda views: sizes.append(len(views[0]))
        peer.one_pass()
    assert sizes == [60] * peer.steps
