"""Fit a pretrained file to the network that plans describe: as it is, or adapted, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ssp.files.contents import shown
from nnunet_ssp.files.nnunet import configuration_of
from nnunet_ssp.settings import TrainingSettings
from nnunet_ssp.training import transfer
from nnunet_ssp.training.adapters import Adaptation


class Asking(NamedTuple):
    """How users ask for weights to be adapted.

    Attributes:
        kind: What it is that they type.
        adapt: It.
        least: Beginning of how they give the least share of the encoder's parameters.
    """

    kind: str
    adapt: str
    least: str


SETTING = Asking("The setting", "adapt=yes", "min_transferred=")  # of a training


@dataclass(frozen=True)
class Planned:
    """A network as plans describe it for a dataset.

    Attributes:
        network: On the device `meta` where only names and shapes are wanted.
        plans: Content of the plans.
        configuration: Its configuration, resolved.
        dataset_json: Content of `dataset.json`.
        n_classes: Number of output channels.
    """

    network: nn.Module
    plans: dict[str, Any]
    configuration: dict[str, Any]
    dataset_json: dict[str, Any]
    n_classes: int

    def compare(self, pretrained: transfer.Pretrained) -> transfer.Comparison:
        """Compare a file with this network and its plans."""
        channels = transfer.channel_names(self.dataset_json)
        return transfer.compare(pretrained, self.network, self.plans, self.configuration, channels)


def build_network(
    architecture: Mapping[str, Any], channels: int, classes: int, where: str, device: str = "meta"
) -> nn.Module:
    """Build the network of a configuration's `architecture`, on the CPU always with the same initial weights.

    Args:
        architecture: The class and its arguments.
        channels: Number of input channels.
        classes: Number of output channels.
        where: File and configuration, for messages.
        device: `cpu`, or `meta` for names and shapes alone.

    Raises:
        ValueError: nnU-Net cannot build it; names `where`.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            network: nn.Module = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                channels,
                classes,
                allow_init=device != "meta",  # which has no numbers, but takes four times as long
                deep_supervision=True,
            )
    except Exception as error:  # whatever a network's constructor may raise
        reason = shown(" ".join(str(error).split()))
        raise ValueError(f"{where}: nnU-Net cannot build a network from it ({reason}).") from error
    return network


def planned_network(
    plans: dict[str, Any], name: str, dataset_json: dict[str, Any], file: str, device: str = "meta"
) -> Planned:
    """Build the network of plans for a dataset.

    Args:
        plans: Content of the plans.
        name: Name of a configuration in them.
        dataset_json: Content of `dataset.json`.
        file: File of the plans, for messages.
        device: As in `build_network`.

    Raises:
        ValueError: There is no such configuration, or no network comes of it.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration_of(plans, name, file)
    manager = PlansManager(plans)
    where = f"{file}, configuration {name}"
    try:
        configuration = manager.get_configuration(name)
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        n_classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    except Exception as error:  # whatever nnU-Net's readers of plans may raise
        reason = shown(" ".join(str(error).split()))
        raise ValueError(f"{where}: nnU-Net cannot build a network from it ({reason}).") from error
    content = configuration.configuration
    network = build_network(content["architecture"], channels, n_classes, where, device)
    return Planned(network, manager.plans, content, dataset_json, n_classes)


def adapt_misfit(
    pretrained: transfer.Pretrained,
    comparison: transfer.Comparison,
    network: nn.Module,
    dataset_json: Mapping[str, Any],
    encoder_only: bool = False,
    wanted: bool = True,
    least: float = TrainingSettings.min_transferred,
    asking: Asking = SETTING,
) -> Adaptation | None:
    """Fit a file to a network if it does not fit as it is.

    Args:
        pretrained: The file.
        comparison: Its comparison with the network and its plans.
        network: The network.
        dataset_json: Content of the dataset's `dataset.json`.
        encoder_only: Whether only the encoder's weights are wanted.
        wanted: Whether the user has asked for it.
        least: Least share of the encoder's parameters that must come from the file.
        asking: How to ask for it.

    Returns:
        The tensors to take; None if the file fits.

    Raises:
        ValueError: It does not fit, and must not or cannot be adapted.
    """
    if not comparison.refusals:
        return None
    misfit = "; ".join(comparison.refusals)
    refused = f"{pretrained.file} does not fit this dataset and its plans: {misfit}."
    if not comparison.adaptable:
        raise ValueError(refused)
    if not wanted:
        raise ValueError(
            f"{refused} {asking.kind} {asking.adapt} takes what can be made to fit.{comparison.remedy}"
        )
    adaptation = transfer.adapted(pretrained, network, dataset_json, encoder_only)
    if not adaptation.tensors or adaptation.share < least:
        table = "\n".join(f"  {line}" for line in adaptation.table())
        raise ValueError(
            f"{refused} With {asking.adapt} {adaptation.share:.0%} of the encoder's parameters come from the file, "
            f"{asking.least}{least:g} asks for more:\n{table}"
        )
    return adaptation


def adaptation_in_words(
    comparison: transfer.Comparison, adaptation: Adaptation, asking: Asking = SETTING
) -> list[str]:
    """Return what was adapted and why, with a line for each tensor."""
    return [
        f"{asking.adapt}: {'; '.join(comparison.refusals)}",
        *(f"  {line}" for line in adaptation.table()),
        f"Adapted: {adaptation.summary}.",
    ]


@torch.no_grad()
def filled_weights(planned: Planned, adaptation: Adaptation) -> dict[str, Tensor]:
    """Return a network's weights for a file: float32 where they come from another, else fresh and float16."""
    own = planned.network.state_dict()
    for key, tensor in adaptation.tensors.items():
        own[key].copy_(tensor)
    return transfer.as_stored(planned.network, adaptation.tensors.keys(), planned.n_classes)
