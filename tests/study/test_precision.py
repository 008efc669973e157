"""In what precision a study's runs compute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.study import command
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.precision import computing_in, emulated
from nnunet_ssp.study.runs import study_runs
from nnunet_ssp.study.spec import read_study
from nnunet_ssp.training import precision as of_training

pytestmark = pytest.mark.usefixtures("nnunet_folders")


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def processor(request, monkeypatch) -> bool:
    """Whether this processor has instructions for bfloat16."""
    monkeypatch.setattr(of_training, "has_bf16", lambda: request.param)
    return request.param


def named(runs) -> set[str]:
    return {word for run in runs for word in run.settings.split() if word.startswith("precision=")}


def test_every_run_computes_in_it():
    """Whether the file names a precision for all, for one part, or for none."""
    study = read_study(STUDIES / "acdc-few.yaml", "cpu")
    assert named(study_runs(study, None)[0]) == {"precision=bf16", "precision=fp32"}
    for wanted in ("fp32", "bf16"):
        runs = study_runs(computing_in(study, wanted), None)
        for part in runs:
            assert named(part) == {f"precision={wanted}"}
            assert all("precision=" in run.settings for run in part)
    folders = [
        {run.folder for run in study_runs(s, None)[1]} for s in (study, computing_in(study, "fp32"))
    ]
    assert not folders[0] & folders[1]


def test_a_study_without_pretrainings(tmp_path):
    """Its file may not say anything about pretrainings."""
    file = tmp_path / "small.yaml"
    file.write_text(
        "title: From scratch\ndataset: 1\nfolds: {all: 5-fold-0}\nseeds: [0]\nmodels: {baseline: {trainer: Scratch}}\n"
        "tables: [{title: Table 1, rows: folds, columns: models}]\n"
    )
    study = computing_in(read_study(file), "fp32")
    pretrainings, (run,) = study_runs(study, None)
    assert not pretrainings and "precision=fp32" in run.settings.split()


def test_emulation_is_told(processor):
    runs = [
        SimpleNamespace(settings=f"num_epochs=1 {word}")
        for word in ("precision=bf16", "", "precision=bf16")
    ]
    said = emulated(runs)
    assert bool(said) is not processor
    assert processor or said.startswith(
        "2 runs would compute in bfloat16 (precision=bf16), for which this processor"
    )
    assert not emulated(runs[1:2])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--size cpu", True),
        ("--size cpu --precision fp32", False),
        ("--size cpu --precision bf16", True),
        ("--size gpu", False),
    ],
)
def test_a_dry_run_tells(tmp_path, monkeypatch, capsys, processor, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "acdc-few", "--dry-run", *arguments.split()]) == 0
    said = capsys.readouterr().out
    assert ("Add --precision fp32" in said) is (told and not processor)
    if "--precision" in arguments:
        assert f"precision={arguments[-4:]} " in said


@pytest.mark.parametrize(
    ("device", "profile", "asked", "done", "refused"),
    [
        ("cpu", None, None, False, True),
        ("cpu", None, None, True, False),
        ("cpu", None, "bf16", False, False),
        ("cuda", None, None, False, False),
        ("cpu", "slurm", None, False, False),
    ],
)
def test_emulated_trainings_are_refused(processor, device, profile, asked, done, refused):
    """Where it is not asked for: it would take days and say nothing."""
    run = SimpleNamespace(settings="precision=bf16", folder="runs/a")
    record = "runs/a/predict.json" if done else "runs/a/train.json"
    todo = [SimpleNamespace(record=record)]
    call = SimpleNamespace(device=device, profile=profile, precision=asked)
    if refused and not processor:
        with pytest.raises(ValueError, match="1 run would compute in bfloat16"):
            command._refuse_emulated(([], [run]), todo, call)
    else:
        command._refuse_emulated(([], [run]), todo, call)


def test_only_known_precisions(capsys):
    """`auto` would differ by machine."""
    with pytest.raises(SystemExit):
        main(["study", "acdc-few", "--precision", "auto"])
    assert "invalid choice: 'auto'" in capsys.readouterr().err
