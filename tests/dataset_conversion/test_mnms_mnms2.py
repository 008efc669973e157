from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.dataset_conversion import mnms_mnms2
from nnunet_ssp.dataset_conversion.mnms_mnms2 import convert, draw_test_subjects
from tests.cine_trees import ED, ES, add_acdc, add_mnms, add_mnms2, drawn


@pytest.fixture
def trees(tmp_path: Path, raw: Path) -> list[Path]:
    """Four subjects of two vendors of M&Ms, and five of M&Ms-2, three of them in categories that overlap."""
    mm1, mm2 = tmp_path / "mm1", tmp_path / "mm2"
    for code, vendor, place in (
        ("A1", "A", "Training/Labeled"),
        ("B1", "B", "Testing"),
        ("A2", "A", "Validation"),
        ("B2", "B", "Training/Unlabeled"),
    ):
        add_mnms(mm1, place, code, drawn(ED, ES), Vendor=vendor, VendorName=f"V{vendor}")
    for number, disease in ((1, "NOR"), (101, "ARR"), (161, "HCM"), (210, "LV"), (281, "TRI")):
        add_mnms2(mm2, number, DISEASE=disease)
    return [mm1, mm2]


def log(target: Path) -> dict[str, object]:
    return json.loads((target / "convert.json").read_text())


def splits(target: Path) -> dict[str, set[str]]:
    cases = read_cases(target / "cases.csv").values()
    return {
        split: {case.subject_key for case in cases if case.split == split}
        for split in ("train", "test")
    }


def test_overlapping_categories_are_left_out(trees: list[Path], capsys: pytest.CaptureFixture[str]):
    target = convert(trees, 119)
    assert target.name == "Dataset119_MNMsAndMNMs2"
    found = splits(target)
    assert found["train"] | found["test"] == {
        "mm1-A1",
        "mm1-A2",
        "mm1-B1",
        "mm1-B2",
        "mm2-101",
        "mm2-281",
    }
    assert log(target)["refused"] == {}
    output = capsys.readouterr().out
    assert "as they may be in M&Ms too: 3 subjects of the categories NOR, HCM, LV." in output


def test_the_folder_does_not_decide_what_is_for_the_test(trees: list[Path]):
    found = splits(convert(trees, 119))
    drawn_codes, _ = draw_test_subjects(
        [{"Vendor": c[0], "VendorName": "", "External code": c} for c in ("A1", "B1", "A2", "B2")]
    )
    assert found["test"] == {"mm2-281"} | {f"mm1-{code}" for code in drawn_codes}
    assert len(drawn_codes) == 2


def test_other_data_than_the_published_are_spoken_of(
    trees: list[Path], capsys: pytest.CaptureFixture[str]
):
    target = convert(trees, 119)
    output = capsys.readouterr().out
    assert (
        "WARNING: vendor A of M&Ms has 2 subjects, so 1 instead of 15 are for the test." in output
    )
    assert "WARNING: train: 3 subjects, which are not the 370 of de Mooij et al. 2024." in output
    assert "WARNING: test: 3 subjects, which are not the 140 of de Mooij et al. 2024." in output
    assert len(log(target)["remarks"]) == 5
    convert(trees, 120, "Dry", dry_run=True)
    output = capsys.readouterr().out
    assert "WARNING: test: 3 subjects, which are not the 140" in output
    assert "WARNING: no subject of M&Ms-2" not in output


def test_without_test_numbers_there_is_none_of_mnms2(
    trees: list[Path], capsys: pytest.CaptureFixture[str]
):
    (trees[1] / "dataset_information.csv").write_text(
        "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n101,ARR,SIEMENS,,\n"
    )
    target = convert(trees, 119)
    output = capsys.readouterr().out
    assert "WARNING: no subject of M&Ms-2 is for the test: 281 to 360 are not there." in output
    assert not [key for key in splits(target)["test"] if key.startswith("mm2")]
    # The others are not in the CSV, so their category is unknown.
    refused = log(target)["refused"]
    assert sorted(refused) == ["mm2-001", "mm2-161", "mm2-210", "mm2-281"]
    assert refused["mm2-001"].endswith("001: no DISEASE in the CSV, so it may be in M&Ms too.")


def test_unusable_subjects_of_categories_left_out_are_not_refused(trees: list[Path]):
    (trees[1] / "dataset/161/161_SA_CINE.nii.gz").unlink()
    (trees[1] / "dataset/101/101_SA_CINE.nii.gz").unlink()
    assert list(log(convert(trees, 119))["refused"]) == ["mm2-101"]


def test_an_unlabelled_subject_drawn_for_the_test_is_refused(trees: list[Path]):
    codes, _ = draw_test_subjects(
        [{"Vendor": c[0], "VendorName": "", "External code": c} for c in ("A1", "B1", "A2", "B2")]
    )
    code = sorted(codes)[0]
    next(trees[0].rglob(f"{code}_sa_gt.nii.gz")).unlink()
    target = convert(trees, 119)
    reason = log(target)["refused"][f"mm1-{code}"]
    assert "there is no mask; a test subject must have labels." in reason
    assert "WARNING: test: 2 subjects, which are not the 140" in str(log(target)["remarks"])


