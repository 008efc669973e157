"""A model is checked before anything of it is used; a zip cannot write where it wants."""

from __future__ import annotations

import json
import pickle
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunet_ssp.cli import _parser, main
from nnunet_ssp.predict.model import (
    Wanted,
    check_model,
    model_folder,
    refuse_fold,
    results_folder,
)

NAME = "nnUNetTrainer__tiny__2d"


def test_every_numbered_fold_is_taken(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / NAME, folds=[1, 0, "all"])
    model = check_model(folder)
    assert model.folds == ("0", "1")
    assert model.labels.structures == {"LV": "LV", "MYO": "MYO", "RV": "RV"}
    assert check_model(folder, ["all"]).folds == ("all",)
    assert check_model(folder, ["1"]).digest != model.digest
    with pytest.raises(ValueError, match=r"`-f` \(=0 7\) must name folds .*: 0, 1, all"):
        check_model(folder, ["0", "7"])
    with pytest.raises(FileNotFoundError, match=r"with checkpoint_best\.pth"):
        check_model(folder, checkpoint="checkpoint_best.pth")
    with pytest.raises(ValueError, match="`-chk`"):
        check_model(folder, checkpoint="../checkpoint_final.pth")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"channels": ["T1", "T2"]}, r"2 channels \(T1, T2\); a cine has one"),
        (
            {"labels": {"background": 0, "liver": 1}},
            r"no class is named like the left ventricle \(classes: liver\); --lv NAME says",
        ),
        ({"labels": {"background": 0, "LV": 1, "LVBP": 2}}, "could both be the LV"),
        ({"changed": {"previous_stage": "2d"}}, "a cascade, which needs the masks of 2d"),
        ({"checkpoint": {"ssp": {"method": "MIM"}}}, "a pretraining, which segments nothing"),
        ({"checkpoint": {"trainer_name": "os; rm"}}, "must be that of a class"),
        ({"checkpoint": {"trainer_name": ""}}, "`trainer_name` is missing"),
        ({"checkpoint": {"init_args": {"configuration": "3d"}}}, "must be one that"),
        (
            {"checkpoint": {"network_weights": {"a": torch.tensor([float("nan")])}}},
            "that training diverged",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    make_model: Callable[..., Path], tmp_path: Path, options: dict, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_model(make_model(tmp_path / NAME, **options))


def test_a_class_can_be_named(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / NAME, labels={"background": 0, "pool": 1})
    assert check_model(folder, named={"LV": "pool"}).labels.structures == {"LV": "pool"}


class Bad:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def test_a_checkpoint_that_runs_code_is_not_opened(
    make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / NAME, checkpoint={"logging": {"a": [Bad()]}})
    capsys.readouterr()
    with pytest.raises(ValueError, match="is not opened, because it would run code"):
        check_model(folder)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(ValueError, match="is not opened"):
        check_model(folder)
    assert capsys.readouterr().out == ""


# -- zips ------------------------------------------------------------------------------------------


def packed(folder: Path, file: Path, inside: str = f"Dataset903_Tiny/{NAME}") -> Path:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.write(path, f"{inside}/{path.relative_to(folder)}")
    return file


def test_a_zip_is_the_model_that_it_holds(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / NAME, folds=[0, 1])
    (folder / "fold_0" / "progress.png").write_bytes(b"picture")
    file = packed(folder, tmp_path / "model.zip")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with model_folder(file, Wanted(), scratch) as unpacked:
        assert check_model(unpacked).digest == check_model(folder).digest
        names = {f.relative_to(unpacked).as_posix() for f in unpacked.rglob("*") if f.is_file()}
    folds = {f"fold_{n}/checkpoint_final.pth" for n in (0, 1)}
    assert names == {"plans.json", "dataset.json"} | folds
    assert list(scratch.iterdir()) == []


def test_one_of_several_models_is_named(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / NAME)
    file = packed(folder, tmp_path / "model.zip")
    packed(folder, file, "Dataset903_Tiny/nnUNetTrainer__tiny__3d")
    with (
        pytest.raises(ValueError, match="must name one trained model of"),
        model_folder(file, Wanted(), tmp_path),
    ):
        pass
    with model_folder(file, Wanted(configuration="2d"), tmp_path) as unpacked:
        assert (unpacked / "plans.json").is_file()
    with (
        pytest.raises(FileNotFoundError, match=f"found .*{NAME}"),
        model_folder(file, Wanted(trainer="Other"), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    "name",
    ["../plans.json", "/etc/plans.json", "a/../../plans.json", "a\\plans.json", "C:/x/plans.json"],
)
def test_a_zip_with_paths_that_leave_it_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "{}")
    with (
        pytest.raises(ValueError, match="every name must stay in its folder"),
        model_folder(file, Wanted(), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "options", "folds", "checkpoint"),
    [
        ("fold_1/checkpoint_final.pth", [], ["1"], "checkpoint_final.pth"),
        ("fold_1/checkpoint_best.pth", ["--lv", "my pool"], ["1"], "checkpoint_best.pth"),
        ("fold_1", ["-f", "0"], ["0"], "checkpoint_final.pth"),
    ],
)
def test_for_a_fold_the_command_with_the_folder_above_is_named(
    make_model: Callable[..., Path], tmp_path: Path, capsys, given, options, folds, checkpoint
) -> None:
    folder = make_model(tmp_path / "my results" / NAME, folds=[0, 1])
    (folder / "fold_1" / "checkpoint_best.pth").write_bytes(b"PK")
    words = ["predict", "-i", str(tmp_path), "-m", str(folder / given), "-o", str(tmp_path / "o")]
    assert main([*words, *options]) == 1
    said = capsys.readouterr().err
    assert "; -m takes the folder above fold_1: nnunet-ssp predict " in said
    asked = _parser().parse_args(shlex.split(said.strip().rpartition("fold_1: nnunet-ssp ")[2]))
    assert (asked.model, asked.folds, asked.checkpoint) == (folder, folds, checkpoint)
    assert (asked.inputs, asked.output) == ([tmp_path], tmp_path / "o")
    assert asked.lv == ("my pool" if "--lv" in options else None)
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_outside_of_its_model_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"a": 1}, file)
    with pytest.raises(ValueError, match="a checkpoint alone; -m takes a folder of nnUNet_results"):
        refuse_fold(file, "nnunet-ssp predict")
    refuse_fold(tmp_path, "nnunet-ssp predict")


