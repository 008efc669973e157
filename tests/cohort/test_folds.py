from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort import folds as splits
from nnunet_ssp.cohort.cases import Case, case_name
from nnunet_ssp.cohort.folds import (
    Fold,
    copy_tables,
    draw_slices,
    draw_subjects,
    is_from,
    make_fold,
    make_splits,
    merge,
    read_splits,
    restrict,
    shuffled,
    subject_folds,
    subjects_of,
    subsets,
    write_splits,
)
from nnunet_ssp.files.atomic import write_json

names = st.sets(st.text("ABC0123456789-", min_size=1, max_size=6), min_size=1, max_size=80)
VENDORS = ("SIEMENS", "Philips Medical Systems", "GE MEDICAL SYSTEMS", "Canon")


def make_cases(
    subjects: dict[str, str],
    source: str = "mm1",
    split: str = "train",
    phases: tuple[str, ...] = ("ED", "", "ES"),
) -> dict[str, Case]:
    """Frames of subjects with the given vendors."""
    return {
        case_name(subject, frame, source): Case(
            case=case_name(subject, frame, source),
            subject=subject,
            source=source,
            source_frame=frame,
            split=split,
            frame=frame,
            n_frames=len(phases),
            phase=phase,
            base="first",
            vendor=vendor,
            centre="1",
            scanner="",
            field="1.5",
            pathology="",
        )
        for subject, vendor in subjects.items()
        for frame, phase in enumerate(phases)
    }


def numbered(n: int) -> dict[str, str]:
    """Subjects of all vendors."""
    return {f"S{number:03}": VENDORS[number % 4] for number in range(n)}


def keys(subjects: dict[str, str]) -> set[str]:
    return {f"mm1-{subject}" for subject in subjects}


# -- drawing -------------------------------------------------------------------------------------


@given(names, st.integers(0, 2**32 - 1))
def test_the_shuffle_is_numpys_legacy_one_and_touches_no_global_state(
    subjects: set[str], seed: int
):
    before = np.random.get_state()
    order = shuffled(subjects, seed)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    try:
        np.random.seed(seed)
        expected = sorted(subjects)
        np.random.shuffle(expected)
    finally:
        np.random.set_state(before)
    assert order == expected == shuffled(reversed(sorted(subjects)), seed)


@given(names.filter(lambda subjects: len(subjects) > 1), st.integers(0, 99), st.data())
def test_subsets_of_subjects_are_nested(subjects: set[str], seed: int, data: st.DataObject):
    sizes = sorted(data.draw(st.lists(st.integers(1, len(subjects)), min_size=2)))
    drawn = [set(draw_subjects(subjects, n, seed)) for n in sizes]
    assert [len(chosen) for chosen in drawn] == sizes
    assert all(small <= large for small, large in pairwise(drawn))
    assert drawn[-1] <= subjects


@pytest.mark.parametrize(
    ("vendor", "wanted", "expected"),
    [
        ("GE MEDICAL SYSTEMS", ["GE"], True),
        ("SIEMENS", ["Philips", "siemens"], True),
        ("Philips", ["Siemens"], False),
        ("unknown", [], False),
    ],
)
def test_vendors_are_known_by_their_beginning(vendor: str, wanted: list[str], expected: bool):
    assert is_from(vendor, wanted) is expected


# -- folds made from another ---------------------------------------------------------------------

CASES = make_cases(numbered(12))
BASE = make_fold("base", keys(dict(list(numbered(12).items())[:8])), keys(numbered(12)), CASES, "x")
FOLD = Fold("base", BASE.train, tuple(n for n in BASE.val if n not in BASE.train), "x")


def test_a_fold_holds_labelled_frames_of_training_subjects():
    cases = make_cases({"A": "GE", "B": "GE"}) | make_cases({"T": "GE"}, split="test")
    fold = make_fold("f", {"mm1-A", "mm1-T"}, {"mm1-B"}, cases, "x")
    assert fold.train == ("mm1-A_frame00", "mm1-A_frame02")
    assert make_fold("f", {"mm1-A"}, {"mm1-B"}, cases, "x", "ES").val == ("mm1-B_frame02",)


def test_a_restriction_holds_on_both_sides():
    kept = restrict(FOLD, CASES, ["ge", "Philips"], "ED")
    assert kept.name == "base-ge+Philips-ED"
    assert kept.source == "ge+Philips, ED of base"
    for before, after in ((FOLD.train, kept.train), (FOLD.val, kept.val)):
        chosen = [CASES[name] for name in before]
        assert after == tuple(
            case.case for case in chosen if case.phase == "ED" and case.vendor[:2] in ("GE", "Ph")
        )


def test_an_empty_restriction_is_refused():
    with pytest.raises(
        ValueError, match=r"`vendors` \(=Toshiba\) must be among those of fold base: Canon, GE MED"
    ):
        restrict(FOLD, CASES, ["Siemens", "Toshiba"])
    fold = Fold("f", FOLD.train, tuple(n for n in FOLD.val if CASES[n].phase == "ED"), "x")
    with pytest.raises(ValueError, match="ES of f: no validation frame would be left"):
        restrict(fold, CASES, phase="ES")


