from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from nnunet_ssp.bench.counting import LiveBytes
from nnunet_ssp.methods.parts import chunks as memory
from nnunet_ssp.methods.parts.chunks import Chunks, free_memory

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> nn.Module:
    """Sees no image when it looks at another: what exact chunks need."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.InstanceNorm2d(4, affine=True),
        nn.LeakyReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.InstanceNorm2d(8, affine=True),
        nn.LeakyReLU(),
    )


def images(n: int, side: int = 12) -> torch.Tensor:
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(n))


def over_the_whole_batch(pooled: torch.Tensor) -> torch.Tensor:
    """A loss in which every row meets every other."""
    z = pooled - pooled.mean(0)
    return (z @ z.T).logsumexp(1).mean()


def step(chunks: Chunks, x: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    chunks.network.zero_grad(set_to_none=True)
    parts = chunks.run(lambda rows: chunks.network(x[rows]).amax((2, 3)), len(x), x.device)
    loss = over_the_whole_batch(torch.cat(parts))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in chunks.network.parameters()]


# -- exactness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 10, 11, 64])
def test_chunks_of_any_size_have_the_gradient_of_one_pass(encoder, size):
    x = images(10)
    loss, expected = step(Chunks(None, encoder), x)
    chunked_loss, found = step(Chunks(size, encoder), x)
    assert chunked_loss == pytest.approx(loss, rel=1e-6)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    difference = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)]).norm()
    assert difference < 1e-5 * norm


@pytest.mark.parametrize(
    ("size", "pieces"), [(None, [(0, 7)]), (7, [(0, 7)]), (3, [(0, 3), (3, 6), (6, 7)])]
)
@pytest.mark.parametrize("gradient", [True, False])
def test_pieces_are_consecutive_and_computed_again_only_for_a_gradient(
    encoder, size, pieces, gradient
):
    x, asked = images(7), []

    def function(rows: slice) -> torch.Tensor:
        asked.append((rows.start, rows.stop))
        return encoder(x[rows]).mean((2, 3))

    with torch.set_grad_enabled(gradient):
        result = Chunks(size, encoder).run(function, 7, CPU)
    assert asked == pieces
    assert [len(part) for part in result] == [stop - start for start, stop in pieces]
    assert all(part.requires_grad == gradient for part in result)
    if gradient:
        torch.cat(result).sum().backward()
        again = asked[len(pieces) :]
        # A batch in one piece keeps its activations.
        assert sorted(again) == (pieces if len(pieces) > 1 else [])


# -- weighted sums ---------------------------------------------------------------------------------


def weighted(
    chunks: Chunks, x: torch.Tensor, factor: float = 1.0
) -> tuple[float, torch.Tensor, list[torch.Tensor | None], list[tuple[int, int]]]:
    """A step on a loss that is a weighted sum over the images; returns also the rows in the order of their passes."""
    asked: list[tuple[int, int]] = []

    def sums_of(rows: slice) -> torch.Tensor:
        asked.append((rows.start, rows.stop))
        maps = chunks.network(x[rows])
        return torch.stack([maps.square().sum(), maps.amax((2, 3)).sum()])

    chunks.network.zero_grad(set_to_none=True)
    weights = torch.tensor([0.3, -1.7], dtype=x.dtype)
    parameters = list(chunks.network.parameters())
    loss, sums = chunks.weighted_sum(sums_of, len(x), x.device, lambda: weights, parameters)
    assert not sums.requires_grad
    torch.testing.assert_close(loss, (weights * sums).sum())
    (factor * loss).backward()
    return loss.item(), sums, [p.grad for p in parameters], asked


@pytest.mark.parametrize("size", [1, 3, 5, 9, 10])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_a_weighted_sum_in_chunks_has_the_gradient_of_one_pass(encoder, size, factor):
    encoder, x = encoder.double(), images(10).double()
    loss, sums, expected, _ = weighted(Chunks(None, encoder), x, factor)
    chunked_loss, chunked_sums, found, asked = weighted(Chunks(size, encoder), x, factor)
    assert chunked_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(chunked_sums, sums)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert asked == [(start, min(start + size, 10)) for start in range(0, 10, size)]  # each once


@pytest.mark.parametrize(("switch", "value"), [("scaled", True), ("adds_up", False)])
def test_gradients_of_a_scaled_loss_are_taken_after_scaling(encoder, switch, value):
    """In float16 what is taken before would underflow, so chunks run again; also where a switch says so."""
    chunks, x = Chunks(4, encoder), images(8)
    *_, expected, once = weighted(chunks, x)
    setattr(chunks, switch, value)
    *_, found, twice = weighted(chunks, x)
    assert len(once) == 2 and len(twice) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_weighted_sum_leaves_out_what_needs_no_gradient(encoder):
    encoder[0].requires_grad_(False)
    encoder.append(nn.Linear(3, 3))  # not used below
    chunks, x = Chunks(2, encoder), images(4)
    used = encoder[:-1]
    loss, _ = chunks.weighted_sum(
        lambda rows: used(x[rows]).square().sum()[None],
        4,
        CPU,
        lambda: torch.ones(1),
        list(encoder.parameters()),
    )
    loss.backward()
    have = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert have == {f"{layer}.{kind}" for layer in (1, 3, 4) for kind in ("weight", "bias")}
    with torch.no_grad():
        loss, _ = chunks.weighted_sum(
            lambda rows: x[rows].sum()[None], 4, CPU, lambda: torch.ones(1), []
        )
    assert not loss.requires_grad


# -- memory ----------------------------------------------------------------------------------------


def peak_bytes(chunks: Chunks, n: int) -> int:
    x = images(n, 24)  # what the batch itself takes is not counted
    step(chunks, images(2))  # gradients exist from here on
    with LiveBytes() as bytes_:
        pooled = torch.cat(
            chunks.run(lambda rows: chunks.network(x[rows]).mean((2, 3)), n, x.device)
        )
        pooled.square().sum().backward()
    return bytes_.peak


def test_the_peak_does_not_grow_with_the_batch(encoder):
    small, large = (peak_bytes(Chunks(16, encoder), n) for n in (64, 1024))
    assert small > 16 * 24 * 24 * 4 * 4  # one map of one chunk, at least
    assert large < 1.2 * small
    # The same count sees a batch in one piece grow.
    small, large = (peak_bytes(Chunks(None, encoder), n) for n in (16, 128))
    assert large > 7 * small


def test_the_peak_of_a_weighted_sum_does_not_grow_with_the_batch(encoder):
    def peak(chunks: Chunks, n: int) -> int:
        x = images(n, 24)
        weighted(chunks, images(2))
        with LiveBytes() as bytes_:
            weighted(chunks, x)
        return bytes_.peak

    small, large = (peak(Chunks(16, encoder), n) for n in (64, 1024))
    assert large < 1.2 * small
    assert peak(Chunks(None, encoder), 128) > 4 * small


def test_saved_bytes_grow_with_the_images(encoder):
    chunks, x = Chunks("auto", encoder), images(8)
    saved = [
        chunks._saved_bytes(lambda rows: encoder(x[rows]).mean((2, 3)), n) for n in (1, 2, 4, 8)
    ]
    each = saved[1] - saved[0]
    # The first convolution's input and output, the norm's output; a quarter of the pixels and 8 maps after it.
    assert each >= 4 * (144 + 2 * 4 * 144 + 2 * 8 * 36)
    assert each <= 2 * 4 * (144 + 3 * 4 * 144 + 3 * 8 * 36)
    assert saved[2] - saved[1] == 2 * each
    assert saved[3] - saved[2] == 4 * each


def test_weights_are_not_counted():
    torch.manual_seed(0)
    wide = nn.Linear(1000, 1000)
    x = torch.zeros(2, 1000, requires_grad=True)
    assert Chunks("auto", wide)._saved_bytes(lambda rows: wide(x[rows]), 1) < 10_000


# -- auto ------------------------------------------------------------------------------------------


def choose(encoder: nn.Module, free: float, monkeypatch, n: int = 8) -> tuple[Chunks, float]:
    """Return what `auto` chose with room for `free` images, and what an image takes."""
    chunks, x = Chunks("auto", encoder), images(n)

    def function(rows: slice) -> torch.Tensor:
        return encoder(x[rows]).mean((2, 3))

    each = chunks._saved_bytes(function, 2) - chunks._saved_bytes(function, 1)
    monkeypatch.setattr(memory, "free_memory", lambda device: int(free * each / memory.SHARE) + 1)
    chunks.run(function, n, CPU)
    return chunks, each


@pytest.mark.parametrize(
    ("free", "size"), [(0, 1), (0.9, 1), (1, 1), (3.9, 2), (4, 4), (7.9, 4), (100, 64)]
)
def test_auto_takes_the_largest_power_of_two_that_fits(encoder, monkeypatch, free, size):
    chunks, each = choose(encoder, free, monkeypatch)
    assert chunks.size == size
    if size >= 8:  # one chunk: nothing to tell
        assert chunks.note == ""
        return
    assert chunks.note == (
        f"chunk_size=auto: 8 images pass in {8 // size} chunks of {size}, which memory has room for "
        f"({each / 2**20:.1f} MiB of activations an image, 0.0 GiB free)"
    )


def test_auto_chooses_once(encoder, monkeypatch):
    chunks, _ = choose(encoder, 2, monkeypatch)
    monkeypatch.setattr(memory, "free_memory", lambda device: pytest.fail("asked again"))
    loss, found = step(chunks, images(6))
    assert chunks.size == 2
    expected_loss, expected = step(Chunks(None, encoder), images(6))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_auto_measures_without_a_trace(encoder, monkeypatch):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():  # a validation may come first
        chunks, _ = choose(encoder, 4, monkeypatch)
        assert not torch.is_grad_enabled()
    assert chunks.size == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert all((p.grad == 1).all() for p in encoder.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in encoder.state_dict().items())


def test_auto_waits_for_a_batch_that_tells_something(encoder):
    chunks = Chunks("auto", encoder)
    x = images(1)
    (part,) = chunks.run(lambda rows: encoder(x[rows]), 1, CPU)
    assert len(part) == 1
    assert (chunks.size, chunks.note) == (0, "")
    step(chunks, images(4))
    assert chunks.size >= 4  # this machine has memory for that
    assert chunks.note == ""


# -- batch statistics ------------------------------------------------------------------------------


def test_chunks_of_a_network_with_batchnorm_are_refused():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    message = re.escape("`chunk_size` (=8) must be none or auto: these plans use BatchNorm")
    with pytest.raises(ValueError, match=message):
        Chunks(8, network)
    x = images(6)
    for setting in ("auto", None):
        chunks = Chunks(setting, network)
        (whole,) = chunks.run(lambda rows: network(x[rows]), 6, CPU)
        assert len(whole) == 6
        assert ("BatchNorm" in chunks.note) == (setting == "auto")


# -- free memory -----------------------------------------------------------------------------------


def test_free_memory_is_what_the_system_and_its_limits_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_system_memory", lambda: 300)
    monkeypatch.setattr(memory, "_cgroup_memory", lambda: 200)
    assert free_memory(CPU) == 200
    monkeypatch.setattr(memory, "_cgroup_memory", lambda: None)
    assert free_memory(CPU) == 300
    monkeypatch.setattr(memory, "_system_memory", lambda: None)
    assert free_memory(CPU) == memory.UNKNOWN


def test_what_linux_says_of_free_memory(tmp_path, monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal:  100 kB\nMemFree:  5 kB\nMemAvailable:   40 kB\n",
        "/sys/fs/cgroup/memory.max": "30000\n",
        "/sys/fs/cgroup/memory.current": "10000\n",
        "/sys/fs/cgroup/memory.stat": "anon 6000\ninactive_file 3000\nactive_file 1000\n",
    }

    def read_text(path, *_):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    assert free_memory(CPU) == 23_000  # pages of files that nobody uses can be dropped
    files["/sys/fs/cgroup/memory.current"] = "34000\n"  # over its limit
    assert free_memory(CPU) == 0
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory(CPU) == 40 * 1024
    del files["/sys/fs/cgroup/memory.max"]
    assert free_memory(CPU) == 40 * 1024
    del files["/proc/meminfo"]
    assert free_memory(CPU) == memory.UNKNOWN