def test_a_damaged_zip_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    file = packed(make_model(tmp_path / NAME), tmp_path / "model.zip")
    content = bytearray(file.read_bytes())
    start = content.find(b"PK", 4) - 60
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    with (
        pytest.raises(ValueError, match="the zip is damaged"),
        model_folder(file, Wanted(), tmp_path),
    ):
        pass
    (tmp_path / "text.zip").write_text("no zip")
    with (
        pytest.raises(ValueError, match="must be a folder of nnUNet_results or an exported zip"),
        model_folder(tmp_path / "text.zip", Wanted(), tmp_path),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match="no trained model here"),
        model_folder(tmp_path / "none", Wanted(), tmp_path),
    ):
        pass


def test_results_are_found_by_the_dataset(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = make_model(tmp_path / "Dataset903_Tiny" / NAME)
    make_model(folder.with_name("nnUNetTrainerX__tiny__2d"))
    assert results_folder("903", Wanted("nnUNetTrainer", "tiny", "2d")) == folder
    with pytest.raises(ValueError, match=f"trained model of nnUNetTrainerX__tiny__2d, {NAME}"):
        results_folder("903", Wanted(configuration="2d"))


def test_plans_that_name_foreign_code_are_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / NAME)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="must be a network of dynamic_network_architectures"):
        check_model(folder)
