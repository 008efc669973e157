from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.methods import PCL, Batch, PCLSettings, SimCLR, SimCLRSettings
from nnunet_ssp.methods.parts.losses import contrastive_loss
from nnunet_ssp.methods.pcl import near
from nnunet_ssp.settings import override
from nnunet_ssp.slices.drawing import SliceStore

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (32, 32)
SMALL = [(20, 40), (32, 24), (48, 48), (28, 28), (40, 33)]
POSITIONS = torch.tensor([[3, 11], [4, 11], [0, 8], [7, 20], [8, 20]])


@pytest.fixture
def make_pcl(make_network):
    def make(channels=1, method=PCL, **changes):
        network = make_network(channels=channels, outputs=3)
        torch.manual_seed(1)
        s = method.settings_class(**{"batch_size": 5, "head_width": 16, **changes})
        return method(network, s, PATCH, channels)

    return make


@pytest.fixture
def make_pcl_batch(make_batch):
    def make(method: SimCLR, positions: torch.Tensor = POSITIONS, seed: int = 0) -> Batch:
        return replace(make_batch(method, SMALL, seed), positions=positions)

    return make


def stack(n: int) -> torch.Tensor:
    number = torch.arange(n)
    return torch.stack([number, torch.full_like(number, n)], 1)


def pairs(found: torch.Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i, j in found.nonzero().tolist() if i < j]


# -- which slices are near -------------------------------------------------------------------------


@st.composite
def tables(draw) -> list[tuple[int, int]]:
    depths = draw(st.lists(st.integers(2, 40), min_size=1, max_size=8))
    return [(draw(st.integers(0, n - 1)), n) for n in depths]


@settings(deadline=None)
@given(
    table=tables(),
    threshold=st.one_of(
        st.sampled_from(["0.1", "0.2", "0.35", "0.25", "0.5", "0.05", "1", "0.333"]),
        st.integers(1, 10_000).map(lambda k: str(k / 10_000)),
    ),
    cyclic=st.booleans(),
)
def test_near_is_exact(table, threshold, cyclic):
    found = near(torch.tensor(table), float(threshold), cyclic)
    limit = Fraction(threshold)
    for i, (p, n) in enumerate(table):
        for j, (q, m) in enumerate(table):
            gap = abs(Fraction(p, n) - Fraction(q, m))
            if cyclic:
                gap = min(gap, 1 - gap)
            assert found[i, j] == (gap < limit), (i, j)


@settings(deadline=None)
@given(table=tables(), threshold=st.floats(1e-3, 1), cyclic=st.booleans(), exact=st.booleans())
def test_near_is_symmetric_and_holds_for_a_slice_itself(table, threshold, cyclic, exact):
    found = near(torch.tensor(table), threshold, cyclic, exact)
    assert (found.dtype, found.shape) == (torch.bool, (len(table), len(table)))
    assert torch.equal(found, found.T)
    assert found.diagonal().all()
    assert (near(torch.tensor(table), threshold, True, exact) | ~found).all()  # cyclic only adds


@pytest.mark.parametrize("threshold", [0.1234567890123456, 0.12345678901234568, 0.3333333333333333])
def test_a_threshold_of_many_digits(threshold):
    found = near(stack(40), threshold)
    number = torch.arange(40)
    assert torch.equal(found, (number[:, None] - number).abs() < 40 * threshold)


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("exact", [True, False])
def test_short_stacks_have_no_neighbours(n, exact):
    assert torch.equal(near(stack(n), 0.1, exact=exact), torch.eye(n, dtype=torch.bool))


def test_in_a_stack_of_ten_the_paper_has_no_neighbours_and_its_run_has_four_pairs():
    assert pairs(near(stack(10), 0.1)) == []
    assert pairs(near(stack(10), 0.1, exact=False)) == [(3, 4), (4, 5), (6, 7), (8, 9)]