def test_a_list_of_test_subjects_replaces_the_draw(trees: list[Path], tmp_path: Path):
    (tmp_path / "test.txt").write_text("mm1-A2\nmm2-101\n")
    target = convert(trees, 119, test=tmp_path / "test.txt")
    assert splits(target)["test"] == {"mm1-A2", "mm2-101"}
    assert len(log(target)["remarks"]) == 1


def test_further_sources_keep_their_division(trees: list[Path], tmp_path: Path):
    add_acdc(tmp_path / "acdc", "testing", 101)
    add_acdc(tmp_path / "acdc", "training", 1)
    found = splits(convert(trees, 119, add=[f"acdc:{tmp_path / 'acdc'}"]))
    assert "acdc-patient101" in found["test"]
    assert "acdc-patient001" in found["train"]


def test_the_command(trees: list[Path], capsys: pytest.CaptureFixture[str]):
    words = ["convert", "mnms+mnms2", "-i", *map(str, trees), "-d", "119", "-np", "1"]
    assert main([*words, "--dry-run"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:5]] == [
        ["train", "3", "3", "0", "12", "0"],
        ["test", "3", "3", "0", "12", "0"],
        ["all", "6", "6", "0", "24", "0"],
    ]
    assert main(words) == 0
    with pytest.raises(SystemExit):
        main(["convert", "mnms+mnms2", "-i", str(trees[0]), "-d", "119"])
    assert "-i: expected 2 arguments" in capsys.readouterr().err


# -- the draw --------------------------------------------------------------------------------------


def table(counts: dict[str, int]) -> list[dict[str, str]]:
    """Rows in a mixed order, as in M&Ms' CSV."""
    vendors = [vendor for vendor, count in counts.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(vendors)
    return [
        {"Vendor": vendor, "VendorName": f"V{vendor}", "External code": f"S{number:03d}"}
        for number, vendor in enumerate(vendors)
    ]


PUBLISHED_SIZES = {"A": 95, "B": 125, "C": 75, "D": 50}


def test_the_draw_is_that_of_pandas():
    rows = table(PUBLISHED_SIZES)
    codes, remarks = draw_test_subjects(rows)
    frame = pd.DataFrame(rows)
    expected = {
        code
        for _, group in frame.groupby("Vendor")
        for code in group.sample(15, random_state=1234)["External code"]
    }
    assert codes == expected
    assert len(codes) == 60
    assert remarks == []


def test_the_order_of_the_rows_decides():
    rows = table(PUBLISHED_SIZES)
    assert draw_test_subjects(rows)[0] != draw_test_subjects(rows[::-1])[0]


def test_vendors_are_told_apart_by_their_names_where_there_are_no_letters():
    rows = table(PUBLISHED_SIZES)
    bare = [row | {"Vendor": ""} for row in rows]
    assert draw_test_subjects(bare) == draw_test_subjects(rows)


@pytest.mark.parametrize(("n", "drawn_n"), [(1, 0), (2, 1), (5, 2), (29, 14), (30, 15), (50, 15)])
def test_small_vendors_keep_half_for_training(n: int, drawn_n: int):
    codes, remarks = draw_test_subjects(table({"A": n}))
    assert len(codes) == drawn_n
    assert bool(remarks) == (drawn_n < 15)


# -- the published subjects ------------------------------------------------------------------------


def test_the_published_subjects_are_recognised(real_data: Path, tmp_path: Path, raw: Path):
    """M&Ms-2 has the published categories by number; of M&Ms only the codes are known here."""
    import yaml

    file = real_data / "splits" / "default-cine-split.yaml"
    if not file.is_file():
        pytest.skip(f"no {file}")
    published = yaml.safe_load(file.read_text())
    for number in range(1, 361):
        overlaps = number <= 100 or 161 <= number <= 175 or 201 <= number <= 280
        code = f"{number:03d}"
        (tmp_path / "dataset" / code).mkdir(parents=True)
        (tmp_path / "dataset" / code / f"{code}_SA_CINE.nii.gz").touch()
        with open(tmp_path / "dataset_information.csv", "a") as stream:
            if number == 1:
                stream.write("SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n")
            stream.write(f"{number},{'HCM' if overlaps else 'TRI'},SIEMENS,,\n")
    from nnunet_ssp.dataset_conversion.combined import open_source

    second, _ = mnms_mnms2.leave_out_overlap(open_source("mnms2", tmp_path))
    second = mnms_mnms2._divide(second, {str(n) for n in mnms_mnms2.TEST_NUMBERS})
    tests = {task.subject for task in second.tasks if task.split == "test"}
    assert tests == set(published["test"]["mm2"])
    others = {task.subject for task in second.tasks} - tests
    assert others == set(published["train"]["mm2"]) | set(published["valid"]["mm2"])

    splits = {f"mm2-{task.subject}": task.split for task in second.tasks}
    splits |= {
        f"mm1-{code}": "test" if part == "test" else "train"
        for part in ("train", "valid", "test")
        for code in published[part]["mm1"]
    }
    assert len(splits) == 510
    assert mnms_mnms2.compare_published(splits | {"acdc-patient001": "test"}) == [
        "train: the 370 subjects of de Mooij et al. 2024.",
        "test: the 140 subjects of de Mooij et al. 2024.",
    ]
    del splits[f"mm1-{published['test']['mm1'][0]}"]
    assert (
        "WARNING: test: 139 subjects, which are not the 140"
        in mnms_mnms2.compare_published(splits)[1]
    )