@given(
    st.lists(st.integers(1, 8) | st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
)
def test_subsets_keep_the_validation_and_whole_subjects(
    amounts: list[int | float], seeds: list[int]
):
    for fold in subsets(FOLD, CASES, amounts, seeds):
        assert fold.val == FOLD.val
        chosen = subjects_of(fold.train, CASES)
        assert fold.train == tuple(n for n in FOLD.train if CASES[n].subject_key in chosen)
        n = int(fold.name.split("-nr")[1].split("-")[0])
        assert len(chosen) == n
        seed = int(fold.name.rpartition("seed")[2])
        assert sorted(chosen) == draw_subjects(subjects_of(FOLD.train, CASES), n, seed)


def test_fractions_round_like_those_of_kalapos():
    """Their 1,498 slices: .001 .002 .005 .01 .02 .05 .1 .2 .5 1 are 1, 3, 7, ... slices."""
    fractions = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    parts = [splits.part_of(fraction, 1498) for fraction in fractions]
    assert parts == [1, 3, 7, 15, 30, 75, 150, 300, 749, 1498]
    assert splits.part_of(0.01, 8) == 1


@given(
    st.dictionaries(st.text("ABC", min_size=1, max_size=5), st.integers(1, 20), min_size=1),
    st.integers(0, 99),
    st.data(),
)
def test_slices_come_in_whole_frames_and_nested(
    n_slices: dict[str, int], seed: int, data: st.DataObject
):
    total = sum(n_slices.values())
    few, many = sorted(data.draw(st.tuples(st.integers(1, total), st.integers(1, total))))
    small, large = (draw_slices(n_slices, n, seed) for n in (few, many))
    assert set(small) <= set(large)
    for n, drawn in ((few, small), (many, large)):
        held = sum(n_slices[name] for name in drawn)
        last = shuffled(n_slices, seed)[len(drawn) - 1]
        assert held - n_slices[last] < n <= held
    assert draw_slices(n_slices, total, seed) == sorted(n_slices)


def test_subsets_by_slices_are_named_by_slices():
    n_slices = {name: 10 for name in FOLD.train}
    made = subsets(FOLD, CASES, [0.1, 16, 25], [0], n_slices)
    assert [(fold.name, len(fold.train)) for fold in made] == [
        ("base-slices16-seed0", 2),
        ("base-slices25-seed0", 3),
    ]
    assert made[0].source == "16 slices of base, seed 0 (20 held, in whole frames)"


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (9, r"a subset \(=9\) must be within 1 to 8, the number of training subjects"),
        (0, r"a subset \(=0\) must be within 1 to 8"),
        (0.0, r"a fraction \(=0.0\) must be above 0 and at most 1"),
        (1.5, r"a fraction \(=1.5\) must be above 0 and at most 1"),
    ],
)
def test_impossible_subsets_are_refused(amount: int | float, message: str):
    with pytest.raises(ValueError, match=message):
        subsets(FOLD, CASES, [amount], [0])


def test_too_many_slices_are_refused():
    with pytest.raises(ValueError, match=r"\(=161\) must be within 1 to 160, the number of train"):
        subsets(FOLD, CASES, [161], [0], {name: 10 for name in FOLD.train})


def test_folds_are_appended_and_replaced_only_when_told():
    first, second = Fold("a", ("x",), ("y",), "1"), Fold("b", ("x",), ("y",), "1")
    other = Fold("a", ("y",), ("x",), "2")
    assert merge([first], [second]) == [first, second]
    # The same cases from elsewhere are no change.
    assert merge([first], [Fold("a", ("x",), ("y",), "2"), second]) == [first, second]
    with pytest.raises(ValueError, match="the name a is taken by fold 0, which has other cases"):
        merge([first], [second, other])
    assert merge([first, second], [other], overwrite=True) == [other, second]


# -- nnU-Net's own folds --------------------------------------------------------------------------


def make_case(subject: str = "A1", frame: int = 0, **changes: object) -> Case:
    case = Case(
        case=case_name(subject, frame),
        subject=subject,
        source="mm1",
        source_frame=frame,
        split="train",
        frame=frame,
        n_frames=25,
        phase="ED",
        base="first",
        vendor="GE",
        centre="1",
        scanner="",
        field="1.5",
        pathology='HCM, "apical"',
    )
    return replace(case, **changes)


subjects_of_vendors = st.dictionaries(
    st.text("ABC0123456789", min_size=1, max_size=4), st.sampled_from("ABCD"), max_size=60
)


