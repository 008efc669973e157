from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import hashed_path
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.conversion.phases import LABELS
from nnunet_ssp.dataset_conversion import SOURCES, acdc, load_converter, mnms, mnms2
from tests.cine_trees import ED, ES, add_acdc, add_mnms, add_mnms2, cine, cine_of, drawn

SINGLE = list(SOURCES)


@pytest.fixture
def trees(tmp_path: Path, raw: Path) -> Path:
    """A folder with a tree of each dataset."""
    add_mnms(tmp_path / "mm1", "Training/Labeled", "A1", drawn(ED, ES), VendorName="Siemens")
    add_mnms(tmp_path / "mm1", "Training/Unlabeled", "U1")
    add_mnms(tmp_path / "mm1", "Testing", "T1", drawn(ED, ES))
    add_mnms2(tmp_path / "mm2", 1)
    add_mnms2(tmp_path / "mm2", 201)
    add_acdc(tmp_path / "acdc", "training", 1)
    add_acdc(tmp_path / "acdc", "training", 2, four_d=False)
    return tmp_path


def log(target: Path) -> dict[str, object]:
    return json.loads((target / "convert.json").read_text())


def files(folder: Path) -> dict[str, float]:
    return {str(f): f.stat().st_mtime_ns for f in sorted(folder.rglob("*"))}


def sources(trees: Path) -> list[str]:
    return [f"mnms2:{trees / 'mm2'}", f"acdc:{trees / 'acdc'}"]


def test_several_sources_make_one_dataset(trees: Path, capsys: pytest.CaptureFixture[str]):
    before = files(trees / "mm1") | files(trees / "mm2") | files(trees / "acdc")
    target = mnms.convert(trees / "mm1", 116, "All", add=sources(trees))
    cases = read_cases(target / "cases.csv")
    assert {case.split: case.subject_key for case in cases.values()}.keys() == {"train", "test"}
    assert sorted({name.split("_frame")[0] for name in cases}) == [
        "acdc-patient001",
        "acdc-patient002",
        "mm1-A1",
        "mm1-T1",
        "mm1-U1",
        "mm2-001",
        "mm2-201",
    ]
    for name, case in cases.items():
        assert name == f"{case.subject_key}_frame{case.frame:02d}"
    assert {c.subject_key for c in cases.values() if c.split == "test"} == {"mm1-T1", "mm2-201"}
    assert cases["acdc-patient001_frame02"].source_frame == 3
    for folder in ("imagesTr", "imagesUn", "imagesTs"):
        for file in (target / folder).iterdir():
            assert file.name.removesuffix("_0000.nii.gz") in cases
    for name, voxels in (
        ("imagesTr/mm1-A1_frame00", cine_of("A1")),
        ("imagesTr/mm2-001_frame00", cine(1)),
        ("imagesTr/acdc-patient001_frame00", cine(1)),
    ):
        image = sitk.GetArrayFromImage(sitk.ReadImage(target / f"{name}_0000.nii.gz")).T
        assert np.array_equal(image, voxels[..., 0])
        label = target / f"{name}.nii.gz".replace("images", "labels")
        mask = sitk.GetArrayFromImage(sitk.ReadImage(label)).T
        assert np.array_equal(mask, drawn(ED, ES)[..., ED])
    dataset = json.loads((target / "dataset.json").read_text())
    assert (dataset["numTraining"], dataset["labels"]) == (8, LABELS)
    assert dataset["description"].endswith("; with mnms2, acdc")
    assert len(read_splits(target / "splits_final.json")) == 4
    assert log(target)["converter"] == "mnms+mnms2+acdc"
    added = [text.partition(":") for text in sources(trees)]
    expected = [f"{name}:{hashed_path(folder)}" for name, _, folder in added]
    assert log(target)["options"]["add"] == expected
    assert str(trees) not in (target / "convert.json").read_text()
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines() if line.startswith(("mm", "ac"))] == [
        ["mm1", "train", "2", "8", "2", "6", "0", "0"],
        ["mm1", "test", "1", "2", "2", "0", "0", "0"],
        ["mm2", "train", "1", "4", "2", "2", "0", "0"],
        ["mm2", "test", "1", "2", "2", "0", "0", "0"],
        ["acdc", "train", "2", "6", "4", "2", "0", "0"],
    ]
    assert files(trees / "mm1") | files(trees / "mm2") | files(trees / "acdc") == before


