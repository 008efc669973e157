from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor, nn

from nnunet_ssp.phantom import make_subject
from nnunet_ssp.training import probe
from nnunet_ssp.training.probe import LinearProbe, ProbeData, joint_maps, labelled_slices, ridge

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, masks: Mapping[str, np.ndarray], channels: int = 1) -> Path:
    """Cases with these (S, X, Y) masks; an image's value is its label, plus 100 per channel, plus a tenth per slice."""
    folder.mkdir(exist_ok=True)
    for case, mask in masks.items():
        image = mask + np.arange(len(mask))[:, None, None] / 10
        data = np.stack([image + 100 * c for c in range(channels)]).astype(np.float32)
        blocks = {"blocks": data.shape, "chunks": data.shape}
        blocks |= {"blocks_seg": (1, *mask.shape), "chunks_seg": (1, *mask.shape)}
        nnUNetDatasetBlosc2.save_case(data, mask[None], {}, str(folder / case), **blocks)
    return folder


def squares(slices: int = 6, size: int = 16, empty: int = 1) -> np.ndarray:
    """Masks with labels 1 and 3 in all but the first and last `empty` slices, and -1 in a corner."""
    mask = np.zeros((slices, size, size), dtype=np.int8)
    inner = mask[empty : slices - empty]
    inner[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    inner[:, size // 2 : 3 * size // 4, size // 4 : 3 * size // 4] = 3
    mask[:, :1, :1] = -1
    return mask


def two_frames(subjects: int) -> dict[str, str]:
    return {f"s{i:03d}_frame{t:02d}": f"s{i:03d}" for i in range(subjects) for t in (0, 9)}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    return lambda cases, **shape: write(tmp_path / "data", dict.fromkeys(cases, squares(**shape)))


class Fake(nn.Module):
    """An encoder that returns what a function makes of the images."""

    def __init__(self, make: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.make(x)


def pyramid(x: Tensor) -> list[Tensor]:
    """Maps of four stages."""
    return [x, *(F.avg_pool2d(x, 2**stage) for stage in (1, 2, 3))]


def shapes(n: int = 8, size: int = 64) -> ProbeData:
    """Rectangles of two classes at random places; the images are the labels."""
    rng = np.random.default_rng(0)
    labels = torch.zeros(n, size, size, dtype=torch.int64)
    for mask in labels:
        x, y = rng.integers(0, size - 32, 2)
        mask[x : x + 24, y : y + 32] = 1
        mask[x + 8 : x + 24, y + 8 : y + 24] = 2
    fit = torch.arange(n) < n // 2
    return ProbeData(labels[:, None].float(), labels, fit, ("case",) * n, by_subject=True)


def one_hot(x: Tensor) -> Tensor:
    return F.one_hot(x[:, 0].long(), 3).movedim(-1, 1).float()


# --- the slices


def test_slices_of_every_subject_and_case(folder):
    cases = two_frames(4)
    data = labelled_slices(folder(cases), cases, (16, 16), [1, 3], n=16)
    assert data.images.shape == (16, 1, 16, 16) and data.images.dtype == torch.float32
    assert data.labels.shape == (16, 16, 16) and data.labels.dtype == torch.int64
    assert data.fit.shape == (16,) and data.fit.dtype == torch.bool
    assert [data.cases.count(case) for case in cases] == [2] * 8
    assert list(data.cases) == sorted(data.cases)
    # The image tells label and slice: these belong together, and no slice comes twice.
    position = (data.images[:, 0, -1, -1] * 10).round().int()
    assert torch.equal(data.labels, squares_as_classes(position))
    assert len(set(zip(data.cases, position.tolist(), strict=True))) == 16
    assert set(position.tolist()) == {1, 2, 3, 4}  # the first and last slice are empty


def squares_as_classes(position: Tensor) -> Tensor:
    classes = {-1: 0, 0: 0, 1: 1, 3: 2}
    mask = torch.from_numpy(squares()[position]).long()
    return mask.apply_(lambda label: classes[label])


def test_the_same_slices_every_time(folder):
    cases = two_frames(5)
    where = folder(cases)
    first = labelled_slices(where, cases, (16, 16), [1, 3], n=7)
    second = labelled_slices(where, dict(reversed(cases.items())), (16, 16), [1, 3], n=7)
    assert first.cases == second.cases and len(first.cases) == 7
    assert torch.equal(first.images, second.images) and torch.equal(first.fit, second.fit)


@pytest.mark.parametrize("subjects", [2, 3, 5, 8])
def test_no_subject_on_both_sides(folder, subjects):
    cases = two_frames(subjects)
    data = labelled_slices(folder(cases), cases, (16, 16), [1, 3], n=16)
    sides = {
        side: {
            cases[case] for case, fit in zip(data.cases, data.fit, strict=True) if bool(fit) is side
        }
        for side in (True, False)
    }
    assert data.by_subject
    assert not sides[True] & sides[False]
    assert len(sides[True] | sides[False]) == subjects
    assert len(sides[True]) - len(sides[False]) in (0, 1)


def test_one_subject_alternates_its_slices(folder):
    cases = dict.fromkeys(("a", "b"), "subject")
    data = labelled_slices(folder(cases), cases, (16, 16), [1, 3])
    assert not data.by_subject
    assert data.fit.tolist() == [True, False] * 4


def test_of_many_subjects_few_files_are_read(folder, monkeypatch):
    cases = two_frames(40)
    where = folder(cases, slices=8, empty=0)
    read = []
    load = nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(
        nnUNetDatasetBlosc2,
        "load_case",
        lambda self, case: (read.append(case), load(self, case))[1],
    )
    data = labelled_slices(where, cases, (16, 16), [1, 3], n=20)
    assert set(read) == set(data.cases) and len(set(read)) == 20
    chosen = [int(cases[case][1:]) for case in data.cases]
    assert len(set(chosen)) == 20 and max(np.diff(chosen)) <= 4
    # Neither the phase nor the place along the stack is always the same.
    assert 6 <= sum(case.endswith("00") for case in data.cases) <= 14
    positions = (data.images[:, 0, -1, -1] * 10).round().int().tolist()
    assert len(set(positions)) >= 6


def test_empty_cases_are_passed_over_but_not_for_ever(tmp_path, monkeypatch):
    cases = two_frames(8)
    empty = {case: np.zeros((3, 8, 8), dtype=np.int8) for case in cases}
    where = write(tmp_path / "data", {**empty, "s003_frame09": squares(4, 8, empty=0)})
    data = labelled_slices(where, cases, (8, 8), [1, 3], n=4)
    assert data.cases == ("s003_frame09",) * 4 and not data.by_subject
    read = []
    monkeypatch.setattr(probe, "_read", lambda *a: (read.append(a[2]), torch.zeros(1, 3, 8, 8))[1])
    assert labelled_slices(where, cases, (8, 8), [1, 3], n=2) is None
    assert len(read) == 8


def test_fewer_slices_than_wanted(folder):
    cases = {"a": "1", "b": "2"}
    where = folder(cases, slices=3)
    assert len(labelled_slices(where, cases, (16, 16), [1, 3], n=32).cases) == 2
    assert labelled_slices(where, {"a": "1"}, (16, 16), [1, 3], n=32) is None


def test_nothing_labelled(folder):
    cases = two_frames(1)
    where = folder(cases)
    assert labelled_slices(where, {}, (16, 16), [1]) is None
    assert labelled_slices(where, cases, (16, 16), []) is None
    assert labelled_slices(where, cases, (16, 16), [2]) is None
    assert labelled_slices(where, cases, (4, 4), [1, 3]) is not None
    assert labelled_slices(where / "absent", {}, (16, 16), [1]) is None


def test_labels_count_in_the_order_given(folder):
    cases = two_frames(1)
    where = folder(cases)
    first, second, only = (
        labelled_slices(where, cases, (16, 16), o) for o in ([1, 3], [3, 1], [3])
    )
    assert torch.equal(first.labels, torch.tensor([0, 2, 1])[second.labels])
    assert torch.equal(first.labels == 2, only.labels == 1)
    assert (only.labels >= 0).all()


@pytest.mark.parametrize("size", [(8, 24), (24, 8), (9, 31), (16, 16)])
def test_patches_smaller_and_larger_than_the_slice(folder, size):
    cases = two_frames(1)
    where = folder(cases)
    data, whole = (labelled_slices(where, cases, s, [1, 3]) for s in (size, (16, 16)))
    assert data.images.shape[2:] == size and data.labels.shape[1:] == size
    canvas = np.pad(whole.labels.numpy(), ((0, 0), (8, 8), (8, 8)))
    x, y = ((32 - side + 1) // 2 for side in size)
    assert np.array_equal(data.labels.numpy(), canvas[:, x : x + size[0], y : y + size[1]])
    canvas = np.pad(whole.images.numpy(), ((0, 0), (0, 0), (8, 8), (8, 8)))
    assert np.array_equal(data.images.numpy(), canvas[..., x : x + size[0], y : y + size[1]])


def test_channels(tmp_path):
    where = write(tmp_path / "data", {"a": squares()}, channels=3)
    data = labelled_slices(where, {"a": "a"}, (16, 16), [1, 3])
    assert data.images.shape == (4, 3, 16, 16)
    assert torch.allclose(data.images[:, 2] - data.images[:, 0], torch.tensor(200.0))


@pytest.mark.parametrize("n", [1, 0, -3])
def test_n_is_at_least_two(tmp_path, n):
    with pytest.raises(ValueError, match=rf"`n` \(={n}\) must be at least 2"):
        labelled_slices(tmp_path, {"a": "a"}, (8, 8), [1], n=n)


def test_two_slices_are_enough(folder):
    cases = two_frames(3)
    data = labelled_slices(folder(cases), cases, (16, 16), [1, 3], n=2)
    assert data.fit.tolist() == [True, False]


@pytest.mark.parametrize("labels", [[0, 1], [1, 1], [-1]])
def test_labels_are_positive_and_different(tmp_path, labels):
    with pytest.raises(ValueError, match="must be positive and occur only once"):
        labelled_slices(tmp_path, {"a": "a"}, (8, 8), labels)


def test_a_case_that_cannot_be_read(folder):
    where = folder(["a"])
    with pytest.raises(ValueError, match="absent: cannot be read"):
        labelled_slices(where, {"absent": "subject"}, (8, 8), [1])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 100])
def test_any_beginning_is_spread(n):
    for number in range(5):
        order = probe._spread(range(n), number)
        assert sorted(order) == list(range(n))
        for first in (2, 4, 8):
            chosen = sorted(order[:first])
            gaps = np.diff([*chosen, chosen[0] + n])
            assert max(gaps) <= np.ceil(2 * n / first)
    assert probe._spread([], 3) == []


def test_dealing_is_lazy_and_even():
    taken = []

    def hand(name, n):
        for i in range(n):
            taken.append(f"{name}{i}")
            yield f"{name}{i}"

    dealt = probe._deal([hand("a", 3), hand("b", 0), hand("c", 1), hand("d", 9)])
    assert list(islice(dealt, 4)) == taken == ["a0", "c0", "d0", "a1"]
    assert list(islice(dealt, 3)) == ["d1", "a2", "d2"]


# --- the score


def test_features_that_hold_the_mask_score_one():
    assert LinearProbe(shapes(), CPU).score(Fake(lambda x: pyramid(one_hot(x)))) > 0.95
    assert LinearProbe(shapes(), CPU).score(Fake(lambda x: [one_hot(x)])) > 0.999


def test_noise_scores_low():
    def noise(x: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(int(x.sum()))
        return pyramid(torch.randn(len(x), 16, *x.shape[2:], generator=generator))

    assert LinearProbe(shapes(), CPU).score(Fake(noise)) < 0.2


def test_constant_features_score_low_and_are_no_trouble():
    for value in (0.0, 1.0, 1e6):
        constant = Fake(lambda x, value=value: pyramid(one_hot(x) * 0 + value))
        assert LinearProbe(shapes(), CPU).score(constant) < 0.2


def test_units_of_features_do_not_matter():
    def scaled(scale: float, shift: float) -> float:
        g = torch.Generator().manual_seed(0)
        mix = torch.randn(8, 3, generator=g)
        noisy = Fake(
            lambda x: pyramid(torch.einsum("fc,bcxy->bfxy", mix, one_hot(x)) * scale + shift)
        )
        return LinearProbe(shapes(), CPU).score(noisy)

    assert scaled(1, 0) > 0.9
    assert scaled(1e-3, 0) == pytest.approx(scaled(1, 0), abs=1e-3)
    assert scaled(1e3, 0) == pytest.approx(scaled(1, 0), abs=1e-3)
    assert scaled(1, 100) == pytest.approx(scaled(1, 0), abs=1e-2)


def test_dice_of_a_known_mistake():
    data = shapes(2)
    swapped = data.labels.clone()
    swapped[1][data.labels[1] == 2] = (
        0  # class 2 reads as background in the scored slice: 1 is right, 2 lost
    )
    encoder = Fake(lambda x: [one_hot(x)])
    assert LinearProbe(data, CPU).score(encoder) == pytest.approx(1)
    lost = replace(data, images=swapped[:, None].float())
    assert LinearProbe(lost, CPU).score(encoder) == pytest.approx(0.5)


def test_only_classes_that_the_scored_slices_have_count():
    data = shapes(4)
    labels = data.labels.clone()
    labels[2:][labels[2:] == 2] = 1
    part = replace(data, labels=labels, images=labels[:, None].float())
    assert LinearProbe(part, CPU).score(Fake(lambda x: [one_hot(x)])) == pytest.approx(1)
    labels[2:] = 0
    none = replace(data, labels=labels, images=labels[:, None].float())
    assert np.isnan(LinearProbe(none, CPU).score(Fake(lambda x: [one_hot(x)])))


def test_a_class_that_only_the_scored_slices_have():
    data = shapes(4)
    labels = data.labels.clone()
    labels[:2][labels[:2] == 2] = 0
    part = replace(data, labels=labels)
    assert 0 < LinearProbe(part, CPU).score(Fake(lambda x: [one_hot(x)])) < 0.9


def test_features_that_are_not_finite():
    assert np.isnan(LinearProbe(shapes(), CPU).score(Fake(lambda x: [one_hot(x) / 0])))


def test_maps_meet_at_the_third_stage():
    x = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    maps = pyramid(x)
    joined = joint_maps(Fake(lambda _: [m.bfloat16() for m in maps]), x)
    assert joined.shape == (2, 4, 8, 12) and joined.dtype == torch.float32
    assert torch.allclose(joined[:, :1], F.avg_pool2d(x.bfloat16().float(), 4), atol=1e-6)
    coarse = F.interpolate(maps[3].bfloat16().float(), (8, 12), mode="bilinear")
    assert torch.equal(joined[:, 3:], coarse)
    assert joint_maps(Fake(lambda _: maps[:2]), x).shape == (2, 2, 16, 24)


def test_ridge_equals_least_squares_with_extra_rows():
    rng = np.random.default_rng(0)
    n, f, k = 50, 4, 3
    x = rng.normal(3, [1, 5, 0.1, 2], size=(n, f))
    y, w = rng.normal(size=(n, k)), rng.uniform(0.5, 2, n)
    shift = rng.normal(size=f)
    z = np.hstack([x - shift, np.ones((n, 1)), y])
    weight, bias = ridge(torch.from_numpy((z * w[:, None]).T @ z), torch.from_numpy(shift))

    mean = np.average(x, axis=0, weights=w)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    root = np.sqrt(w)[:, None]
    # The penalty as rows of its own; the intercept, the last column, has none.
    rows = np.hstack([(x - mean) / std, np.ones((n, 1))]) * root
    penalty = np.hstack([np.sqrt(probe.RIDGE * w.sum()) * np.eye(f), np.zeros((f, 1))])
    expected, *_ = np.linalg.lstsq(
        np.vstack([rows, penalty]), np.vstack([y * root, np.zeros((f, k))]), rcond=None
    )
    assert np.allclose(weight.T, expected[:f] / std[:, None], atol=1e-9)
    assert np.allclose(bias, expected[f] - mean / std @ expected[:f], atol=1e-9)


def test_the_fit_is_the_weighted_regression_on_all_pixels():
    """Chunks, moments and class weights together, against a direct solution."""
    data = shapes(12)
    g = torch.Generator().manual_seed(1)
    kernel = torch.randn(5, 1, 3, 3, generator=g)
    encoder = Fake(lambda x: pyramid(F.conv2d(x, kernel, padding=1).square()))
    weight, bias = LinearProbe(data, CPU)._layer(encoder)

    fitted = data.labels[data.fit]
    x = joint_maps(encoder, data.images[data.fit]).double().movedim(1, -1).flatten(0, 2).numpy()
    soft = F.avg_pool2d(F.one_hot(fitted).movedim(-1, 1).double(), 4)
    y = soft.movedim(1, -1).flatten(0, 2).numpy()
    share = fitted.flatten().bincount().numpy() / fitted.numel()
    w = y @ share**-0.5
    mean = np.average(x, axis=0, weights=w)
    std = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    s, centre = (x - mean) / std, np.average(y, axis=0, weights=w)
    system = (s * w[:, None]).T @ s + probe.RIDGE * w.sum() * np.eye(s.shape[1])
    solution = np.linalg.solve(system, (s * w[:, None]).T @ (y - centre)) / std[:, None]
    assert np.allclose(weight.T, solution, atol=1e-3 * np.abs(solution).max())
    assert np.allclose(bias, centre - mean @ solution, atol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_an_encoder_of_nnunet_is_left_as_it_was(make_network, kind):
    encoder = make_network(kind, norm=nn.BatchNorm2d).encoder
    encoder.train()
    encoder.stages[0].eval()  # as a frozen stage
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    modes = [module.training for module in encoder.modules()]
    measure = LinearProbe(shapes(), CPU)
    score = measure.score(encoder)
    assert 0 < score < 1
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert measure.score(encoder) == LinearProbe(shapes(), CPU).score(encoder) == score


def test_the_mode_comes_back_after_an_error():
    def fail(x: Tensor) -> list[Tensor]:
        raise RuntimeError("no memory")

    encoder = Fake(fail).train()
    with pytest.raises(RuntimeError, match="no memory"):
        LinearProbe(shapes(), CPU).score(encoder)
    assert encoder.training


def test_only_the_forward_is_in_half_precision(make_network):
    encoder = make_network().encoder
    seen = []
    encoder.stages[0].register_forward_hook(
        lambda m, i, o: seen.append(torch.is_autocast_enabled("cpu"))
    )
    measure = LinearProbe(shapes(), CPU)
    full = measure.score(encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = measure.score(encoder)
        inside = measure._layer(Fake(pyramid))
    assert all(map(torch.equal, inside, measure._layer(Fake(pyramid))))
    assert seen == [False] * 2 + [True] * 2
    assert half == pytest.approx(full, abs=0.02)


def test_training_on_the_phantom_raises_the_score(make_network):
    """A network without training has some Dice, also of small structures; a few steps of supervision give it more."""
    images, labels, subject = [], [], []
    for i in range(6):
        made = make_subject(i, matrix=64, frames=2, slices=4)
        image = torch.from_numpy(made.image[..., made.ed].astype(np.float32)).movedim(2, 0)
        image = (image - image.mean()) / image.std()
        mask = torch.from_numpy(made.mask[..., made.ed].astype(np.int64)).movedim(2, 0)
        images.append(probe._centred(image[:, None], (64, 64)))
        labels.append(probe._centred(mask, (64, 64)))
        subject += [i] * 4
    x, y, rows = torch.cat(images), torch.cat(labels), torch.tensor(subject)
    data = ProbeData(x[rows < 4], y[rows < 4], rows[rows < 4] < 2, ("",) * 16, by_subject=True)
    measure = LinearProbe(data, CPU)
    network = make_network(outputs=4, features=(8, 16, 32, 32))
    untrained = measure.score(network.encoder)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(20):
        loss = F.cross_entropy(network(x[rows >= 4]), y[rows >= 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = measure.score(network.encoder)
    assert 0.1 < untrained < trained - 0.1