@given(subjects_of_vendors, st.integers(2, 7), st.integers(0, 99))
def test_folds_are_a_stratified_partition(subjects: dict[str, str], n_folds: int, seed: int):
    folds = subject_folds(subjects, n_folds, seed)
    if len(subjects) < 2:
        assert folds == []
        return
    assert len(folds) == min(n_folds, len(subjects))
    assert Counter(subject for fold in folds for subject in fold) == Counter(subjects.keys())
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for vendor in set(subjects.values()):
        counts = [sum(subjects[subject] == vendor for subject in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1
    backwards = dict(reversed(subjects.items()))
    assert subject_folds(backwards, n_folds, seed) == folds


def test_the_seed_changes_the_folds():
    subjects = {f"S{number:02d}": "A" for number in range(20)}
    assert subject_folds(subjects, seed=0) != subject_folds(subjects, seed=1)
    with pytest.raises(ValueError, match=r"`n_folds` \(=1\) must be at least 2"):
        subject_folds(subjects, n_folds=1)


def test_splits_hold_labelled_training_cases_only():
    cases = [make_case(subject, frame) for subject in "ABC" for frame in (0, 9)]
    cases += [
        make_case("A", 5, phase=""),
        make_case("U", 1, phase=""),
        make_case("T", split="test"),
    ]
    splits = make_splits({case.case: case for case in cases})
    assert len(splits) == 3
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(case.case for case in cases[:6])
        assert not {name[0] for name in fold["train"]} & {name[0] for name in fold["val"]}


def test_equal_codes_of_two_sources_are_two_subjects():
    cases = [make_case("101", source=source) for source in ("mm1", "mm2")]
    cases = [replace(case, case=f"{case.source}-{case.case}") for case in cases]
    assert [case.subject_key for case in cases] == ["mm1-101", "mm2-101"]
    assert len(make_splits({case.case: case for case in cases})) == 2


def test_one_subject_has_no_folds(tmp_path: Path):
    cases = {case.case: case for case in (make_case("A", 0), make_case("A", 9))}
    assert make_splits(cases) == []
    write_splits(tmp_path, [], cases, [], "test")
    assert read_splits(tmp_path / "splits_final.json") == []


def test_splits_survive_the_file(tmp_path: Path):
    cases = {case.case: case for case in (make_case(s, t) for s in "ABC" for t in (0, 9))}
    splits = make_splits(cases)
    write_splits(tmp_path, splits, cases, ["a", "b", "c"], "by hand")
    assert read_splits(tmp_path / "splits_final.json") == splits
    table = (tmp_path / "folds.csv").read_text().splitlines()
    assert table[0] == "fold,name,n_train_subjects,n_val_subjects,source"
    assert table[1] == "0,a,2,1,by hand"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a JSON file"),
        ("{}", r"must hold a list \(\[\.\.\.\]\), not \{\}"),
        ('[{"train": []}]', "fold 0 must have a list of case names `val`"),
        ('[{"train": [1], "val": []}]', "fold 0 must have a list of case names `train`"),
    ],
)
def test_broken_splits_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "splits_final.json").write_text(text)
    with pytest.raises(ValueError, match=rf"splits_final\.json: {message}"):
        read_splits(tmp_path / "splits_final.json")


FOLDS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}]


@pytest.fixture
def three_folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Raw and prepared with equal folds, results of fold 1."""
    raw, prepared, results = (tmp_path / name for name in ("raw", "prepared", "results"))
    for folder in (raw, prepared):
        write_json(folder / "splits_final.json", FOLDS)
    (results / "trainer__plans__2d" / "fold_1").mkdir(parents=True)
    return raw, prepared, results


@pytest.mark.parametrize(
    ("new", "trained"),
    [
        (FOLDS, []),
        ([FOLDS[1], FOLDS[1]], []),  # nothing was trained on fold 0
        ([FOLDS[0], FOLDS[0]], [1]),
        (FOLDS[:1], [1]),
        ([*FOLDS, FOLDS[0]], []),
    ],
    ids=["equal", "other", "changed", "gone", "new"],
)
def test_tables_are_copied_unless_trained_folds_change(
    three_folders: tuple[Path, Path, Path], new: list, trained: list[int]
):
    raw, prepared, _ = three_folders
    write_json(raw / "splits_final.json", new)
    (raw / "cases.csv").write_text("the cases")
    if trained:
        with pytest.raises(
            FileExistsError, match=r"splits_final.json: fold 1 differs.*--overwrite"
        ):
            copy_tables(*three_folders, overwrite=False)
        assert read_splits(prepared / "splits_final.json") == FOLDS
        assert not (prepared / "cases.csv").exists()
    else:
        assert copy_tables(*three_folders, overwrite=False) == []
    assert copy_tables(*three_folders, overwrite=True) == trained
    assert read_splits(prepared / "splits_final.json") == new
    assert (prepared / "cases.csv").read_text() == "the cases"
    assert not (prepared / "folds.csv").exists()


def test_nnunets_own_folds_stay(three_folders: tuple[Path, Path, Path]):
    raw, prepared, _ = three_folders
    (raw / "splits_final.json").unlink()
    assert copy_tables(*three_folders, overwrite=False) == []
    assert read_splits(prepared / "splits_final.json") == FOLDS
