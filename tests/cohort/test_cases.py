from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort.cases import COLUMNS, Case, case_name, read_cases, subject_of, write_cases
from nnunet_ssp.cohort.splits import (
    copy_tables,
    make_splits,
    read_splits,
    subject_folds,
    write_splits,
)
from nnunet_ssp.console import in_words
from nnunet_ssp.files.atomic import atomic_write, remove_half_written, write_json, write_together
from nnunet_ssp.nnunet import check_dataset_id, dataset_folder, dataset_id, nnunet_folder


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


def test_importing_the_tables_is_light():
    code = "import sys, nnunet_ssp.cohort.cases; print({'numpy', 'pandas', 'torch'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "set()"


def test_case_names():
    assert case_name("A1D9Z7", 5) == "A1D9Z7_frame05"
    assert case_name("A1D9Z7", 5, source="mm1") == "mm1-A1D9Z7_frame05"
    assert case_name("A1D9Z7", 120) == "A1D9Z7_frame120"


def test_the_subject_of_a_case():
    known = {"A1_frame00": make_case("A1")}
    assert subject_of("A1_frame00", known, "ignored") == "mm1-A1"
    assert subject_of("p7_frame03", {}, None) == "p7_frame03"
    assert subject_of("p7_frame03", {}, "(.+)_frame") == "p7"
    assert subject_of("p7_frame03", {}, "p[0-9]") == "p7"
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=x\) must match every case name, not"
    ):
        subject_of("p7_frame03", {}, "x")
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=\(\) must be a regular expression: "
    ):
        subject_of("p7_frame03", {}, "(")
    with pytest.raises(ValueError, match="must be a regular expression: "):
        subject_of("A1_frame00", known, "(")  # also where it is not needed
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=\(a\+\)\+\$\) must be .* repetitions"
    ):
        subject_of("a" * 100 + "!", {}, "(a+)+$")


def test_columns_are_those_of_the_file_format():
    assert ",".join(COLUMNS) == (
        "case,subject,source,source_frame,split,frame,n_frames,phase,base,"
        "vendor,centre,scanner,field,pathology"
    )


def test_cases_survive_the_file(tmp_path: Path):
    cases = [make_case("B2", 3), make_case("A1", 0, phase="", base="unknown", split="test")]
    write_cases(tmp_path / "cases.csv", cases)
    assert list(read_cases(tmp_path / "cases.csv").values()) == cases
    assert [case.labelled for case in cases] == [True, False]
    assert [file.name for file in tmp_path.iterdir()] == ["cases.csv"]


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path: Path):
    file = tmp_path / "cases.csv"
    write_cases(file, [make_case()])
    file.write_text(file.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert read_cases(file) == {"A1_frame00": make_case()}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_a_file_saved_by_a_spreadsheet_of_another_country_is_read(tmp_path: Path, encoding: str):
    case = replace(make_case(), vendor="Klinik Österreich", field="1.5", pathology="")
    file = tmp_path / "cases.csv"
    write_cases(file, [case])
    text = file.read_text(encoding="utf-8").replace(",", ";").replace("1.5", "1,5") + ";;;\n"
    file.write_bytes(text.replace(f";{case.n_frames};", f";{case.n_frames},0;").encode(encoding))
    assert read_cases(file) == {"A1_frame00": case}


def test_lost_leading_zeros_are_noticed(tmp_path: Path):
    file = tmp_path / "cases.csv"
    write_cases(file, [replace(make_case(), case="mm2-007_frame00", subject="7")])
    with pytest.raises(
        ValueError, match=r"row 2: `subject` \(=7\) must keep the leading zeros of 007"
    ):
        read_cases(file)
    write_cases(file, [replace(make_case(), case="mm2-007_frame00", subject="007")])
    assert read_cases(file)["mm2-007_frame00"].subject == "007"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "val", r"cases\.csv, row 3: `split` \(=val\) must be one of train, test"),
        ("phase", "ed", r"row 3: `phase` \(=ed\) must be one of empty, ED, ES"),
        ("base", "", r"row 3: `base` \(=\) must be one of first, last, unknown"),
        ("frame", "1.5", r"row 3: `frame` \(=1.5\) must be a whole number from 0"),
        ("frame", "-1", r"`frame` \(=-1\) must be a whole number"),
        ("frame", "25", r"row 3: `frame` \(=25\) must be below `n_frames` \(=25\)"),
        ("case", "A1_frame00", r"row 3: `case` \(=A1_frame00\) must occur only once"),
        ("subject", "", "row 3: `subject` must not be empty"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, column: str, value: str, message: str):
    file = tmp_path / "cases.csv"
    write_cases(file, [make_case("A1"), make_case("B2")])
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[1][column] = value
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=message):
        read_cases(file)


def test_missing_columns_and_short_rows_are_named(tmp_path: Path):
    file = tmp_path / "cases.csv"
    file.write_text("case,subject\nA1_frame00,A1\n")
    with pytest.raises(ValueError, match=r"cases\.csv: column source, source_frame,.* is missing"):
        read_cases(file)
    file.write_text(",".join(COLUMNS) + "\nA1_frame00,A1\n")
    with pytest.raises(ValueError, match="row 2: column source has no value"):
        read_cases(file)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_cases(tmp_path / "nowhere.csv")


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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    file, temporary = tmp_path / "images" / "a.nii.gz", tmp_path / ".ssp-tmp"
    with atomic_write(file, temporary) as path:
        assert path.parent == temporary
        assert path.name.endswith("a.nii.gz")
        path.write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(file, temporary) as path:
        path.write_text("ne")
        raise OSError("disk")
    assert file.read_text() == "old"
    assert list(temporary.iterdir()) == []
    assert list(file.parent.iterdir()) == [file]


