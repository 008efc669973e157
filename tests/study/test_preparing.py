from __future__ import annotations

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.study import preparing
from nnunet_ssp.study.preparing import (
    link_validation_images,
    make_folds,
    make_phantom,
    make_plans,
    missing_folds,
)
from nnunet_ssp.study.runs import study_runs
from nnunet_ssp.study.spec import Phantom, read_study
from tests.study.test_spec import write

PHANTOM = {"labelled": 2, "unlabelled": 0, "testing": 1, "matrix": 32, "frames": 2, "slices": 3}


def test_the_phantom_is_written_converted_and_prepared_once(tmp_path, monkeypatch):
    """The last two commands do not run here; `test_command` runs them."""
    commands = []

    def command(words, folder):
        commands.append(words[:2])
        if words[1] == "phantom":
            monkeypatch.chdir(folder)
            assert main(words[1:]) == 0

    monkeypatch.setattr(preparing, "_command", command)
    study = read_study(write(tmp_path, dataset=None, phantom=PHANTOM, prepare="-np 2"))
    for _ in range(2):
        assert make_phantom(study, tmp_path) == "Dataset998_StudyPhantom"
    assert [words[1] for words in commands] == ["phantom", "convert", "prepare"]
    ours = {file.relative_to(tmp_path / "phantom") for file in tmp_path.glob("phantom/**/*.nii.gz")}
    write_mnms(tmp_path / "other", **PHANTOM)
    other = {file.relative_to(tmp_path / "other") for file in tmp_path.glob("other/**/*.nii.gz")}
    assert ours == other != set()
    # Another one is not put over it.
    larger = study.model_copy(update={"phantom": Phantom(**{**PHANTOM, "matrix": 48})})
    with pytest.raises(ValueError, match=r"holds another phantom \(.*phantom\.json\)"):
        make_phantom(larger, tmp_path)


def test_a_command_that_fails_shows_the_end_of_what_it_said(tmp_path):
    with pytest.raises(RuntimeError) as error:
        preparing._command(
            ("python", "-c", "print(*range(100), sep='\\n'); raise SystemExit(3)"), tmp_path
        )
    command, *tail = str(error.value).splitlines()
    assert command.startswith("python -c") and command.endswith("failed:")
    assert tail == [str(number) for number in range(85, 100)]


def test_folds_are_made_where_they_are_missing(tmp_path, data):
    folds = {"all": "5-fold-0", "5": "5-fold-0-nr5-seed{seed}", "half": "5-fold-0-nr0.5-seed{seed}"}
    study = read_study(
        write(tmp_path, folds=folds, make_folds=["--subsets 5 0.5 --of 5-fold-0 --seeds 0 1"])
    )
    assert missing_folds(study, data) == [
        "5-fold-0-nr5-seed0",
        "5-fold-0-nr5-seed1",
        "5-fold-0-nr0.5-seed0",
        "5-fold-0-nr0.5-seed1",
    ]
    made = make_folds(study, data)
    assert missing_folds(study, made) == []
    number, fold = made.fold("5-fold-0-nr0.5-seed1")  # half of eight subjects
    assert (number, fold.name) == (4, "5-fold-0-nr4-seed1")
    assert make_folds(study, made) is made
    # Folds that nothing needs may be missing.
    spare = {"MIM": {"trainer": "MIM", "fold": "all"}, "spare": {"trainer": "MIM", "fold": "seven"}}
    table = {"title": "T", "rows": "folds", "columns": "models", "folds": "all"}
    names = {"all": "5-fold-0", "six": "six"}
    assert (
        missing_folds(
            read_study(write(tmp_path, folds=names, pretraining=spare, tables=[table])), data
        )
        == []
    )
    study = read_study(write(tmp_path, folds={"all": "six"}, make_folds=[]))
    with pytest.raises(ValueError, match="has no fold called six"):
        make_folds(study, data)


def test_plans_are_made_where_they_are_missing(tmp_path, data, monkeypatch):
    commands = []
    monkeypatch.setattr(preparing, "_command", lambda words, folder: commands.append(words))
    study = read_study(
        write(
            tmp_path, dataset=114, plans="small", prepare="--width 0.5 -overwrite_plans_name small"
        )
    )
    make_plans(study)
    assert commands == [
        ("nnunet-ssp", "prepare", "114", "--width", "0.5", "-overwrite_plans_name", "small")
    ]
    # Plans that are there stay, and a study that says nothing about them makes none.
    make_plans(study.model_copy(update={"plans": "nnUNetPlans"}))
    make_plans(study.model_copy(update={"prepare": ""}))
    assert len(commands) == 1
    # Those that single models name, too.
    models = {"baseline": {"trainer": "Scratch"}, "norm": {"trainer": "Scratch", "plans": "norm"}}
    named = {"norm": "-pl BatchNormPlanner", "unused": "-np 2", "nnUNetPlans": "-np 1"}
    make_plans(read_study(write(tmp_path, dataset=114, models=models, other_plans=named)))
    assert commands[1:] == [("nnunet-ssp", "prepare", "114", "-pl", "BatchNormPlanner")]


def test_links_to_the_images_that_are_chosen_on(tmp_path, data):
    study = read_study(write(tmp_path, folds={"all": "5-fold-0"}, evaluate="choosing"))
    trainings = study_runs(study, data)[1]
    output, images = tmp_path / "out", data.dataset.raw / "imagesTr"
    with pytest.raises(FileNotFoundError, match="S0_frame00 of fold 5-fold-0 has no image"):
        link_validation_images(trainings, data, output)
    images.mkdir(parents=True)
    val = data.fold("5-fold-0")[1].val
    for case in (*val, "S5_frame00", "S0_frame001"):
        (images / f"{case}_0000.nii.gz").write_text(case)
    folder = output / data.validation_images("5-fold-0")
    for _ in range(2):
        link_validation_images(trainings, data, output)
        assert {file.name: file.read_text() for file in folder.iterdir()} == {
            f"{case}_0000.nii.gz": case for case in val
        }
    # The dataset was moved.
    link = folder / f"{val[0]}_0000.nii.gz"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    link_validation_images(trainings, data, output)
    assert link.read_text() == val[0]
