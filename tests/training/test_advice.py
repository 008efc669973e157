from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nnunet_ssp.launch import command_environment, find_command
from nnunet_ssp.training.advice import advice


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with plans of another name than nnU-Net's."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / "Dataset007_Heart"
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps({"configurations": {}}))
    (folder / "splits_final.json").write_text("[]")
    return folder


def test_missing_plans_are_answered_by_those_there(prepared: Path):
    missing = FileNotFoundError(2, "No such file or directory", str(prepared / "nnUNetPlans.json"))
    assert advice(missing) == (
        "Dataset007_Heart has no plans called nnUNetPlans; choose with -p: small"
    )
    (prepared / "small.json").unlink()
    (prepared.parents[1] / "raw" / prepared.name).mkdir()
    assert advice(missing) == ("Dataset007_Heart is not prepared: nnunet-ssp prepare 7")


def test_a_name_that_is_no_dataset_is_answered_by_those_there(prepared: Path):
    other = prepared.parent / "Dataset004_Liver"
    other.mkdir()
    (other / "small.json").write_text((prepared / "small.json").read_text())
    known = "prepared are: Dataset007_Heart, Dataset004_Liver. nnunet-ssp prepare ID prepares one."
    wrong = ValueError(
        "dataset_name_or_id must either be an integer or a valid dataset name with the pattern DatasetXXX_YYY where "
        "XXX are the three(!) task ID digits. Your input: heart"
    )
    assert advice(wrong) == f"no dataset heart; {known}"
    for name in ("Dataset007", "Dataset007_Haert"):
        plans = prepared.with_name(name) / "nnUNetPlans.json"
        said = advice(FileNotFoundError(2, "No such file or directory", str(plans)))
        assert said == f"no dataset {name}; {known}"


def test_a_tilde_in_quotes_is_why_no_dataset_is_found(prepared: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(prepared.parents[1]))
    monkeypatch.setenv("nnUNet_preprocessed", "~/preprocessed")
    said = advice(RuntimeError("Could not find a dataset with the ID 7. Make sure ..."))
    assert said.endswith(f"export nnUNet_preprocessed={prepared.parent}")


def test_folders_that_are_not_set_in_this_shell_are_named(prepared: Path, monkeypatch):
    no_path = TypeError("expected str, bytes or os.PathLike object, not NoneType")
    assert advice(no_path) == ""
    monkeypatch.delenv("nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_results", "")
    line = (
        "nnUNet_preprocessed and nnUNet_results are not set in this shell: export "
        "nnUNet_preprocessed=/where/you/keep/nnUNet_preprocessed nnUNet_results=/where/you/keep/nnUNet_results"
    )
    assert advice(no_path) == line
    unknown = RuntimeError("Could not find a dataset with the ID 7. Make sure ...")
    assert advice(unknown) == f"no dataset 7: {line}"


def test_a_training_needs_no_raw_data(prepared: Path, monkeypatch):
    """So a variable that is not set is no reason for its errors."""
    monkeypatch.delenv("nnUNet_raw")
    assert advice(TypeError("unsupported operand: NoneType")) == ""
    unknown = RuntimeError("Could not find a dataset with the ID 8. Make sure ...")
    assert advice(unknown).startswith("no dataset 8; prepared are: Dataset007_Heart.")


@pytest.mark.parametrize("name", ["DatasetFoo", "Dataset000_X", "Dataset0114_X"])
def test_a_raw_folder_that_is_named_otherwise_is_answered_by_the_rule(prepared: Path, name: str):
    (prepared.parents[1] / "raw" / name).mkdir()
    plans = str(prepared.with_name(name) / "nnUNetPlans.json")
    said = advice(FileNotFoundError(2, "No such file or directory", plans))
    assert "must be a number" in said or "must be within 1 to 999" in said


def test_other_errors_are_left_alone(prepared: Path):
    elsewhere = FileNotFoundError(
        2, "No such file or directory", str(prepared.parents[1] / "x.json")
    )
    assert advice(elsewhere) == advice(ValueError("no")) == advice(FileNotFoundError("gone")) == ""
    assert [advice(FileNotFoundError(2, "gone", name)) for name in (b"x.json", 3)] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "last"),
    [
        ("7 2d 0 -tr nnUNetTrainerMIMPretrain", "choose with -p: small"),
        pytest.param(
            "9 2d 0 -tr nnUNetTrainerMIMPretrain",
            "prepared are: Dataset007_Heart.",
            marks=pytest.mark.heavy,
        ),
        pytest.param(
            "7 2d 0 -tr nnUNetTrainerMIMPretrian",
            "Perhaps nnUNetTrainerMIMPretrain",
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_the_last_line_of_nnunets_command_is_ours(prepared: Path, words: str, last: str):
    command = [find_command("nnUNetv2_train"), *words.split(), "-device", "cpu"]
    environment = {**os.environ, **command_environment()}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and last in line
    assert not any((prepared.parents[1] / "results").iterdir())
