from __future__ import annotations

import csv
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import case_files, read_cases, write_cases
from nnunet_ssp.cohort.command import folds
from nnunet_ssp.cohort.dataset import read_folds
from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.cohort.published import PAPER_FOLDS, PUBLISHED
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files import lock
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nifti import write_nifti
from tests.cohort.conftest import NAME, write_dataset
from tests.cohort.test_few import acdc
from tests.cohort.test_folds import make_cases
from tests.cohort.test_published import published_cases
from tests.holders import held


def tables(*folders: Path) -> list[bytes]:
    return [
        (folder / name).read_bytes()
        for folder in folders
        for name in ("cases.csv", "splits_final.json", "folds.csv")
    ]


def results(raw: Path, fold: int) -> Path:
    folder = raw.parents[1] / "results" / NAME / "trainer__plans__2d" / f"fold_{fold}"
    folder.mkdir(parents=True)
    return folder


def test_the_table_tells_which_number_to_type(raw: Path, capsys: pytest.CaptureFixture[str]):
    before = tables(raw)
    assert folds(114) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: 18 subjects to train on, 2 to test on"
    assert lines[3].split() == ["fold", "name", *["subjects", "frames", "slices"] * 2, "from"]
    assert lines[4].split()[:8] == ["0", "5-fold-0", "12", "24", "-", "4", "8", "-"]
    assert "stratified by vendor" in lines[4]
    assert tables(raw) == before


def test_appended_folds_are_in_both_copies_and_the_others_stay(
    raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
):
    results(raw, 0)
    before = read_folds(raw)
    assert folds(114, amounts=[2, 4], seeds=[0, 7], base="1") == 0
    after = read_folds(raw)
    assert after[:5] == before
    assert [fold.name for fold in after[5:]] == [
        f"5-fold-1-nr{n}-seed{seed}" for n in (2, 4) for seed in (0, 7)
    ]
    assert after[5].val == before[1].val
    assert tables(raw) == tables(prepared)
    with open(raw / "folds.csv", newline="") as stream:
        row = list(csv.DictReader(stream))[5]
    assert row["fold"] == "5"
    assert row["n_train_subjects"] == "2"
    assert row["source"] == "2 subjects of 5-fold-1, seed 0"
    output = capsys.readouterr().out
    command = "nnunet-ssp prepare 114 && nnUNetv2_train 114 2d 5 -tr nnUNetTrainerScratch"
    assert f"Wrote folds 5 to 8. To train from scratch on the first: {command}" in output
    assert [line[:7] for line in output.splitlines() if line.startswith("+")] == [
        f"+    {number} " for number in (5, 6, 7, 8)
    ]


def test_the_same_again_changes_nothing(raw: Path, capsys: pytest.CaptureFixture[str]):
    folds(114, amounts=[0.5], seeds=[0], vendors=["ge", "canon"], phase="ES")
    before = tables(raw)
    capsys.readouterr()
    folds(114, amounts=[0.5], seeds=[0], vendors=["ge", "canon"], phase="ES")
    assert "Nothing to do: all these folds are there already." in capsys.readouterr().out
    assert tables(raw) == before
    new = read_folds(raw)[5]
    cases = read_cases(raw / "cases.csv")
    assert new.name == "5-fold-0-ge+canon-ES-nr3-seed0"
    assert {cases[name].phase for name in (*new.train, *new.val)} == {"ES"}


def test_a_dry_run_writes_nothing(raw: Path, capsys: pytest.CaptureFixture[str]):
    before = tables(raw)
    folds(114, phase="ED", dry_run=True)
    output = capsys.readouterr().out
    assert "Would write fold 5; nothing was written." in output
    assert "+    5 5-fold-0-ED " in output
    assert tables(raw) == before


def test_a_subset_by_slices(raw: Path):
    cases = read_cases(raw / "cases.csv")
    with pytest.raises(FileNotFoundError, match="has no readable image to count the slices of"):
        folds(114, amounts=[10], unit="slices")
    for name in read_splits(raw / "splits_final.json")[0]["train"]:
        image = case_files(raw, cases[name])[0]
        image.parent.mkdir(exist_ok=True)
        write_nifti(image, np.ones((4, 5, 10), np.uint8), np.eye(4))
    folds(114, amounts=[1, 0.25], unit="slices", seeds=[3])
    one, quarter = read_folds(raw)[5:]
    assert (one.name, len(one.train)) == ("5-fold-0-slices1-seed3", 1)
    assert (quarter.name, len(quarter.train)) == ("5-fold-0-slices60-seed3", 6)


