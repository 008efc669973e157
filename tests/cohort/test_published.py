from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort import published
from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.cohort.published import (
    PAPER_FOLDS,
    PUBLISHED,
    checksum,
    development_split,
    paper_folds,
    published_lists,
)
from nnunet_ssp.cohort.split_files import fold_from_file, read_split_file
from tests.cohort.test_folds import VENDORS, keys, make_cases, numbered

names = st.sets(st.text("ABC0123456789-", min_size=1, max_size=6), min_size=1, max_size=80)


def test_the_checksum_is_of_one_subject_a_line():
    whole = hashlib.sha256(b"mm1-A\nmm2-101").hexdigest()
    assert checksum(["mm2-101", "mm1-A"]) == whole[:16]


@given(names)
def test_the_division_is_a_partition_with_a_fifth_for_validation(subjects: set[str]):
    train, valid = development_split(subjects)
    assert sorted(train + valid) == sorted(subjects)
    assert len(valid) == round(len(subjects) / 5)


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
    assert notes == ["3 subjects of ACDC in no fold; pretraining takes all of them in."]
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
    assert "1 validation subject without a labelled frame, so in no fold" in notes[0]
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
    with pytest.raises(ValueError, match=r"2 subjects: too few for training and validation"):
        paper_folds(make_cases({"A": "GE", "B": "GE"}))
