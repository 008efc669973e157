from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.conversion.phases import frame_number, label_phases, nearest_frame


def masks_of(volumes: dict[int, int], value: int = 1) -> dict[int, np.ndarray]:
    return {t: np.array([value] * n + [0], np.uint8) for t, n in volumes.items()}


@pytest.mark.parametrize(
    ("volumes", "ed", "es", "phases", "corrected", "noted"),
    [
        ({0: 9, 8: 5}, "0", "8", {0: "ED", 8: "ES"}, False, False),
        ({0: 9, 8: 5}, "0.0", "8.0", {0: "ED", 8: "ES"}, False, False),
        ({0: 5, 8: 5}, "8", "0", {8: "ED", 0: "ES"}, False, False),
        ({0: 9, 8: 5}, "8", "0", {0: "ED", 8: "ES"}, True, False),
        ({0: 5, 8: 9}, "0", "7", {8: "ED", 0: "ES"}, True, False),
        ({0: 9, 8: 5}, "", "nan", {0: "ED", 8: "ES"}, True, False),
        ({0: 9, 8: 5}, "", "", {0: "ED", 8: "ES"}, False, True),
        ({8: 9}, "", "", {8: "ED"}, False, True),
        ({0: 9, 8: 5}, "0", "0", {0: "ED", 8: "ES"}, True, False),
        ({0: 9, 3: 6, 8: 5}, "0", "3", {0: "ED", 3: "ES"}, False, True),
        ({0: 9, 3: 6, 8: 5}, "0", "4", {0: "ED", 8: "ES"}, True, True),
        ({0: 9}, "0", "8", {0: "ED"}, False, True),
        ({8: 9}, "0", "8", {8: "ES"}, False, True),
        ({8: 9}, "0", "7", {8: "ED"}, True, True),
    ],
)
def test_phases(
    volumes: dict[int, int],
    ed: str,
    es: str,
    phases: dict[int, str],
    corrected: bool,
    noted: bool,
):
    found, corrections, notes = label_phases(masks_of(volumes), ed, es)
    assert found == phases
    assert (bool(corrections), bool(notes)) == (corrected, noted)


def test_who_says_nothing_is_not_corrected():
    masks = masks_of({0: 9, 8: 5})
    assert label_phases(masks, "", "", "Info.cfg", first=1)[1:] == (
        [],
        ["Info.cfg has neither ED nor ES; by volume ED is 1, ES is 9"],
    )
    assert label_phases(masks, "", "", where="")[1:] == ([], [])


def test_myocardium_drawn_in_one_phase_only_does_not_count():
    masks = masks_of({0: 9, 8: 5})
    masks[8] = np.append(masks[8], [2] * 20).astype(np.uint8)
    assert label_phases(masks, "", "")[0] == {0: "ED", 8: "ES"}


def test_without_a_left_ventricle_all_labels_count():
    assert label_phases(masks_of({0: 5, 8: 9}, value=3), "", "")[0] == {8: "ED", 0: "ES"}


@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 50), min_size=2, max_size=6),
    st.integers(-1, 31),
    st.integers(-1, 31),
)
def test_phases_are_two_labelled_frames_and_ed_is_the_larger(volumes, ed: int, es: int):
    phases, corrections, _ = label_phases(masks_of(volumes), str(ed), str(es))
    (found_ed,) = (t for t, phase in phases.items() if phase == "ED")
    (found_es,) = (t for t, phase in phases.items() if phase == "ES")
    assert {found_ed, found_es} <= volumes.keys()
    assert volumes[found_ed] >= volumes[found_es]
    assert bool(corrections) == ((found_ed, found_es) != (ed, es))


def test_messages_count_as_the_source_does():
    phases, corrections, _ = label_phases(masks_of({0: 9, 7: 5}), "8", "1", "Info.cfg", first=1)
    assert phases == {0: "ED", 7: "ES"}
    assert corrections == [
        "Info.cfg has ED 8 and ES 1, labels at 1 and 8: ED is 1, ES is 8",
    ]
    assert label_phases(masks_of({0: 9, 7: 5}), "1", "8", "Info.cfg", first=1)[1] == []
    assert label_phases(masks_of({7: 5}), "1", "8", first=1)[0] == {7: "ES"}


@pytest.mark.parametrize(
    ("text", "first", "frame"),
    [
        ("8", 0, 8),
        ("8.0", 0, 8),
        (" 8 ", 1, 7),
        ("1.5", 0, None),
        ("", 0, None),
        ("nan", 0, None),
        ("inf", 0, None),
        ("1_0", 0, None),
        ("\u0663", 0, None),  # an Arabic three
    ],
)
def test_numbers_in_tables(text: str, first: int, frame: int | None):
    assert frame_number(text, first) == frame


# -- where in the cine a frame is ------------------------------------------------------------------


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(500, 50, (6, 5, 3, 4)).astype(np.float32)


@given(st.integers(0, 99), st.integers(0, 3))
def test_a_frame_is_found(seed: int, t: int):
    cine = noise(seed)
    assert nearest_frame(cine, cine[..., t]) == (t, True)
    assert nearest_frame(cine.astype(np.int16), cine.astype(np.int16)[..., t]) == (t, True)
    assert nearest_frame(cine.astype(np.uint16), cine[..., t].astype(np.uint16)) == (t, True)


def test_a_frame_rounded_in_storage_is_found():
    cine = noise(0)
    assert nearest_frame(cine, np.round(cine[..., 2], 1)) == (2, True)


def test_the_voxels_count_and_not_their_sum():
    cine = noise(0)
    frame = cine[..., 1].copy()
    frame[0, 0, 0], frame[5, 4, 2] = frame[5, 4, 2], frame[0, 0, 0]
    assert nearest_frame(cine, frame) == (1, False)
    assert nearest_frame(cine, frame[::-1])[1] is False


def test_of_equal_frames_the_first_is_taken():
    cine = noise(0)
    cine[..., 3] = cine[..., 1]
    assert nearest_frame(cine, cine[..., 3]) == (1, True)


def test_a_frame_that_is_not_finite_is_not_found():
    cine = noise(0)
    frame = cine[..., 1].copy()
    frame[0, 0, 0] = np.nan
    assert nearest_frame(cine, frame)[1] is False
