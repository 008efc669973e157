from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort import folds as splits
from nnunet_ssp.cohort import published
from nnunet_ssp.cohort.cases import Case, case_name
from nnunet_ssp.cohort.folds import (
    Fold,
    draw_slices,
    draw_subjects,
    is_from,
    make_fold,
    merge,
    restrict,
    subsets,
)
from nnunet_ssp.cohort.membership import shuffled, subjects_of
from nnunet_ssp.cohort.published import (
    PAPER_FOLDS,
    PUBLISHED,
    checksum,
    development_split,
    paper_folds,
    published_lists,
)
from nnunet_ssp.cohort.split_files import fold_from_file, read_split_file

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


names = st.sets(st.text("ABC0123456789-", min_size=1, max_size=6), min_size=1, max_size=80)


# -- the published procedure ---------------------------------------------------------------------


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


def test_the_checksum_is_of_one_subject_a_line():
    whole = hashlib.sha256(b"mm1-A\nmm2-101").hexdigest()
    assert checksum(["mm2-101", "mm1-A"]) == whole[:16]


@given(names)
def test_the_division_is_a_partition_with_a_fifth_for_validation(subjects: set[str]):
    train, valid = development_split(subjects)
    assert sorted(train + valid) == sorted(subjects)
    assert len(valid) == round(len(subjects) / 5)


@given(names.filter(lambda subjects: len(subjects) > 1), st.integers(0, 99), st.data())
def test_subsets_of_subjects_are_nested(subjects: set[str], seed: int, data: st.DataObject):
    sizes = sorted(data.draw(st.lists(st.integers(1, len(subjects)), min_size=2)))
    drawn = [set(draw_subjects(subjects, n, seed)) for n in sizes]
    assert [len(chosen) for chosen in drawn] == sizes
    assert all(small <= large for small, large in pairwise(drawn))
    assert drawn[-1] <= subjects


# Frozen when they were made, so that a change of the procedure shows without any real list.
FROZEN = {
    "development": (100, "0a59d27248bdb1ea"),
    "train": (80, "3481ce055ee69db8"),
    "valid": (20, "5bf9c8f2ebb4c522"),
    "train A_B": (41, "842e0f09feffa208"),
    "valid C_D": (11, "b91a6cf6bbf005ab"),
    "nr50-seed0": (50, "00725f62e773dc3a"),
    "nr10-seed2": (10, "1bf4acf5ab1f4a81"),
}


def test_the_procedure_on_invented_subjects_is_frozen():
    subjects = {f"mm1-{name}": vendor for name, vendor in numbered(100).items()}
    lists = published_lists(subjects)
    assert {n: (len(lists[n]), checksum(lists[n])) for n in FROZEN} == FROZEN


def test_the_published_lists_restrict_both_sides_to_vendors_and_are_nested():
    subjects = {f"mm1-{name}": vendor for name, vendor in numbered(100).items()}
    lists = published_lists(subjects)
    assert lists.keys() == PUBLISHED.keys() - {"test"}
    for side in ("train", "valid"):
        assert sorted(lists[f"{side} A_B"] + lists[f"{side} C_D"]) == lists[side]
        assert {subjects[s] for s in lists[f"{side} A_B"]} == set(VENDORS[:2])
    for seed in (0, 1, 2):
        nested = [set(lists[f"nr{n}-seed{seed}"]) for n in (10, 15, 25, 50)]
        assert all(small < large for small, large in pairwise(nested))
        assert nested[-1] < set(lists["train"])


def published_ids(real_data: Path) -> dict[str, dict[str, list[str]]]:
    file = real_data / "splits" / "default-cine-split.yaml"
    if not file.is_file():
        pytest.skip(f"{file} is missing: no published split to compare with")
    return yaml.safe_load(file.read_text())


def published_cases(real_data: Path) -> dict[str, Case]:
    """Every published subject, with the vendors that the split by vendor implies."""
    ids = published_ids(real_data)
    by_vendor = read_split_file(real_data / "splits" / "default-cine-split-Vendor-A_B.yaml")
    cases: dict[str, Case] = {}
    for side, sources in ids.items():
        for source, subjects in sources.items():
            first = by_vendor["train"] | by_vendor["valid"]
            vendors = {s: "SIEMENS" if f"{source}-{s}" in first else "Canon" for s in subjects}
            cases |= make_cases(vendors, source, "test" if side == "test" else "train")
    return cases