def test_the_default_finds_neighbours_from_six_slices_on():
    """Positives on each side of a slice in the middle, as docs/methods.md lists them."""
    assert PCLSettings().threshold == 0.17
    expected = {4: 0, 5: 0, **dict.fromkeys(range(6, 12), 1), **dict.fromkeys(range(12, 18), 2)}
    for n, each in {**expected, 18: 3, 20: 3}.items():
        found = pairs(near(stack(n), PCLSettings().threshold))
        assert max([j - i for i, j in found], default=0) == each, n


@pytest.mark.parametrize("n", range(11, 20))
@pytest.mark.parametrize("exact", [True, False])
def test_stacks_of_11_to_19_have_the_next_slices(n, exact):
    expected = [(i, i + 1) for i in range(n - 1)]
    assert pairs(near(stack(n), 0.1, exact=exact)) == expected


def test_in_a_stack_of_twenty_the_run_has_half_of_the_slices_after_the_next():
    next_ones = [(i, i + 1) for i in range(19)]
    assert pairs(near(stack(20), 0.1)) == next_ones
    run = pairs(near(stack(20), 0.1, exact=False))
    assert set(next_ones) < set(run)
    two_apart = set(run) - set(next_ones)
    assert {j - i for i, j in two_apart} == {2}
    assert len(two_apart) == 9


def test_the_run_rounds_to_float32_as_their_code():
    rng = np.random.default_rng(0)
    depth = rng.integers(2, 30, 200)
    number = np.floor(rng.random(200) * depth).astype(np.int64)
    number[:2], depth[:2] = (0, 7), 10  # 0.7 is less in float32 than in float64
    position = (number / depth).astype(np.float32)  # a Python float, stored in a float32 tensor
    gap = np.abs(position[:, None] - position)
    table = torch.from_numpy(np.stack([number, depth], 1))
    for threshold in (0.1, 0.2, 0.5, 0.7):
        found = near(table, threshold, exact=False).numpy()
        np.testing.assert_array_equal(found, gap < np.float32(threshold))
        cyclic = near(table, threshold, cyclic=True, exact=False).numpy()
        np.testing.assert_array_equal(cyclic, np.minimum(gap, 1 - gap) < np.float32(threshold))
    assert (near(table, 0.1, exact=False) != near(table, 0.1)).any()


def test_base_and_apex_are_neighbours_in_a_cycle():
    expected = [(0, 1), (0, 11), *((i, i + 1) for i in range(1, 11))]
    assert pairs(near(stack(12), 0.1, cyclic=True)) == expected
    assert (0, 11) not in pairs(near(stack(12), 0.1))


def test_threshold_one_takes_every_slice():
    table = torch.cat([stack(2), stack(7), stack(20)])
    for exact in (True, False):
        assert near(table, 1, exact=exact).all()
        assert near(table, 1.0, exact=exact).all()


def test_stacks_of_different_depth_meet_at_the_same_share():
    table = torch.tensor([[2, 8], [3, 12], [4, 12], [5, 20], [7, 20]])
    expected = torch.ones(5, 5, dtype=torch.bool)
    # 1/4, 1/4, 1/3, 1/4, 7/20: only the last and those at 1/4 are a tenth apart.
    for i in (0, 1, 3):
        expected[i, 4] = expected[4, i] = False
    assert torch.equal(near(table, 0.1), expected)


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"threshold": 0.35}, {"cyclic": True}])
def test_the_loss_by_hand(make_pcl, make_pcl_batch, changes):
    method = make_pcl(**changes)
    batch = make_pcl_batch(method)
    seen = {}
    method.head.register_forward_hook(lambda _m, _i, output: seen.update(features=output))
    output = method(batch)
    limit = Fraction(str(changes.get("threshold", PCLSettings().threshold)))
    share = [Fraction(p, n) for p, n in POSITIONS.tolist()] * 2
    positives = torch.zeros(10, 10, dtype=torch.bool)
    for i, a in enumerate(share):
        for j, b in enumerate(share):
            gap = abs(a - b)
            positives[i, j] = (min(gap, 1 - gap) if changes.get("cyclic") else gap) < limit
    assert torch.equal(method.positives(batch), positives)
    expected, lonely = contrastive_loss(seen["features"], positives, 0.1)
    assert lonely == 0  # the twin is always there
    assert output["loss"] == expected
    count = positives.sum(1).float().mean() - 1
    torch.testing.assert_close(output["positives_per_view"], count)
    assert set(output) == {"loss", *method.curves}
    assert "positives_per_view" in method.summarise({k: v.item() for k, v in output.items()})