def test_writers_of_equal_numbers_do_not_share_a_file(tmp_path: Path, monkeypatch):
    """As in two containers."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    file = tmp_path / "a.json"
    with atomic_write(file) as one:
        one.write_text("one")
        with atomic_write(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one"
    with write_together(tmp_path) as one, write_together(tmp_path) as other:
        (one / "x").touch()
        (other / "y").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "x", "y"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch):
    """After a power cut there is the old file or the new one, and the name, too."""
    file, flushed = tmp_path / "a.json", []
    flush, replace_file = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        os, "replace", lambda a, b: (flushed.append("replaced"), replace_file(a, b))
    )
    with atomic_write(file) as path:
        path.write_text("new")
    assert flushed == [str(path), "replaced", str(tmp_path)]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path):
    file = tmp_path / "a.json"
    with pytest.raises(OSError, match="No space") as full, atomic_write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert in_words(full.value) == f"{file}: no space left."
    with pytest.raises(FileNotFoundError) as other, atomic_write(file):
        (tmp_path / "nowhere").read_text()
    assert other.value.filename == str(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path):
    code = "import os, sys; from nnunet_ssp.files.atomic import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as path: path.touch(); os._exit(9)"
    file = tmp_path / "checkpoint_latest.pth"
    subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".ssp-tmp-")
    file.touch()
    remove_half_written(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_a_killed_writer_left_is_removed(tmp_path: Path):
    """As `evaluate` leaves it; what a link leads to stays."""
    code = "import os, sys; from nnunet_ssp.files.atomic import write_together\n"
    code += "with write_together(sys.argv[1]) as folder: (folder / 'a').touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fold_0")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.is_dir() and left.name.startswith(".ssp-tmp-")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    (tmp_path / ".ssp-tmp-link").symlink_to(tmp_path / "else")
    remove_half_written(tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["else", "file"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def test_files_written_together_are_all_old_or_all_new(tmp_path: Path):
    folder = tmp_path / "made" / "out"
    with write_together(folder) as temporary:
        assert not folder.exists()
        (temporary / "a").write_text("1")
        (temporary / "b").write_text("1")
    assert [f.name for f in sorted(tmp_path.rglob("*"))] == ["made", "out", "a", "b"]

    with pytest.raises(OSError, match="disk"), write_together(folder) as temporary:
        (temporary / "a").write_text("2")
        raise OSError("the disk is full")
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"a": "1", "b": "1"}

    (folder / "kept").touch()
    with write_together(folder) as temporary:
        (temporary / "a").write_text("2")
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"a": "2", "b": "1", "kept": ""}


def test_unset_variables_are_named(folders: Path, monkeypatch: pytest.MonkeyPatch):
    assert nnunet_folder("nnUNet_raw") == folders / "raw"
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(RuntimeError, match=r"nnUNet_results is not set.*export nnUNet_results="):
        check_dataset_id(114, "MNMs")


def test_a_dataset_is_found_by_id_and_by_name(folders: Path):
    raw = folders / "raw"
    (raw / "Dataset114_MNMs").mkdir()
    (raw / "Dataset007_ACDC").mkdir()
    assert dataset_folder(raw, "114") == raw / "Dataset114_MNMs"
    assert dataset_folder(raw, 7) == raw / "Dataset007_ACDC"
    assert dataset_folder(raw, "Dataset114_MNMs") == raw / "Dataset114_MNMs"
    with pytest.raises(FileNotFoundError, match=r"no dataset 8 here; found Dataset007_ACDC, Data"):
        dataset_folder(raw, 8)
    with pytest.raises(FileNotFoundError, match="no dataset Dataset114_Other"):
        dataset_folder(raw, "Dataset114_Other")
    with pytest.raises(FileNotFoundError, match="found no dataset"):
        dataset_folder(folders / "results", 114)
    (raw / "Dataset114_Other").mkdir()
    with pytest.raises(ValueError, match="must belong to one folder, not to Dataset114_MNMs, Data"):
        dataset_folder(raw, 114)
    assert dataset_folder(raw, "Dataset114_Other") == raw / "Dataset114_Other"


@pytest.mark.parametrize(
    "dataset", ["MNMs", "Dataset14_X", "-3", "", "114_MNMs", "\u0661\u0661\u0664"]
)
def test_what_is_no_dataset_is_refused(dataset: str):
    with pytest.raises(ValueError, match="must be a number"):
        dataset_id(dataset)


def test_ids_have_three_digits():
    with pytest.raises(ValueError, match=r"dataset id \(=1000\) must be within 1 to 999"):
        dataset_id(1000)


@pytest.mark.parametrize("where", ["raw", "preprocessed", "results"])
def test_a_taken_id_is_refused(folders: Path, where: str):
    assert check_dataset_id(114, "MNMs") == folders / "raw" / "Dataset114_MNMs"
    (folders / where / "Dataset114_Other").mkdir()
    with pytest.raises(
        FileExistsError, match=rf"{where}/Dataset114_Other: dataset id 114 is taken"
    ):
        check_dataset_id(114, "MNMs")


def test_leftovers_of_the_same_name_need_the_raw_dataset(folders: Path):
    (folders / "preprocessed" / "Dataset114_MNMs").mkdir()
    with pytest.raises(FileExistsError, match="dataset id 114 is taken"):
        check_dataset_id(114, "MNMs")
    (folders / "raw" / "Dataset114_MNMs").mkdir()
    assert check_dataset_id(114, "MNMs").is_dir()


def test_a_name_that_is_no_folder_name_is_refused(folders: Path):
    with pytest.raises(ValueError, match=r"`name` \(=a/b\) must be made of letters"):
        check_dataset_id(114, f"a{os.sep}b")