def test_processes_give_the_same_as_one(trees: Path):
    one = mnms.convert(trees / "mm1", 116, "One", add=sources(trees))
    two = mnms.convert(trees / "mm1", 117, "Two", add=sources(trees), workers=2)
    contents = [
        {file.relative_to(target): file.read_bytes() for file in target.rglob("*.nii.gz")}
        for target in (one, two)
    ]
    assert contents[0] == contents[1]
    assert (one / "cases.csv").read_bytes() == (two / "cases.csv").read_bytes()


@pytest.mark.parametrize("converter", ["mnms", "mnms2", "acdc"])
def test_any_source_may_be_the_first(trees: Path, converter: str):
    folders = {"mnms": trees / "mm1", "mnms2": trees / "mm2", "acdc": trees / "acdc"}
    others = [f"{name}:{folder}" for name, folder in folders.items() if name != converter]
    target = load_converter(converter).convert(folders[converter], 116, "All", add=others)
    assert len({case.subject_key for case in read_cases(target / "cases.csv").values()}) == 7


def test_single_sources_keep_their_names(trees: Path):
    assert "A1_frame00" in read_cases(mnms.convert(trees / "mm1", 116) / "cases.csv")


def test_lists_of_test_subjects_have_the_names_of_the_dataset(trees: Path, tmp_path: Path):
    (tmp_path / "test.txt").write_text("mm2-001\nacdc-patient002\n")
    target = mnms.convert(trees / "mm1", 116, add=sources(trees), test=tmp_path / "test.txt")
    cases = read_cases(target / "cases.csv").values()
    assert {c.subject_key for c in cases if c.split == "test"} == {"mm2-001", "acdc-patient002"}
    (tmp_path / "test.txt").write_text("A1\n")
    with pytest.raises(ValueError, match=r"test\.txt: no subject is called A1"):
        mnms.convert(trees / "mm1", 117, add=sources(trees), test=tmp_path / "test.txt")


def test_refused_subjects_are_named_after_their_source(trees: Path):
    (trees / "acdc/training/patient001/patient001_frame01_gt.nii.gz").write_bytes(b"")
    (trees / "mm2/dataset/001/001_SA_CINE.nii.gz").unlink()
    target = mnms.convert(trees / "mm1", 116, add=sources(trees))
    assert sorted(log(target)["refused"]) == ["acdc-patient001", "mm2-001"]


def test_a_subject_in_two_folders_of_one_source_is_refused(trees: Path):
    add_acdc(trees / "more", "training", 1)
    add_acdc(trees / "more", "training", 3)
    target = acdc.convert(trees / "acdc", 116, add=[f"acdc:{trees / 'more'}"])
    assert list(log(target)["refused"]) == ["acdc-patient001"]
    assert "is in another source too" in log(target)["refused"]["acdc-patient001"]
    assert len({case.subject for case in read_cases(target / "cases.csv").values()}) == 2


def test_mnms_and_mnms2_without_the_overlap_rule_is_warned_of(
    trees: Path, capsys: pytest.CaptureFixture[str]
):
    mnms2.convert(trees / "mm2", 116, add=[f"mnms:{trees / 'mm1'}"])
    assert "WARNING: some subjects of M&Ms may be in M&Ms-2 too" in capsys.readouterr().out
    mnms.convert(trees / "mm1", 117, add=[f"acdc:{trees / 'acdc'}"])
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["acdc", "acdc:", "mri:/data", "mnms+mnms2:/data", "/data"])
def test_what_is_no_source(trees: Path, text: str):
    with pytest.raises(
        ValueError, match=r"`--add` \(=.*\) must be SOURCE:FOLDER, SOURCE one of mnms"
    ):
        mnms.convert(trees / "mm1", 116, add=[text])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        mnms.convert(trees / "mm1", 116, add=["acdc:nowhere"])


