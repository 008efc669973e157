from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ssp.training.compiling import GRAPHS, compile_parts


@pytest.mark.parametrize(("limit", "wanted"), [(8, GRAPHS), (1000, 1000)])
def test_parts_are_compiled_in_place_with_room_for_their_graphs(limit: int, wanted: int):
    parts = [nn.Linear(2, 3), nn.Linear(3, 1)]
    keys = [list(part.state_dict()) for part in parts]
    with torch._dynamo.config.patch(cache_size_limit=limit):
        compile_parts(parts)
        assert torch._dynamo.config.cache_size_limit == wanted
    assert all(part._compiled_call_impl is not None for part in parts)
    assert [list(part.state_dict()) for part in parts] == keys
