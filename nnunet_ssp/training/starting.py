"""What pretraining and fine-tuning share when they start from the weights of an earlier training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nnunet_ssp.cohort.cases import shown_subjects
from nnunet_ssp.console import count_of
from nnunet_ssp.files.contents import shown
from nnunet_ssp.training import chain, fitting, imagenet, transfer
from nnunet_ssp.training.adapters import Adaptation
from nnunet_ssp.training.base import SettingsTrainer
from nnunet_ssp.training.checks import of_unfinished
from nnunet_ssp.training.handover import TIMM


class StartingTrainer(SettingsTrainer):
    """A trainer whose network another training's file may fill.

    Attributes:
        pretrained: The file; None before it was checked, and without one.
        chain: Every training behind the weights, the first one first, see `chain.links_of`.
        seen_in_validation: Subjects of the fold's validation set that one of these has seen.
    """

    pretrained: transfer.Pretrained | None = None
    chain: list[chain.ChainLink]
    seen_in_validation: list[str]
    # Whether the network has the file's tensors before nnU-Net's loader runs.
    fills_itself = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.chain, self.seen_in_validation = [], []

    @property
    def natural(self) -> bool:
        """Whether the dataset is of natural images, which show no patients."""
        return self.dataset_json.get("natural_images") is True

    def open_pretrained(self) -> transfer.Pretrained | None:
        """Read the file of `-pretrained_weights` before nnU-Net's own loader, which runs code that a file holds."""
        file = self.pretrained_argument()
        if file is not None and file.startswith(TIMM):
            configuration, where = self.configuration_manager.configuration, self.plans_manager
            return imagenet.read_encoder(
                file.removeprefix(TIMM), configuration, where.plans_name, self.settings.trust
            )
        return None if file is None else transfer.read(file, self.settings.trust)

    def weights_read(self) -> dict[str, torch.Tensor] | None:
        if self.pretrained is None:
            return None
        return {} if self.fills_itself else self.pretrained.weights

    def compare_pretrained(
        self, pretrained: transfer.Pretrained, network: nn.Module, encoder_only: bool
    ) -> Adaptation | None:
        """Compare a file with this run's network and plans, and log the table.

        Args:
            pretrained: The file.
            network: The planned network.
            encoder_only: Whether only the encoder's weights are wanted.

        Returns:
            The tensors to take, if the file does not fit as it is and `adapt=yes` makes it fit.

        Raises:
            ValueError: It does not fit.
        """
        plans, configuration = self.plans_manager.plans, self.configuration_manager.configuration
        channels = transfer.channel_names(self.dataset_json)
        comparison = transfer.compare(pretrained, network, plans, configuration, channels)
        ssp = pretrained.ssp
        described = (
            f"{shown(ssp['method'])}, {ssp['counts']['slices']} slices"
            if ssp.keys() >= {"method", "counts"}
            else "no record"
        )
        table = "\n".join(f"  {line}" for line in comparison.table)
        doubts = of_unfinished(pretrained)
        notes = "".join(f"\n  note: {note}" for note in [*comparison.notes, *doubts])
        self.print_to_log_file(
            f"Pretrained weights {pretrained.file} ({described}):\n{table}{notes}"
        )
        settings = self.settings
        adaptation = fitting.adapt_misfit(
            *(pretrained, comparison, network, self.dataset_json, encoder_only),
            settings.adapt,
            settings.min_transferred,
        )
        if adaptation is not None:
            lines = fitting.adaptation_in_words(comparison, adaptation)
            self.print_to_log_file("\n".join(lines))
        return adaptation

    def take_chain(self, pretrained: transfer.Pretrained) -> None:
        """Refuse weights behind which any training has seen a test subject.

        Raises:
            ValueError: Names test subject and link.
        """
        self.pretrained = pretrained
        self.chain = chain.links_of(pretrained.ssp)
        chain.refuse_test_subjects(self.chain, self.cases)

    def check_validation(self, validation: Iterable[str]) -> None:
        """Log the chain, and warn of validation subjects that a training in it has seen.

        Args:
            validation: Cases that this fold holds out.
        """
        self.seen_in_validation = chain.seen_of(validation, self.chain, self.cases)
        if len(self.chain) > 1:
            lines = "\n".join(f"  {line}" for line in chain.chain_in_words(self.chain))
            self.print_to_log_file(f"Trainings behind these weights:\n{lines}")
        if self.seen_in_validation:
            names = shown_subjects(self.seen_in_validation, self.cases)
            self.warn_of_seen(len(self.seen_in_validation), f" ({', '.join(names[:5])})")

    def warn_of_seen(self, count: int, named: str = "") -> None:
        """Warn, now and at the end, of so many validation subjects that pretraining has seen.

        Args:
            count: Of these subjects, at least 1.
            named: Some of their names, in brackets after a blank; a checkpoint has none.
        """
        self.warn(
            f"pretraining has seen {count_of(count, 'subject')} of this fold's validation set{named}, so the "
            f"validation's Dice is too high. Pretrain on fold {self.fold} for a clean validation."
        )

    @torch.no_grad()
    def fill(self, network: nn.Module, adaptation: Adaptation) -> set[str]:
        """Copy a file's tensors into the network; nnU-Net's own loader then finds nothing to do.

        Returns:
            Every name of the tensors that were filled, aliases among them.
        """
        assert self.pretrained is not None
        own = network.state_dict()
        for key, tensor in adaptation.tensors.items():
            own[key].copy_(tensor)
        filled = {own[key].data_ptr() for key in adaptation.tensors}
        names = {key for key, tensor in own.items() if tensor.data_ptr() in filled}
        self.weights_from = str(self.pretrained.file)
        moved = transfer.moved(own, own.keys() - names)
        self.print_to_log_file(f"Loaded {self.weights_from}: {moved}")
        self.fills_itself = True
        return names

    def initialize(self) -> None:
        """Build everything. A network that has its weights is set aside until training starts.

        nnU-Net's loader, which runs next, asks for every tensor of `self.network` under its own name and shape.
        """
        super().initialize()
        if self.fills_itself:
            self._aside, self.network = self.network, nn.Module()
