"""`splits_final.json` and `folds.csv`: made by subject, read, written and copied."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort.cases import Case, case_name
from nnunet_ssp.cohort.splits import (
    copy_tables,
    first_fold,
    make_splits,
    read_splits,
    subject_folds,
    write_splits,
)
from nnunet_ssp.files.atomic import write_json


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


@pytest.mark.parametrize(
    ("folds", "labelled", "first"),
    [(None, 5, "0"), (None, 4, "all"), (None, 0, "all"), (2, 2, "0"), (0, 5, "all")],
)
def test_the_fold_to_begin_with(tmp_path: Path, folds: int | None, labelled: int, first: str):
    file = tmp_path / "splits_final.json"
    if folds is not None:
        write_json(file, [{"train": ["a"], "val": ["b"]}] * folds)
    assert first_fold(file, labelled) == first
