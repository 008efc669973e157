"""State for an exact resume: random states, and the steps of an unfinished epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.methods.base import Method
from nnunet_ssp.network import is_output_layer
from nnunet_ssp.training.optimizers import begin_momentum
from nnunet_ssp.training.transfer import to_cpu


def random_state(device: torch.device) -> dict[str, Any]:
    """Return torch's random states, as entries of a checkpoint."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch_random_state": torch.get_rng_state(), "cuda_random_state": cuda}


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore `random_state`; a run that moves to another kind of device begins its stream anew."""
    torch.set_rng_state(state["torch_random_state"])
    if device.type == "cuda" and state["cuda_random_state"] is not None:
        torch.cuda.set_rng_state(state["cuda_random_state"], device)


def earlier_origin(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a record says about the file that filled its run's network, see `privacy.origin`."""
    return {k: record[k] for k in ("weights_from", "weights_from_hash") if k in record}


def lasting_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a state dict leaves out, such as sums over the steps of an epoch."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


def pack_steps(
    outputs: Sequence[Mapping[str, Tensor]],
    skipped: Iterable[int],
    module: nn.Module,
    seconds: float,
) -> dict[str, Any]:
    """Return what the steps of an unfinished epoch leave for its end.

    Args:
        outputs: Scalars of each step by name.
        skipped: Numbers of the skipped steps.
        module: The method, whose buffers sum over the epoch.
        seconds: Duration of the steps.
    """
    names = list(outputs[0]) if outputs else []
    return {
        "outputs": {name: torch.stack([o[name] for o in outputs]).cpu() for name in names},
        "skipped": list(skipped),
        "buffers": to_cpu(lasting_buffers(module)) if outputs else {},
        "seconds": seconds if outputs else 0.0,
    }


def unpack_steps(columns: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    """Return the outputs of each step from the `outputs` of `pack_steps`."""
    on_device = {name: column.to(device) for name, column in columns.items()}
    steps = len(next(iter(on_device.values()), ()))
    return [{name: column[step] for name, column in on_device.items()} for step in range(steps)]


def load_planned(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's weights into the planned network, except the output layers, which are the method's.

    Raises:
        ValueError: A tensor is missing or unknown.
    """
    body = {name: w for name, w in weights.items() if not is_output_layer(name)}
    missing, unexpected = network.load_state_dict(body, strict=False)
    wrong = [name for name in missing if not is_output_layer(name)] + unexpected
    if wrong:
        raise ValueError(f"The checkpoint does not fit the planned network: {wrong[0]}.")


def take_back(
    checkpoint: Mapping[str, Any],
    method: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    device: torch.device,
) -> None:
    """Restore what every step changes: weights, the method's own state, optimiser, loss scale, random states.

    Raises:
        ValueError: The weights do not fit the network, or the state does not fit the method.
    """
    load_planned(method.network, checkpoint["network_weights"])
    state = checkpoint["ssp_state"]
    method.load_extra_state(state["method"])
    restore_random_state(state, device)
    optimizer.load_state_dict(checkpoint["optimizer_state"])
    begin_momentum(optimizer)
    if scaler is not None and checkpoint["grad_scaler_state"] is not None:
        scaler.load_state_dict(checkpoint["grad_scaler_state"])


def require_same_data(
    before: tuple[Mapping[str, int], set[str], str], record: Mapping[str, Any], fold: int | str
) -> None:
    """Refuse to continue with other data than before.

    Args:
        before: Counts of subjects, frames and slices, hashes of the subjects, and the digest of images without persons,
            in the checkpoint.
        record: This run's, see `PretrainingTrainer.record`.
        fold: Fold of this run.

    Raises:
        ValueError: The data have changed.
    """
    counts, subjects, digest = before
    now = (record["counts"], set(record["subjects"]), record.get("images_digest", ""))
    if now != (counts, subjects, digest):
        raise ValueError(
            f"--c must go on with the same data: the checkpoint saw {counts}, fold {fold} now has {record['counts']}. "
            "Start again without --c."
        )