def test_positives_are_found_once_in_a_step(make_pcl, make_pcl_batch, monkeypatch):
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return near(*arguments)

    monkeypatch.setattr("nnunet_ssp.methods.pcl.near", spy)
    method = make_pcl()
    method(make_pcl_batch(method))
    assert len(calls) == 1


def test_positives_per_view_by_hand(make_pcl, make_pcl_batch):
    method = make_pcl(threshold=0.1)
    # Shares .27, .36, 0, .35 and .40: the first and the last are not near, and 0 is alone.
    neighbours = [3, 4, 1, 4, 3]  # slices near each, itself among them
    shares = [Fraction(p, n) for p, n in POSITIONS.tolist()]
    assert [sum(abs(a - b) < Fraction(1, 10) for b in shares) for a in shares] == neighbours
    found = method(make_pcl_batch(method))["positives_per_view"]
    assert found.item() == pytest.approx(np.mean([2 * n - 1 for n in neighbours]))


def test_without_neighbours_it_is_simclr(make_pcl, make_pcl_batch):
    apart = torch.tensor([[0, 9], [2, 9], [4, 9], [6, 9], [8, 9]])
    pcl, simclr = make_pcl(), make_pcl(method=SimCLR)
    simclr.load_state_dict(pcl.state_dict())
    batch = make_pcl_batch(pcl, apart)
    found, expected = pcl(batch), simclr(batch)
    assert found["loss"] == expected["loss"]
    assert found["positives_per_view"] == 1
    assert pcl(make_pcl_batch(pcl))["loss"] != expected["loss"]


def test_the_run_differs_from_the_paper(make_pcl, make_pcl_batch):
    ten = torch.tensor([[3, 10], [4, 10], [5, 10], [6, 10], [7, 10]])
    exact, run = (make_pcl(threshold=0.1, arithmetic=kind) for kind in ("exact", "run"))
    run.load_state_dict(exact.state_dict())
    batch = make_pcl_batch(exact, ten)
    assert exact(batch)["positives_per_view"] == 1
    # (3, 4), (4, 5) and (6, 7): six more slices for five, two views each
    assert run(batch)["positives_per_view"].item() == pytest.approx(1 + 2 * 6 / 5)
    assert exact(batch)["loss"] != run(batch)["loss"]


def test_the_validation_has_every_curve(make_pcl, make_pcl_batch):
    method = make_pcl().eval()
    with torch.no_grad():
        output = method(make_pcl_batch(method))
    assert set(output) == {"loss", *method.curves, *method.val_curves}


# -- what the data must be -------------------------------------------------------------------------


def opened(make_store, depths: list[int], base: str = "first") -> SliceStore:
    """Stacks of these depths, of which all but the first and the last slice survived the crop."""
    folder = make_store([(n - 2, 1, 6, 6) for n in depths]).folder
    return SliceStore(folder, None, {f"case{i}": base for i in range(len(depths))})


def test_deep_stacks_with_a_known_base_need_no_word(make_pcl, make_store):
    assert make_pcl().examine(opened(make_store, [11, 12, 20])) == []


def test_single_slices_are_refused(make_pcl, make_store):
    store = opened(make_store, [12, 12, 12])
    store.cases[1:] = [replace(case, n_slices=1) for case in store.cases[1:]]
    message = r"case1 has a single slice \(2 such cases\)\. .*nnUNetTrainerSimCLRPretrain"
    with pytest.raises(ValueError, match=message):
        make_pcl().examine(store)
    assert make_pcl(method=SimCLR).examine(store) == []


