"""N ranks with parts of a batch equal one process with the whole of it: loss, gradients and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ssp.distributed import (
    device_of_rank,
    gather_rows,
    joined,
    launched,
    launching_words,
    rank,
    require_equal_ranks,
    share,
    sum_over_ranks,
    with_global_statistics,
    world_size,
)
from nnunet_ssp.methods import (
    MIM,
    PCL,
    Batch,
    ContextPrediction,
    ContextRestoration,
    Dense,
    DenseSettings,
    InpaintingSettings,
    Method,
    MIMSettings,
    PCLSettings,
    SimCLR,
    SimCLRSettings,
)
from tests.ranks import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

# Slices smaller than the patch have fewer pixels that count, so a plain mean over ranks would be wrong; and neither 2
# nor 3 ranks have equal shares of 5.
SIZES = np.array([[8, 30], [32, 32], [40, 9], [16, 16], [50, 40]])
# Positives of one rank's slices lie on others: the first and the last two are near.
POSITIONS = torch.tensor([[3, 11], [0, 12], [9, 12], [4, 14], [5, 17]])
METHODS: dict[str, tuple[type[Method], Any]] = {
    "mim": (MIM, MIMSettings(coarse_heads=True)),
    "prediction": (ContextPrediction, InpaintingSettings(chunk_size=1)),
    "restoration": (ContextRestoration, InpaintingSettings(loss_region="corrupted")),
    "simclr": (SimCLR, SimCLRSettings(head_width=16, chunk_size=2)),
    "simclr, second frames": (SimCLR, SimCLRSettings(head_width=16, pairs="frame", pooling="max")),
    "pcl": (PCL, PCLSettings(head_width=16, head_norm="none")),
    "dense": (Dense, DenseSettings(head_width=8, points=8, levels=1)),
}


def make(name: str) -> Method:
    torch.manual_seed(0)
    network = PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv2d, 3, [1, 2, 2], 1, 1, 1, True, nn.InstanceNorm2d,
        {"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    made, settings = METHODS[name]
    return made(network, settings, (32, 32), 1)


def batch(made: Method) -> Batch:
    # With this seed no slice is hidden as a whole: instance norm blows rounding up where an input is constant.
    rng = np.random.default_rng(0)
    sizes = np.stack([SIZES, SIZES[::-1]], 1) if made.second_frames else SIZES
    slices = torch.zeros(*sizes.shape[:-1], 1, 50, 40)
    for place in np.ndindex(sizes.shape[:-1]):
        height, width = sizes[place]
        slices[place][0, :height, :width] = torch.from_numpy(rng.normal(size=(height, width)))
    return Batch(slices, torch.from_numpy(sizes.copy()), made.draw(rng, sizes), POSITIONS)


def step(made: nn.Module, part: Batch) -> dict[str, torch.Tensor]:
    output = made(part)
    output["loss"].backward()
    return {k: v.detach() for k, v in output.items()}


def gradients(made: Method) -> dict[str, torch.Tensor]:
    return {k: p.grad for k, p in made.named_parameters() if p.grad is not None}


def train_one_rank(ranks: int) -> dict[str, Any]:
    """All that needs several processes, in one start of them: importing packages takes them seconds."""
    found: dict[str, Any] = {}
    for name in METHODS:
        made = make(name)
        rows = np.array_split(np.arange(len(SIZES)), ranks)[rank()]
        whole = batch(made)
        wrapped = nn.parallel.DistributedDataParallel(made)
        output = step(wrapped, whole.share(slice(int(rows[0]), int(rows[-1]) + 1)))
        mean = {k: sum_over_ranks(v) / world_size() for k, v in output.items()}
        found[name] = output, mean, gradients(made)
    try:
        cases = ["a", "b"] if rank() == 0 else ["a"]
        require_equal_ranks({"seed": min(rank(), 1), "batch_size": 4, "cases": cases})
    except ValueError as error:
        found["differing"] = str(error)
    require_equal_ranks({"seed": 0})
    for total in (5, 7):
        rows = torch.arange(total * 6.0).reshape(total, 2, 3)
        own = rows[share(total)].clone().requires_grad_()
        gathered = gather_rows(own, total)
        (rows * gathered).sum().backward()
        refused = ""
        try:
            gather_rows(rows, total)
        except ValueError as error:
            refused = str(error)
        numbers = gather_rows(torch.arange(total)[share(total)], total)
        found[f"gather {total}"] = gathered.detach(), own.grad, numbers, refused
    return found


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.heavy])]
)
def trained(request, tmp_path_factory) -> tuple[int, list[dict[str, Any]]]:
    ranks = request.param
    return ranks, on_ranks(train_one_rank, ranks, tmp_path_factory.mktemp("ranks"), ranks)


@pytest.mark.parametrize("name", METHODS)
def test_ranks_equal_one_process(trained: tuple[int, list[dict[str, Any]]], name: str) -> None:
    _, outputs = trained
    made = make(name)
    whole = batch(made)
    expected = step(made, whole)
    reference = gradients(made)
    largest = max(float(g.abs().max()) for g in reference.values())
    for output in outputs:
        _, mean, found = output[name]
        assert mean.keys() == expected.keys()
        for key, value in expected.items():
            assert float(mean[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), key
        assert found.keys() == reference.keys()
        assert len(found) == len([p for p in made.parameters() if p.requires_grad])
        for key, gradient in reference.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", [k for k, (made, _) in METHODS.items() if not made.reconstructs])
def test_every_rank_sees_the_loss_and_the_figures_of_the_global_batch(
    trained: tuple[int, list[dict[str, Any]]], name: str
) -> None:
    _, outputs = trained
    for output in outputs:
        own, mean, _ = output[name]
        for key, value in mean.items():
            assert float(own[key]) == pytest.approx(float(value), rel=1e-6), key
    # A part of the batch alone would have another loss: the comparison can fail.
    made = make(name)
    part = batch(made).share(slice(0, 3))
    part.total = 3
    assert abs(float(step(made, part)["loss"]) - float(outputs[0][name][1]["loss"])) > 0.05


def test_positives_are_those_of_the_global_batch(
    trained: tuple[int, list[dict[str, Any]]],
) -> None:
    # 3/11, 4/14 and 5/17 are near each other, and lie on the first and the last rank.
    expected = (3 * 5 + 2 * 1) / 5
    for output in trained[1]:
        assert float(output["pcl"][0]["positives_per_view"]) == pytest.approx(expected)


@pytest.mark.parametrize("total", [5, 7])
def test_rows_are_gathered_in_order_and_gradients_go_home(
    trained: tuple[int, list[dict[str, Any]]], total: int
) -> None:
    ranks, outputs = trained
    rows = torch.arange(total * 6.0).reshape(total, 2, 3)
    own = []
    for output in outputs:
        gathered, gradient, numbers, refused = output[f"gather {total}"]
        assert torch.equal(gathered, rows)
        assert numbers.tolist() == list(range(total))
        own.append(gradient)
        size = len(gradient)
        assert f"`x` must have this rank's {size} of {total} rows, not {total}." in refused
    # DDP will divide by the number of ranks.
    assert torch.equal(torch.cat(own), ranks * rows)


def test_ranks_that_differ_are_named_on_every_rank(
    trained: tuple[int, list[dict[str, Any]]],
) -> None:
    for output in trained[1]:
        assert output["differing"] == (
            "rank 1 differs from rank 0, and all ranks must train alike: seed: 0 on rank 0, 1 on rank 1; "
            "cases: 2 on rank 0, 1 on rank 1; b differs."
        )


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched()
    with joined(torch.device("cpu")):
        assert world_size() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert launched()
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 3)
    words = "torchrun --nnodes 1 --nproc-per-node 4 --standalone --no-python"
    assert " ".join(launching_words()) == words
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert "--nnodes 2" in " ".join(launching_words())


def test_shares_are_consecutive_and_differ_by_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in (1, 2, 3, 5, 8):
        monkeypatch.setattr("nnunet_ssp.distributed.world_size", lambda n=ranks: n)
        for total in (1, 5, 7, 8, 64):
            parts = [share(total, number) for number in range(ranks)]
            rows = [i for part in parts for i in range(total)[part]]
            assert rows == list(range(total))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert sizes == [len(part) for part in np.array_split(np.arange(total), ranks)]


def test_a_single_process_needs_no_group() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    assert world_size() == 1
    assert rank() == 0
    total = sum_over_ranks(x)
    assert total.item() == 2
    assert not total.requires_grad
    assert gather_rows(x, 1) is x
    with pytest.raises(ValueError, match=r"`x` must have this rank's 2 of 2 rows, not 1\."):
        gather_rows(x, 2)


def test_statistics_over_ranks_keep_the_names(make_network):
    network = make_network(norm=torch.nn.BatchNorm2d)
    names = list(network.state_dict())
    assert with_global_statistics(network, False) is network
    converted = with_global_statistics(network, True)
    kinds = {type(m).__name__ for m in converted.modules()}
    assert "SyncBatchNorm" in kinds and "BatchNorm2d" not in kinds
    assert list(converted.state_dict()) == names
    # One module under two names stays one.
    assert converted.encoder is converted.decoder.encoder


def test_statistics_over_ranks_keep_the_activations_of_timm():
    import timm

    network = timm.create_model("efficientnet_b0", features_only=True)
    active = [m for m in network.modules() if isinstance(getattr(m, "act", None), torch.nn.SiLU)]
    converted = with_global_statistics(network, True)
    kept = [m for m in converted.modules() if isinstance(getattr(m, "act", None), torch.nn.SiLU)]
    assert len(active) == len(kept) > 10
