from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunet_ssp.slices.drawing import (
    DRAW,
    FRAME,
    ORDER,
    VALIDATION,
    DeviceStore,
    SameSlice,
    SliceReader,
    SliceStore,
    batch_indices,
    epoch_order,
    fits_on_device,
    random_stream,
)
from nnunet_ssp.slices.store import StoredCase, write_case, write_index

CPU = torch.device("cpu")
SHAPES = [(3, 2, 10, 7), (2, 2, 6, 12), (4, 2, 9, 9)]


def check_canvas(store: SliceStore, indices: np.ndarray, canvas: torch.Tensor) -> None:
    assert canvas.dtype == torch.float16
    assert canvas.shape == (len(indices), store.channels, *store.sizes[indices].max(0))
    for row, index in enumerate(indices):
        name = store.names[store.case_of[index]]
        expected = np.load(store.folder / f"{name}.npy")[store.slice_of[index]]
        height, width = store.sizes[index]
        np.testing.assert_array_equal(canvas[row, :, :height, :width].numpy(), expected)
        outside = canvas[row].clone()
        outside[:, :height, :width] = 0
        assert (outside == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_slices_of_different_sizes_share_a_canvas_on_host_and_device(make_store, channels):
    store = make_store([(n, channels, *size) for n, _, *size in SHAPES])
    resident = DeviceStore(store, CPU)
    rng = np.random.default_rng(0)
    for indices in (np.arange(9), np.array([4]), rng.integers(0, 9, 6), np.array([8, 8, 0])):
        canvas = store.read(indices)
        check_canvas(store, indices, canvas)
        on_device = resident.read(indices)
        assert on_device.dtype == canvas.dtype
        assert torch.equal(on_device, canvas)


def test_pairs_of_slices_share_one_canvas_on_host_and_device(make_store):
    store = make_store(SHAPES)
    resident = DeviceStore(store, CPU)
    indices = np.array([[0, 3], [8, 8], [4, 1]])
    canvas = store.read(indices)
    assert canvas.shape == (3, 2, 2, 10, 12)
    assert canvas.dtype == torch.float16
    check_canvas(store, indices.reshape(-1), canvas.flatten(0, 1))
    assert torch.equal(resident.read(indices), canvas)
    assert torch.equal(resident.read(indices[:, ::-1]), canvas.flip(1))  # of any memory layout
    (read,) = SliceReader(store, CPU, False).steps(iter([indices]))
    assert torch.equal(read, canvas)


# Subject, slices, first slice, slices of the stack and base: the crop differs from frame to frame, and so may all else.
CASES = [
    ("anna", 3, 0, 5, "first"),
    ("bert", 3, 0, 5, "first"),
    ("anna", 4, 1, 5, "first"),
    ("anna", 2, 2, 5, "first"),
    ("anna", 3, 0, 6, "first"),  # another stack
    ("anna", 5, 0, 5, "last"),
    ("bert", 1, 2, 5, "first"),
]


@pytest.fixture
def frames_store(tmp_path):
    folder = tmp_path / "DatasetX" / "nnUNetPlans_2d_slices"
    index, bases = {}, {}
    for i, (_, n, start, depth, base) in enumerate(CASES):
        data = np.full((1, n, 3, 3), i, np.float32)
        index[f"c{i}"] = StoredCase(write_case(folder, f"c{i}", data), start, depth)
        bases[f"c{i}"] = base
    write_index(folder, {}, index)
    return SliceStore(folder, None, bases)


def test_frames_of_the_same_slice_by_hand(frames_store):
    same = SameSlice(frames_store, [case[0] for case in CASES])
    n = len(frames_store)
    place = [
        (CASES[frames_store.case_of[i]][0], *frames_store.positions[i].tolist()) for i in range(n)
    ]
    drawn = [same.draw(np.random.default_rng(seed), np.arange(n)).tolist() for seed in range(60)]
    for i in range(n):
        expected = {j for j in range(n) if place[j] == place[i]}
        assert {row[i] for row in drawn} == expected, place[i]
    alone = [i for i in range(n) if place.count(place[i]) == 1]
    assert 0 < len(alone) < n  # a slice without another frame is its own


def test_frames_are_drawn_uniformly_and_reproducibly(frames_store):
    same = SameSlice(frames_store, ["anna"] * len(CASES))
    members = [i for i in range(len(frames_store)) if (frames_store.positions[i] == (2, 5)).all()]
    assert len(members) == 6
    indices = np.full(6000, members[2])
    drawn = same.draw(np.random.default_rng(0), indices)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == members  # itself among them
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(drawn, same.draw(np.random.default_rng(0), indices))
    assert (drawn != same.draw(np.random.default_rng(1), indices)).any()


def test_another_frame_is_any_but_the_slice_itself(frames_store):
    same = SameSlice(frames_store, ["anna"] * len(CASES))
    members = [i for i in range(len(frames_store)) if (frames_store.positions[i] == (2, 5)).all()]
    for own in members:
        drawn = same.draw(np.random.default_rng(own), np.full(3000, own), other=True)
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == [i for i in members if i != own]
        assert stats.chisquare(counts).pvalue > 1e-4
    same = SameSlice(frames_store, [case[0] for case in CASES])
    n = len(frames_store)
    alone = same.counts[same.group] == 1
    assert (
        (same.draw(np.random.default_rng(0), np.arange(n), other=True) == np.arange(n)) == alone
    ).all()


def test_a_chosen_slice_shows_the_same_place_in_another_frame(frames_store):
    subjects = [case[0] for case in CASES]
    same = SameSlice(frames_store, subjects)
    indices = np.arange(len(frames_store))
    second = same.draw(np.random.default_rng(3), indices)
    np.testing.assert_array_equal(frames_store.positions[second], frames_store.positions)
    of = np.array(subjects)[frames_store.case_of]
    np.testing.assert_array_equal(of[second], of)
    assert (second != indices).any()


def test_nothing_stays_on_the_cpus_device_by_itself(make_store):
    assert fits_on_device(make_store(SHAPES), CPU) is False


@pytest.mark.parametrize("on_device", [False, True])
def test_the_reader_yields_the_plan_in_order_and_ends_with_it(make_store, on_device):
    store = make_store(SHAPES)
    plan = [np.array(i) for i in ([0, 8], [3, 4], [8, 1], [2], [5, 6])]
    read = list(SliceReader(store, CPU, on_device).steps(iter(plan)))
    assert len(read) == len(plan)
    for indices, canvas in zip(plan, read, strict=True):
        check_canvas(store, indices, canvas)
    assert list(SliceReader(store, CPU, on_device).steps(iter([]))) == []


def test_the_reader_yields_what_direct_reads_do_whoever_is_slower(make_store):
    store = make_store(SHAPES)
    plan = [np.array(i) for i in ([0, 8], [3, 4], [8, 1], [2, 7], [5, 6])]
    expected = [store.read(indices) for indices in plan]
    read = store.read
    for reading, working in ((0.0, 0.0), (0.02, 0.0), (0.0, 0.02)):

        def late(*arguments, seconds=reading):
            time.sleep(seconds)
            return read(*arguments)

        store.read = late
        steps = SliceReader(store, CPU, False).steps(iter(plan))
        for canvas, wanted in zip(steps, expected, strict=True):
            time.sleep(working)
            assert torch.equal(canvas, wanted)
    resident = SliceReader(store, CPU, True).steps(iter(plan))
    assert all(torch.equal(a, b) for a, b in zip(resident, expected, strict=True))


def test_a_slice_is_read_as_it_is_mapped(make_store):
    store = make_store(SHAPES)
    mapped = [store.array(store.case_of[i])[store.slice_of[i]] for i in range(len(store))]
    assert all(np.array_equal(store.slice(i), x) for i, x in enumerate(mapped))
    # A file that begins otherwise is still numpy's: it is mapped.
    case = store.folder / f"{store.names[0]}.npy"
    array = np.load(case)
    with case.open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    assert np.array_equal(store.slice(0), mapped[0])


def test_the_reader_reads_one_step_ahead_and_passes_errors_on(make_store):
    store = make_store(SHAPES)
    asked = []

    def plan():
        for indices in ([0], [1], [3], [2]):
            asked.append(indices)
            yield np.array(indices)

    (store.folder / "case1.npy").unlink()
    steps = SliceReader(store, CPU, False).steps(plan())
    next(steps)
    assert asked == [[0], [1]]
    next(steps)
    with pytest.raises(FileNotFoundError, match=r"case1\.npy cannot be read"):
        next(steps)


@given(
    n=st.integers(1, 60),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    lap=st.integers(0, 9),
)
def test_each_pass_visits_every_slice_at_most_once(n, part, seed, lap):
    size = 1 + int(part * (n - 1))
    steps = n // size
    visited = np.concatenate(
        [batch_indices(seed, step, n, size) for step in range(lap * steps, (lap + 1) * steps)]
    )
    assert len(visited) == steps * size == len(set(visited.tolist()))
    assert set(visited.tolist()) <= set(range(n))
    np.testing.assert_array_equal(visited, epoch_order(seed, lap, n)[: steps * size])


def test_an_order_is_a_function_of_seed_and_step():
    a, b = batch_indices(1, 17, 100, 8), batch_indices(1, 17, 100, 8)
    np.testing.assert_array_equal(a, b)
    assert a.tolist() != batch_indices(2, 17, 100, 8).tolist()
    assert epoch_order(1, 0, 100).tolist() != epoch_order(1, 1, 100).tolist()
    # drop_last leaves out other slices in each pass
    left = [set(range(10)) - set(epoch_order(0, e, 10)[:9].tolist()) for e in range(40)]
    assert len(set.union(*left)) == 10


@pytest.mark.parametrize("size", [11, 0])
def test_a_batch_larger_than_the_data_is_refused(size):
    message = rf"`batch_size` \(={size}\) must lie between 1 and the number of slices .*\(=10\)"
    with pytest.raises(ValueError, match=message):
        batch_indices(0, 0, 10, size)


def test_streams_are_independent():
    keys = [
        (seed, stream, number)
        for seed in range(4)
        for stream in (ORDER, DRAW, VALIDATION, FRAME)
        for number in range(4)
    ]
    values = np.stack([random_stream(*key).random(500) for key in keys])
    correlation = np.corrcoef(values) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.2  # 2,016 pairs of standard error 0.045
    again = np.stack([random_stream(*key).random(500) for key in keys])
    np.testing.assert_array_equal(values, again)