def test_the_370_subjects_give_every_published_list(real_data: Path):
    """All but the two sides of each vendor group follow from the development subjects alone."""
    ids = published_ids(real_data)
    development = {
        f"{source}-{subject}": ""
        for side in ("train", "valid")
        for source, subjects in ids[side].items()
        for subject in subjects
    }
    lists = published_lists(development)
    for name, (n, digits) in PUBLISHED.items():
        if name != "test" and " " not in name:
            assert (len(lists[name]), checksum(lists[name])) == (n, digits), name


def test_the_published_files_are_the_folds_of_the_paper(real_data: Path):
    cases = published_cases(real_data)
    folds, notes = paper_folds(cases)
    assert notes == []
    assert [fold.name for fold in folds] == list(PAPER_FOLDS)
    files = sorted((real_data / "splits").glob("default-cine-split*.yaml"))
    assert len(files) == 15
    for file in files:
        fold, notes = fold_from_file(file, cases)
        assert notes == []
        name = "paper" + file.stem.removeprefix("default-cine-split").replace("Vendor", "vendor")
        assert fold.same_cases(next(other for other in folds if other.name == name)), name
    test = {case.subject_key for case in cases.values() if case.split == "test"}
    assert (len(test), checksum(test)) == PUBLISHED["test"]


def test_other_sources_are_in_no_published_fold(real_data: Path):
    cases = published_cases(real_data) | make_cases(numbered(3), "acdc")
    cases |= make_cases({"T": "GE"}, "acdc", split="test")
    folds, notes = paper_folds(cases)
    assert notes == ["3 subjects of acdc are in no fold; pretraining takes them in."]
    assert all(cases[name].source != "acdc" for fold in folds for name in fold.train)
    assert checksum(published.published_test_subjects(cases)) == PUBLISHED["test"][1]


def test_test_subjects_of_other_data_are_all_of_them():
    cases = make_cases(numbered(2), "acdc", split="test") | make_cases({"A": "GE"}, "acdc")
    assert published.published_test_subjects(cases) == ["acdc-S000", "acdc-S001"]


def test_published_subjects_without_labels_do_not_change_the_lists(real_data: Path):
    cases = published_cases(real_data)
    full, _ = paper_folds(cases)
    _, valid = development_split({c.subject_key for c in cases.values() if c.split == "train"})
    cases = {
        name: case
        for name, case in cases.items()
        if case.subject_key != valid[0] or not case.labelled
    }
    folds, notes = paper_folds(cases)
    assert folds[0].train == full[0].train
    assert subjects_of(folds[0].val, cases) == {*valid[1:]}
    assert len(notes) == 1
    assert "1 validation subject(s) have no labelled frame, so no fold names them" in notes[0]
    assert notes[0].endswith(valid[0])


def test_other_subjects_get_the_procedure_and_are_told():
    cases = make_cases(numbered(70)) | make_cases({"U": "Canon"}, phases=("", ""))
    cases |= make_cases({"T": "Canon"}, split="test")
    folds, notes = paper_folds(cases)
    assert {fold.name for fold in folds} == PAPER_FOLDS.keys()
    assert {fold.source for fold in folds} == {"procedure of de Mooij et al. 2024"}
    assert "The 70 subjects are not the 370 of de Mooij et al. 2024" in notes[0]
    everybody = subjects_of((*folds[0].train, *folds[0].val), cases)
    assert everybody == keys(numbered(70))
    for fold in folds:
        assert not subjects_of(fold.train, cases) & subjects_of(fold.val, cases)
    phases = {fold.name: {cases[n].phase for n in (*fold.train, *fold.val)} for fold in folds}
    assert phases.pop("paper-ED") == {"ED"}
    assert phases.pop("paper-ES") == {"ES"}
    assert all(both == {"ED", "ES"} for both in phases.values())