def test_a_fold_with_results_is_replaced_only_when_told(
    raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    split = {"test": {"mm1": []}, "train": {"mm1": ["S000"]}, "valid": {"mm1": ["S001"]}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(split))
    folds(114, files=[file])
    split["train"]["mm1"].append("S002")
    file.write_text(yaml.safe_dump(split))
    before = tables(raw, prepared)
    with pytest.raises(ValueError, match=r"the name mine is taken by fold 5.*--overwrite replaces"):
        folds(114, files=[file])
    results(raw, 5)
    assert tables(raw, prepared) == before
    capsys.readouterr()
    folds(114, files=[file], overwrite=True)
    assert "holds results of fold 5 as it was before" in capsys.readouterr().out
    cases = read_cases(raw / "cases.csv")
    assert subjects_of(read_folds(raw)[5].train, cases) == {"mm1-S000", "mm1-S002"}
    assert tables(raw) == tables(prepared)


def test_copies_that_differ_where_results_are_need_overwrite(raw: Path, prepared: Path):
    """Appending would bring a fold of nnUNet_raw over the one that was trained."""
    splits = read_splits(prepared / "splits_final.json")
    write_json(prepared / "splits_final.json", splits[::-1])
    results(raw, 1)
    before = tables(raw, prepared)
    with pytest.raises(
        FileExistsError, match=r"splits_final\.json: fold 1 differs from the one .* --overwrite"
    ):
        folds(114, phase="ED")
    assert tables(raw, prepared) == before
    folds(114, phase="ED", overwrite=True)
    assert tables(raw) == tables(prepared)


def test_the_prepared_folder_is_enough(raw: Path, prepared: Path):
    for file in raw.iterdir():
        file.unlink()
    raw.rmdir()
    write_json(prepared / "dataset.json", {})
    folds("114", phase="ES")
    assert read_folds(prepared)[5].name == "5-fold-0-ES"
    assert not raw.exists()


def test_the_last_folds_can_be_removed_unless_trained(
    raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
):
    before = tables(raw, prepared)
    folds(114, amounts=[2, 4], seeds=[0])
    for wrong in ([5], [7], [2, 5, 6]):
        with pytest.raises(
            ValueError, match=r"--remove` \(=.* must be the last of the folds, up to 6"
        ):
            folds(114, remove=wrong)
    with pytest.raises(ValueError, match="must leave the folds of the cross-validation"):
        folds(114, remove=[3, 4, 5, 6])
    folder = results(raw, 6)
    with pytest.raises(FileExistsError, match="results were trained on fold 6"):
        folds(114, remove=[6])
    folder.rmdir()
    assert folds(114, remove=[6, 5], dry_run=True) == 0
    assert tables(raw, prepared) != before
    assert main(["folds", "114", "--remove", "6", "5"]) == 0
    assert "Removed fold 5, 6." in capsys.readouterr().out
    assert tables(raw, prepared) == before
    with pytest.raises(ValueError, match=r"--remove 4 must come without .*: --check"):
        folds(114, remove=[4], check=True)


def test_a_mistyped_fold_is_answered_by_the_nearest(raw: Path):
    with pytest.raises(
        ValueError, match=r"one of the 5 folds\. Perhaps 5-fold-2 .*\? nnunet-ssp folds Dataset"
    ):
        folds(114, amounts=[2], base="5fold-2")


# -- the paper's -----------------------------------------------------------------------------------


def test_other_data_get_the_procedure_of_the_paper(raw: Path, capsys: pytest.CaptureFixture[str]):
    assert folds(114, paper=True, verify=True) == 1
    output = capsys.readouterr().out
    assert "The 16 subjects are not the 370 of de Mooij et al. 2024" in output
    assert "Left out, as there are too few subjects: paper-nr50, paper-nr25, paper-nr15" in output
    assert "nothing was written" in output and "nnUNetv2_train" not in output
    assert output.count(" differs") == len(PUBLISHED)
    row = next(line for line in output.splitlines() if line.startswith("train "))
    assert row.split()[1:3] == ["296", "13"]
    assert row.endswith("differs  5")


def test_the_folds_of_the_paper_are_verified(
    raw: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
):
    cases = published_cases(real_data)
    write_dataset(raw.parent / "Dataset200_Paper", cases)
    assert folds(200, verify=True) == 0
    output = capsys.readouterr().out
    assert output.count(" match") == len(PUBLISHED)
    assert "fold name" not in output
    before = tables(raw.parent / "Dataset200_Paper")
    assert folds(200, paper=True, verify=True) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert tables(raw.parent / "Dataset200_Paper") == before
    assert folds(200, paper=True) == 0
    assert f"Wrote folds 5 to {4 + len(PAPER_FOLDS)}." in capsys.readouterr().out
    assert folds(200, verify=True) == 0
    output = capsys.readouterr().out
    rows = {line[:12].strip(): line.split()[-1] for line in output.splitlines() if " match" in line}
    assert rows["train"] == rows["valid"] == "5"
    assert rows["nr50-seed0"] == "6"
    assert rows["valid C_D"] == "19"
    # A fold that somebody has changed since is not the paper's.
    folder = raw.parent / "Dataset200_Paper"
    splits = read_splits(folder / "splits_final.json")
    splits[6]["train"].pop()
    splits[6]["train"].pop()
    write_json(folder / "splits_final.json", splits)
    assert folds(200, verify=True) == 1
    assert "6 holds other subjects" in capsys.readouterr().out


def test_lists_with_unlabelled_subjects_still_match(
    raw: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
):
    cases = published_cases(real_data)
    bare = {*sorted(subjects_of((n for n in cases if cases[n].split == "train"), cases))[:2]}
    cases = {n: c for n, c in cases.items() if c.subject_key not in bare or not c.labelled}
    write_dataset(raw.parent / "Dataset200_Paper", cases)
    assert folds(200, paper=True, verify=True) == 0
    assert "with labels" in capsys.readouterr().out


def test_the_folds_of_acdc_few(raw: Path, capsys: pytest.CaptureFixture[str]):
    write_dataset(raw.parent / "Dataset200_Few", acdc())
    assert folds(200, few=True) == 0
    output = capsys.readouterr().out
    assert "Wrote folds 5 to 20." in output
    assert "Pretrain on fold 5 (few), fine-tune on any of its subsets:\nnnunet-ssp prep" in output
    assert "nnUNetv2_train 200 2d 5 -tr nnUNetTrainerDensePretrain" in output
    assert folds(200, few=True, check=True) == 0


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("115", r"raw: no dataset 115 here; found Dataset114_Toy"),
        ("114 --subsets 99", r"a subset \(=99\) must be within 1 to 12, the number of training"),
        (
            "114 --few",
            "the split `few` is made for ACDC, by its patients' numbers; this dataset is of M&Ms",
        ),
        (
            "114 --paper --phase ED",
            "--paper and --phase ED: choose one of --paper, --few, --from and",
        ),
        ("114 --seeds 1", "--seeds 1 must come with --subsets"),
        ("114 --of 1", "--of 1 must come with --subsets, --vendors or --phase"),
        (
            "114 --of 5 --phase ED",
            r"`--of` \(=5\) must be the number or name of one of the 5 folds",
        ),
        ("114 --vendors Toshiba", r"`vendors` \(=Toshiba\) must be among those of fold 5-fold-0"),
        ("114 --from nowhere.yaml", r"error: nowhere\.yaml: there is no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
):
    before = tables(raw)
    assert main(["folds", *words.split()]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert tables(raw) == before


def test_datasets_without_folds_say_why(raw: Path, prepared: Path):
    (raw / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.json is missing: the conversion is unf"):
        folds(114)
    write_cases(raw / "cases.csv", make_cases({"U": "GE"}, phases=("",)).values())
    write_json(raw / "dataset.json", {})
    with pytest.raises(ValueError, match="no training subject has labels, so there are no folds"):
        folds(114, paper=True)
    (raw / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"cases\.csv is missing: without it subjects are"):
        folds(114)


def test_a_dataset_without_labels_is_listed_and_checked(
    raw: Path, capsys: pytest.CaptureFixture[str]
):
    write_cases(raw / "cases.csv", make_cases({"U": "GE"}, phases=("",)).values())
    (raw / "splits_final.json").unlink()
    assert folds(114) == 0
    assert "No folds: train on `all`." in capsys.readouterr().out
    assert folds(114, check=True) == 0
    assert "ok      0 folds" in capsys.readouterr().out
    assert folds(114, verify=True) == 1
    assert "differs" in capsys.readouterr().out


def test_an_unfinished_conversion_is_said_first(raw: Path):
    (raw / "dataset.json").unlink()
    (raw / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match="the conversion is unfinished, run nnunet-ssp"):
        folds(114)


def test_a_fold_of_unknown_cases_is_not_drawn_from(raw: Path):
    splits = read_splits(raw / "splits_final.json")
    splits[0]["train"].append("zebra")
    write_json(raw / "splits_final.json", splits)
    assert folds(114) == 0
    with pytest.raises(ValueError, match=r"fold 0: zebra must be in .*cases\.csv"):
        folds(114, amounts=[2])
    assert folds(114, check=True) == 1


def test_the_command_line(raw: Path, capsys: pytest.CaptureFixture[str]):
    words = "folds 114 --subsets 2 0.5 --seeds 1 --unit subjects --of 5-fold-2 --dry-run --verify"
    assert main(words.split()) == 1
    output = capsys.readouterr().out
    assert "5-fold-2-nr2-seed1" in output
    assert "5-fold-2-nr6-seed1" in output or "5-fold-2-nr7-seed1" in output
    assert "Lists of de Mooij et al. 2024" in output
    with pytest.raises(SystemExit):
        main(["folds", "114", "--subsets", "few"])
    assert "argument --subsets: few is neither a number nor a fraction" in capsys.readouterr().err


def test_the_leak_check_of_a_clean_dataset(raw: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["folds", "114", "--check"]) == 0
    output = capsys.readouterr().out
    assert "ok      5 folds: no subject on two sides, none of the test" in output
    assert "LEAK" not in output
    assert "have the same folds" not in output
    assert "preprocessed/Dataset114_Toy to compare with" in output


def test_slice_counts_name_what_is_held(raw: Path, capsys: pytest.CaptureFixture[str]):
    for case in read_cases(raw / "cases.csv").values():
        image = case_files(raw, case)[0]
        image.parent.mkdir(exist_ok=True)
        write_nifti(image, np.ones((4, 5, 10), np.uint8), np.eye(4))
    assert main(["folds", "114", "--subsets", "16", "--unit", "slices", "--seeds", "0"]) == 0
    assert "16 slices of 5-fold-0, seed 0 (20 held, in whole frames)" in capsys.readouterr().out


# -- nothing lost ----------------------------------------------------------------------------------


def test_copies_that_a_kill_left_different_are_repaired(
    raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Whatever the next call asks for: the answer must not be "Nothing to do" forever."""

    def killed(*_: object, **__: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nnunet_ssp.cohort.command.copy_tables", killed)
        folds(114, phase="ED")
    assert tables(raw) != tables(prepared)
    folds(114, phase="ED", dry_run=True)
    assert "splits_final.json in" in capsys.readouterr().out
    assert tables(raw) != tables(prepared)
    folds(114)
    said = capsys.readouterr().out
    assert f"Repaired: folds.csv and splits_final.json in {prepared}, as in {raw}." in said
    assert tables(raw) == tables(prepared)
    (prepared / "cases.csv").unlink()
    folds(114, phase="ED")
    said = capsys.readouterr().out
    assert "Repaired: cases.csv in" in said and "Nothing to do" in said
    assert tables(raw) == tables(prepared)


@pytest.mark.parametrize("content", ["", "[{", "\xff", "{}", '[{"train": 1}]'])
@pytest.mark.parametrize("command", [["folds", "114"], ["folds", "114", "--subsets", "3"]])
def test_a_damaged_copy_is_made_anew(raw: Path, prepared: Path, capsys, content, command):
    before = tables(raw)
    (prepared / "splits_final.json").write_bytes(content.encode("latin-1"))
    assert main([*command, "--dry-run"]) == 0
    assert main([*command, "--check"]) == 0
    assert tables(prepared) == tables(raw)
    assert (tables(raw) == before) == (len(command) == 2)
    assert "Repaired: splits_final.json" in capsys.readouterr().out


def test_a_damaged_table_of_the_raw_data_is_not_replaced(raw: Path, prepared: Path, capsys):
    (raw / "splits_final.json").write_text("[{")
    assert main(["folds", "114"]) == 1
    assert f"{raw / 'splits_final.json'}: not a JSON file" in capsys.readouterr().err
    assert read_splits(prepared / "splits_final.json")


def test_a_trained_fold_is_not_repaired_unasked(
    raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
):
    write_json(prepared / "splits_final.json", read_splits(raw / "splits_final.json")[::-1])
    results(raw, 0)
    before = tables(raw, prepared)
    folds(114)
    said = capsys.readouterr().out
    assert re.search("WARNING: splits_final.json in .* differ: .* fold 0 differs", said)
    assert tables(raw, prepared) == before
    folds(114, overwrite=True)
    assert "WARNING" in capsys.readouterr().out
    assert tables(raw) == tables(prepared)


def test_a_kill_between_the_tables_appends_no_fold_twice(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def killed(file: Path, content: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nnunet_ssp.cohort.splits.write_json", killed)
        folds(114, phase="ED")
    folds(114, phase="ED")
    folds(114, phase="ED")
    assert [fold.name for fold in read_folds(raw)].count("5-fold-0-ED") == 1
    assert len(read_folds(raw)) == 6


@pytest.mark.parametrize("side", ["train", "val"])
def test_names_that_are_no_cases_are_refused(
    raw: Path, capsys: pytest.CaptureFixture[str], side: str
):
    splits = read_splits(raw / "splits_final.json")
    splits[1][side] += ["nobody_frame00", "U1_frame00", "T1_frame00"]
    write_json(raw / "splits_final.json", splits)
    names = "T1_frame00, U1_frame00, nobody_frame00"
    message = (
        f"fold 1: `{side}` names {names}, which must be labelled training cases of this dataset"
    )
    with pytest.raises(ValueError, match=f"splits_final.json: {message}"):
        folds(114, phase="ED")
    assert read_splits(raw / "splits_final.json") == splits
    assert folds(114) == 0
    assert f"WARNING: {message}." in capsys.readouterr().out


def test_a_fold_that_holds_nobody_out_is_said_to(raw: Path, capsys: pytest.CaptureFixture[str]):
    splits = read_splits(raw / "splits_final.json")
    splits[2]["val"] = []
    write_json(raw / "splits_final.json", splits)
    folds(114)
    assert "WARNING: fold 2: `val` is empty, so nobody is held out" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["raw", "preprocessed"])
def test_another_process_in_the_dataset_is_named(
    raw: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setattr(lock, "SECONDS_TO_WAIT", 0.0)
    before = tables(raw, prepared)
    with held(raw.parents[1] / place / NAME) as holder:
        with pytest.raises(RuntimeError, match=rf"{NAME} is in use by .*process {holder.pid} on"):
            folds(114, phase="ED")
        assert folds(114) == 0  # reads
        assert folds(114, phase="ED", dry_run=True) == 0
    assert tables(raw, prepared) == before
    folds(114, phase="ED")


def test_of_two_at_once_none_loses_its_folds(raw: Path, prepared: Path):
    """As on a slow file system, each process reads, waits, and writes."""
    slow = """
import sys, time
from nnunet_ssp.cohort import command as folds
real = folds._derive
def derive(*arguments):
    time.sleep(1)
    return real(*arguments)
folds._derive = derive
print("ready", flush=True)
sys.stdin.readline()
folds.folds(114, phase=sys.argv[1])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", slow, phase],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for phase in ("ED", "ES")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.communicate("go\n", timeout=100), processes))
    assert [process.returncode for process in processes] == [0, 0]
    assert {fold.name for fold in read_folds(raw)[5:]} == {"5-fold-0-ED", "5-fold-0-ES"}
    assert tables(raw) == tables(prepared)