def test_other_labels_are_refused(trees: Path):
    with pytest.raises(
        ValueError,
        match=r"mm1: labels \(=background 0, LVBP 1, LVM 2, RV 3\) must be those of .*acdc \(=.*MLV",
    ):
        acdc.convert(trees / "acdc", 116, add=[f"mnms:{trees / 'mm1'}"], keep_labels=True)


def test_only_the_same_sources_continue(trees: Path, raw: Path):
    target = mnms.convert(trees / "mm1", 116, add=sources(trees))
    (target / "dataset.json").unlink()
    with pytest.raises(
        FileExistsError, match=r"by convert mnms.*, now mnms; with --add, now without"
    ):
        mnms.convert(trees / "mm1", 116)
    with pytest.raises(
        FileExistsError, match="an unfinished conversion with other settings: another --add"
    ):
        mnms.convert(
            trees / "mm1", 116, add=[*sources(trees), f"acdc:{trees / 'mm2' / '..' / 'acdc'}"]
        )
    assert mnms.convert(trees / "mm1", 116, add=sources(trees)) == target


# -- what every converter offers -------------------------------------------------------------------


@pytest.mark.parametrize("converter", SINGLE)
def test_converters_can_be_sources(converter: str):
    module = load_converter(converter)
    assert module.SOURCE and "-" not in module.SOURCE
    assert module.LABELS["background"] == 0
    assert callable(module.list_tasks) and callable(module.read_subject)


@pytest.mark.parametrize("converter", ["mnms", "mnms2", "acdc"])
def test_the_command_converts(converter: str, trees: Path, capsys: pytest.CaptureFixture[str]):
    folder = {"mnms": "mm1", "mnms2": "mm2", "acdc": "acdc"}[converter]
    words = ["convert", converter, "-i", str(trees / folder), "-d", "116", "-np", "1"]
    before = files(trees)
    assert main([*words, "--dry-run"]) == 0
    assert files(trees) == before
    output = capsys.readouterr().out
    assert "Dry run: nothing was written. The dataset would be" in output
    assert main([*words, "--name", "X"]) == 0
    assert "Next: nnunet-ssp prepare 116" in capsys.readouterr().out
    written = files(trees)
    for further in ([], ["--overwrite"]):
        assert main([*words, "--name", "X", "--dry-run", *further]) == 0
        assert "That folder holds a finished dataset: choose" in capsys.readouterr().out
    assert files(trees) == written


def test_the_command_takes_several_sources(trees: Path, capsys: pytest.CaptureFixture[str]):
    add = [word for text in sources(trees) for word in ("--add", text)]
    words = ["convert", "mnms", "-i", str(trees / "mm1"), "-d", "116", *add, "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines() if line.startswith(("all", "ac"))] == [
        ["all", "7", "6", "1", "26", "0"],
        ["acdc", "train", "2", "2", "0", "6", "0"],
    ]
    assert "test: mm1-T1, mm2-201" in output


@pytest.mark.parametrize("converter", SINGLE)
def test_a_file_is_no_folder(converter: str, trees: Path):
    (trees / "file.nii.gz").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"file\.nii\.gz: must be a folder, not a file"):
        load_converter(converter).convert(trees / "file.nii.gz", 116)


@pytest.mark.parametrize("converter", ["mnms", "mnms2", "acdc"])
def test_nothing_is_written_outside_the_datasets_folder(trees: Path, raw: Path, converter: str):
    folder = {"mnms": "mm1", "mnms2": "mm2", "acdc": "acdc"}[converter]
    before = files(trees)
    target = load_converter(converter).convert(trees / folder, 116, "Only")
    after = {
        name: stamp for name, stamp in files(trees).items() if not name.startswith(str(target))
    }
    before[str(raw)] = after[str(raw)]  # the folder of the folders has a new entry
    assert after == before
