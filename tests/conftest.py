from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from hypothesis import settings
from torch import nn

from nnunet_ssp.methods import Batch, Method
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.slices.store import StoredCase, write_case, write_index


def pytest_configure() -> None:
    """Hear Ctrl-C as in a terminal: where a shell runs tests as `command &` it is ignored, also by what they start.

    No test fails because a machine is busy: Hypothesis' limit of 200 ms for an example is off.
    """
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, or a process would end with them while the others wait; heavy ones are slow."""
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real cine in the layout described where the variable is set (never part of the project)."""
    folder = os.environ.get("NNUNET_SSP_REAL_DATA")
    if not folder:
        pytest.skip("NNUNET_SSP_REAL_DATA is not set: no real cine to test on")
    if not Path(folder).is_dir():
        pytest.skip(f"NNUNET_SSP_REAL_DATA (={folder}) is no folder")
    return Path(folder).resolve()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny networks: their threads wait for each other longer than they work, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _make_network(
    kind: str = "plain",
    channels: int = 1,
    outputs: int = 1,
    seed: int = 0,
    features: Sequence[int] = (4, 8, 8),
    norm: type[nn.Module] = nn.InstanceNorm2d,
) -> nn.Module:
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "input_channels": channels,
        "n_stages": len(features),
        "features_per_stage": list(features),
        "conv_op": nn.Conv2d,
        "kernel_sizes": 3,
        "strides": [1] + [2] * (len(features) - 1),
        "num_classes": outputs,
        "n_conv_per_stage_decoder": [1] * (len(features) - 1),
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "deep_supervision": False,
    }
    network: nn.Module
    if kind == "plain":
        network = PlainConvUNet(n_conv_per_stage=[2] * len(features), **common)
    else:
        network = ResidualEncoderUNet(n_blocks_per_stage=[1] * len(features), **common)
    network.apply(network.initialize)
    return network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., nn.Module]:
    """A tiny network of the kind nnU-Net plans: `plain` or `residual`, initialised as nnU-Net does."""
    return _make_network


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., SliceStore]:
    """A slice store with one case of random values per given (slices, channels, rows, columns)."""

    def make(shapes: Sequence[tuple[int, int, int, int]], seed: int = 0) -> SliceStore:
        rng = np.random.default_rng(seed)
        folder = tmp_path / "DatasetX" / "nnUNetPlans_2d_slices"
        index = {}
        for number, (n, c, rows, columns) in enumerate(shapes):
            data = rng.normal(size=(c, n, rows, columns)).astype(np.float32)
            index[f"case{number}"] = StoredCase(
                write_case(folder, f"case{number}", data), first_slice=1, n_slices=n + 2
            )
        write_index(folder, {"spacing": [1.25, 1.25]}, index)
        return SliceStore(folder)

    return make


def _make_batch(
    method: Method, sizes: Sequence[tuple[int, int]], seed: int = 0, canvas: int = 0
) -> Batch:
    rng = np.random.default_rng(seed)
    table = np.array(sizes, dtype=np.int64)
    rows, columns = np.maximum(table.max(0), canvas)
    slices = torch.zeros(len(table), method.channels, rows, columns)
    for number, (height, width) in enumerate(sizes):
        values = rng.normal(size=(method.channels, height, width)).cumsum(1).cumsum(2)
        values = (values - values.mean()) / values.std()
        slices[number, :, :height, :width] = torch.from_numpy(values)
    number = torch.arange(len(table)) % 12
    positions = torch.stack([number, torch.full_like(number, 12)], 1)
    return Batch(slices, torch.from_numpy(table), method.draw(rng, table), positions)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """A batch of smooth random slices of the given sizes, drawn for a method."""
    return _make_batch
