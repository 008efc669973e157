from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from nnunet_ssp import nnunet
from nnunet_ssp.nnunet import (
    check_dataset_id,
    check_folders,
    dataset_folder,
    dataset_id,
    environment,
    nnunet_folder,
    quiet,
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


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


def test_a_name_or_a_number_alone_is_answered_by_what_is_there(folders: Path):
    with pytest.raises(ValueError, match=r"There are: no datasets yet\."):
        dataset_id("Cine")
    (folders / "raw" / "Dataset114_MNMs").mkdir()
    (folders / "preprocessed" / "Dataset120_Cine").mkdir()
    there = r"\(Dataset114_MNMs\)\. There are: Dataset120_Cine, Dataset114_MNMs\."
    for wrong in ("cine", "Dataset120", "120_Cine", "Dataset12_Cine"):
        with pytest.raises(ValueError, match=there):
            dataset_folder(folders / "raw", wrong)
    (folders / "raw" / "Dataset120_Cine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"here; found Dataset120_Cine, Dataset114_MNMs\."):
        dataset_folder(folders / "raw", "Dataset120_Cines")


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


def test_an_id_of_ours_under_another_name_can_be_converted_again(folders: Path):
    other = folders / "raw" / "Dataset114_Mine"
    other.mkdir()
    (other / "convert.json").touch()
    with pytest.raises(FileExistsError) as error:
        check_dataset_id(114, "MNMs")
    assert str(error.value) == (
        f"{other}: dataset id 114 is taken; choose another id. To convert that dataset again add --name Mine "
        "--overwrite: this deletes the converted dataset, never your files."
    )


def test_leftovers_of_the_same_name_need_the_raw_dataset(folders: Path):
    (folders / "preprocessed" / "Dataset114_MNMs").mkdir()
    with pytest.raises(FileExistsError, match="dataset id 114 is taken"):
        check_dataset_id(114, "MNMs")
    (folders / "raw" / "Dataset114_MNMs").mkdir()
    assert check_dataset_id(114, "MNMs").is_dir()


def test_a_name_that_is_no_folder_name_is_refused(folders: Path):
    with pytest.raises(ValueError, match=r"`name` \(=a/b\) must be made of letters"):
        check_dataset_id(114, f"a{os.sep}b")


def test_variables_are_set_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_raw", "before")
    monkeypatch.delenv("nnUNet_new", raising=False)
    with pytest.raises(KeyError), environment(nnUNet_raw="within", nnUNet_new="new"):
        assert (os.environ["nnUNet_raw"], os.environ["nnUNet_new"]) == ("within", "new")
        raise KeyError
    assert os.environ["nnUNet_raw"] == "before"
    assert "nnUNet_new" not in os.environ


def test_chatter_is_shown_only_with_an_error(capsys: pytest.CaptureFixture[str]):
    with quiet():
        print("all is well")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError), quiet():
        print("what went before")
        raise ValueError
    assert capsys.readouterr() == ("", "what went before\n")


@pytest.mark.parametrize("value", ["~/x y", "/srv/~/x y", "~nobody-is-called-so/x"])
def test_a_tilde_that_the_shell_has_left_is_refused(monkeypatch, tmp_path: Path, value: str):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(RuntimeError, match="nnU-Net takes ~ for a folder of that name") as refused:
        nnunet_folder("nnUNet_raw")
    meant = "/where/you/keep/nnUNet_raw" if "nobody" in value else f"{tmp_path}/x y"
    assert str(refused.value).endswith(f"export nnUNet_raw={shlex.quote(meant)}")
    with pytest.raises(RuntimeError, match="nnU-Net takes ~"):
        check_folders()


def test_a_relative_folder_is_noted_once(monkeypatch, tmp_path: Path, capsys):
    (tmp_path / "my raw").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", "my raw")
    nnunet._note_relative.cache_clear()
    for _ in range(2):
        assert nnunet_folder("nnUNet_raw") == Path("my raw")
    said = capsys.readouterr().err
    assert said.count("is another folder in each working folder") == 1
    assert said.endswith(f"export nnUNet_raw='{tmp_path}/my raw'\n")