def test_folds_that_few_subjects_do_not_fill_are_left_out():
    cases = make_cases({f"S{n}": "GE" for n in range(20)})
    folds, notes = paper_folds(cases)
    assert [fold.name for fold in folds] == [
        "paper",
        *(f"paper-nr{n}-seed{seed}" for n in (15, 10) for seed in (0, 1, 2)),
        "paper-vendor-C_D",
        "paper-ED",
        "paper-ES",
    ]
    assert notes[1].endswith("paper-nr50, paper-nr25, paper-vendor-A_B")
    with pytest.raises(ValueError, match=r"2 subject\(s\) are too few for training and validation"):
        paper_folds(make_cases({"A": "GE", "B": "GE"}))


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


# -- split files ---------------------------------------------------------------------------------


def write_split(file: Path, **sides: dict[str, list[str]]) -> Path:
    file.write_text(yaml.safe_dump(sides, default_style='"'))
    return file


def test_a_split_file_becomes_a_fold(tmp_path: Path):
    cases = make_cases(numbered(6)) | make_cases({"T": "GE"}, split="test")
    cases |= make_cases({"U": "GE"}, phases=("",))
    file = write_split(
        tmp_path / "mine.yaml",
        test={"mm1": ["T", "gone"], "mm2": ["281"]},
        train={"mm1": ["S000", "S001", "U"], "mm2": ["101", "102"]},
        valid={"mm1": ["S002"]},
    )
    fold, notes = fold_from_file(file, cases)
    assert (fold.name, fold.source) == ("mine", "file mine.yaml")
    assert subjects_of(fold.train, cases) == {"mm1-S000", "mm1-S001"}
    assert subjects_of(fold.val, cases) == {"mm1-S002"}
    assert "2 subjects of mm2 left out" in notes[0]
    assert notes[1].endswith("without labelled frames, so in no fold: mm1-U")


def test_a_file_with_the_test_alone_stands_for_the_procedure(tmp_path: Path):
    cases = make_cases(numbered(60)) | make_cases({"T": "GE"}, split="test")
    fold, notes = fold_from_file(write_split(tmp_path / "t.yaml", test={"mm1": ["T"]}), cases)
    assert notes == []
    assert fold.same_cases(paper_folds(cases)[0][0])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"test": {"mm1": ["S000"]}}, "test subject mm1-S000 must be a test subject of the data"),
        ({"train": {"mm1": ["T"]}}, "mm1-T must not be a test subject of the dataset"),
        ({"valid": {"mm1": ["T"]}}, "mm1-T must not be a test subject of the dataset"),
        ({"train": {"mm1": ["X"]}}, r"mm1-X must be in cases\.csv"),
        ({"valid": {"mm1": ["S001"]}}, "mm1-S001 must not be in both `train` and `valid`"),
        ({"test": {"mm1": ["S001"]}}, "mm1-S001 must not be in both `test` and `train`"),
        ({"valid": {"mm1": ["U"]}}, "no labelled frame of its training or validation subjects"),
        ({"train": {"mm9": ["1"]}}, "no labelled frame of its training or validation subjects"),
    ],
)
def test_split_files_that_would_leak_are_refused(
    tmp_path: Path, sides: dict[str, dict[str, list[str]]], message: str
):
    cases = make_cases(numbered(6)) | make_cases({"T": "GE"}, split="test")
    cases |= make_cases({"U": "GE"}, phases=("",))
    good = {"test": {"mm1": []}, "train": {"mm1": ["S001"]}, "valid": {"mm1": ["S002"]}}
    file = write_split(tmp_path / "mine.yaml", **(good | sides))
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{message}"):
        fold_from_file(file, cases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a YAML file"),
        ("- a", "must have the keys test, train, valid, or test alone"),
        ('{"train": {}, "test": {}}', "must have the keys test, train, valid, or test alone"),
        ('{"test": ["A"]}', r"`test` must map each source \(mm1, ...\) to a list of subjects"),
        ('{"test": {"mm2": [001]}}', r"`test`, mm2: must be a list of ids in quotes"),
        ('{"test": {"mm2": "001"}}', r"`test`, mm2: must be a list of ids in quotes"),
    ],
)
def test_what_is_no_split_file_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "split.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"split\.yaml: {message}"):
        read_split_file(file)