def test_short_stacks_are_said_to_have_no_neighbours(make_pcl, make_store):
    store = opened(make_store, [8, 12, 10, 8, 15])
    (note,) = make_pcl(threshold=0.1).examine(store)
    assert note.startswith("WARNING: threshold=0.1 finds no neighbouring slices within 3 of 5")
    assert "those of 8, 10 slices" in note
    proposed = float(re.search(r"e\.g\. threshold=([\d.]+)\.$", note)[1])
    assert make_pcl(threshold=proposed).examine(store) == []
    # In the run's arithmetic stacks of ten have some.
    (note,) = make_pcl(threshold=0.1, arithmetic="run").examine(store)
    assert "within 2 of 5 stacks, those of 8 slices" in note


def test_the_proposed_threshold_helps_the_deepest_of_the_short_stacks(make_pcl, make_store):
    store = opened(make_store, [4, 10, 10])
    (note,) = make_pcl(threshold=0.1).examine(store)
    proposed = float(re.search(r"e\.g\. threshold=([\d.]+)\.$", note)[1])
    (note,) = make_pcl(threshold=proposed).examine(store)
    assert "within 1 of 3 stacks, those of 4 slices" in note


def test_an_unknown_base_is_noted(make_pcl, make_store):
    folder = opened(make_store, [12, 12, 12]).folder
    store = SliceStore(folder, None, {"case0": "first", "case1": "last"})
    (note,) = make_pcl().examine(store)
    assert note.startswith("WARNING: which end of the stack is the base is unknown for 1 of 3")
    both = make_pcl().examine(opened(make_store, [5, 5], "unknown"))
    assert len(both) == 2


# -- settings --------------------------------------------------------------------------------------


def test_the_papers_settings():
    s = PCLSettings()
    assert (s.batch_size, s.temperature, s.initial_lr, s.momentum) == (64, 0.1, 0.1, 0.9)
    assert (s.weight_decay, s.num_epochs, s.precision, s.head_width) == (1e-5, 100, "fp32", 512)
    assert (s.cyclic, s.arithmetic) == (False, "exact")
    for name in ("initial_lr", "momentum", "brightness", "temperature", "head_width"):
        assert getattr(s, name) == getattr(SimCLRSettings(), name)


def neighbours_on_each_side(n, **settings):
    s = replace(PCLSettings(), **settings)
    found = near(stack(n), s.threshold, s.cyclic, s.arithmetic == "exact")
    return int(found[0].sum()) - 1


def test_the_default_threshold_makes_neighbours_positives_in_typical_stacks():
    """Those of 6 to 12 slices; the code's threshold does so in none of up to 10."""
    ours = {n: neighbours_on_each_side(n) for n in range(4, 19)}
    assert ours == {4: 0, 5: 0} | dict.fromkeys(range(6, 12), 1) | dict.fromkeys(
        range(12, 18), 2
    ) | {18: 3}
    theirs = {n: neighbours_on_each_side(n, threshold=0.1) for n in range(4, 19)}
    assert theirs == dict.fromkeys(range(4, 11), 0) | dict.fromkeys(range(11, 19), 1)


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "1.0001"])
def test_a_threshold_outside_its_range_is_refused(value):
    message = re.escape(f"`threshold` (={float(value)}) must lie in (0, 1]")
    with pytest.raises(ValueError, match=message):
        override(PCLSettings(), f"threshold={value}")
    assert override(PCLSettings(), "threshold=1")[0].threshold == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size=1", "`batch_size` (=1) must be at least 2"),
        ("temperature=0", "`temperature` (=0.0) must be positive"),
        ("arithmetic=float", "arithmetic"),
        ("cyclic=3", "cyclic"),
    ],
)
def test_settings_that_cannot_work_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(PCLSettings(), text)
