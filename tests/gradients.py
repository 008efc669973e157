"""Helpers of the methods' tests: gradients, corrupted views, and what goes into a part of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnunet_ssp.methods import Batch, Method
from nnunet_ssp.methods.reconstruction import Reconstruction


def gradients(method: Method, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of a batch, and the gradient of each trained parameter by name."""
    method.zero_grad(set_to_none=True)
    loss = method(batch)["loss"]
    loss.backward()
    return loss.item(), {k: p.grad.clone() for k, p in method.named_parameters() if p.requires_grad}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients together, over that of the expected ones."""
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[k] - expected[k]).flatten() for k in expected]).norm()
    return (difference / torch.cat([g.flatten() for g in expected.values()]).norm()).item()


def inputs_of(module: nn.Module) -> list[torch.Tensor]:
    """Everything that goes into the module from here on."""
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def corrupted_views(
    method: Reconstruction, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target, corrupted copy, where it is hidden, and where it lies inside the slice."""
    made: Any = method
    target, inside = made.view(batch)
    corrupted, hidden = made.corrupt(target, batch.drawn)
    return target, corrupted, hidden, inside
