"""Our encoder and images with lightly's transforms, heads and losses."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules import DINOProjectionHead, SimCLRProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms import DINOTransform, SimCLRTransform
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from nnunet_ssp.parallel import available_cores

GREY = {"mean": [0.5], "std": [0.25]}
STEPS = 3  # of a pass over the data
MOST_WORKERS = 12  # as nnU-Net


class Images(Dataset[list[Tensor]]):
    """Slices as the 8-bit images that lightly takes, and their views."""

    def __init__(self, slices: Sequence[NDArray[Any]], transform: Any) -> None:
        self.images = [_grey(x) for x in slices]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[index])
        return views


def _grey(x: NDArray[Any]) -> Image.Image:
    x = x.astype(np.float32)
    return Image.fromarray(np.uint8(255 * (x - x.min()) / max(np.ptp(x), 1e-6)))


class Peer(ABC):
    """A training with lightly that does the work of one of our trainers.

    A subclass gives `transform`, `heads` and `loss`.

    Args:
        trainer: Our trainer, at its first step.

    Attributes:
        steps: Steps of a pass.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.settings = s = trainer.settings
        self.device = trainer.device
        self.encoder: Any = copy.deepcopy(trainer.method.network.encoder)
        self.width = self.encoder.output_channels[-1]
        trained = nn.ModuleList([self.encoder, *self.heads()]).to(self.device)
        parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            parameters, s.initial_lr, s.momentum, weight_decay=s.weight_decay
        )
        if trainer._do_i_compile():
            self.encoder.compile(dynamic=False)
        cuda = self.device.type == "cuda"
        slices = [trainer.store.read(np.array([i]))[0, 0] for i in range(len(trainer.store))]
        images = Images([x.numpy() for x in slices], self.transform())
        # On a CPU the bench counts the core-seconds of this process only.
        workers = min(available_cores(), MOST_WORKERS) if cuda else 0
        # Long compared with the start of the workers, and with the batches that they make ahead.
        self.steps = STEPS * max(1, 2 * workers)
        self.loader: DataLoader[list[Tensor]] = DataLoader(
            images,
            trainer.batch_size,
            sampler=RandomSampler(images, num_samples=self.steps * trainer.batch_size),
            num_workers=workers,
            pin_memory=cuda,
        )

    @abstractmethod
    def transform(self) -> Any:
        """Make the transform from an image to its views."""

    @abstractmethod
    def heads(self) -> list[nn.Module]:
        """Make what follows the encoder; called once."""

    @abstractmethod
    def loss(self, views: list[Tensor]) -> Tensor:
        """Compute the loss of views on the device."""

    def embed(self, encoder: Any, views: list[Tensor]) -> Tensor:
        """Encode views of one size, joined along the batch."""
        features: Tensor = encoder(torch.cat(views))[-1].mean((2, 3)).float()
        return features

    def step(self, views: list[Tensor]) -> None:
        """Train one step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.trainer.autocast():
            loss = self.loss([view.to(self.device, non_blocking=True) for view in views])
        loss.backward()
        self.optimizer.step()

    def one_pass(self) -> None:
        """Train `steps` batches, from the start of the loader's workers to their end."""
        for views in self.loader:
            self.step(views)


class SimCLRPeer(Peer):
    """SimCLR (Chen et al.) as lightly implements it."""

    def transform(self) -> Any:
        return SimCLRTransform(self.trainer.method.patch_size[0], normalize=GREY)

    def heads(self) -> list[nn.Module]:
        wide = self.settings.head_width
        self.head = SimCLRProjectionHead(self.width, wide, wide, num_layers=3)
        self.contrast = NTXentLoss(self.settings.temperature)
        return [self.head]

    def loss(self, views: list[Tensor]) -> Tensor:
        loss: Tensor = self.contrast(*self.head(self.embed(self.encoder, views)).chunk(2))
        return loss


class DINOPeer(Peer):
    """DINO (Caron et al.) as lightly implements it."""

    def transform(self) -> Any:
        method = self.trainer.method
        return DINOTransform(
            method.patch_size[0],
            local_crop_size=method.local_size[0],
            n_local_views=self.settings.local_crops,
            normalize=GREY,
        )

    def heads(self) -> list[nn.Module]:
        s = self.settings
        self.head, head = (
            DINOProjectionHead(self.width, s.head_width, s.head_bottleneck, s.out_dim)
            for _ in range(2)
        )
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False).to(self.device)
        self.teacher_head = head.requires_grad_(False).to(self.device)
        self.distil = DINOLoss(s.out_dim).to(self.device)
        return [self.head]

    def loss(self, views: list[Tensor]) -> Tensor:
        update_momentum(self.encoder, self.teacher, self.settings.teacher_momentum)
        update_momentum(self.head, self.teacher_head, self.settings.teacher_momentum)
        with torch.no_grad():
            wanted = self.teacher_head(self.embed(self.teacher, views[:2]))
        crops = [self.embed(self.encoder, views[:2])]
        if len(views) > 2:
            crops.append(self.embed(self.encoder, views[2:]))
        student = self.head(torch.cat(crops))
        loss: Tensor = self.distil(wanted.chunk(2), student.chunk(len(views)))
        return loss


PEERS: dict[str, type[Peer]] = {"SimCLR": SimCLRPeer, "DINO": DINOPeer}
