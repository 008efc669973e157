from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssp.cli import _parser as parser
from nnunet_ssp.cli import main
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.nnunet import dataset_folder
from nnunet_ssp.study import preparing
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.command import _asked_for as asked_for
from tests.cine_trees import add_acdc
from tests.cohort.conftest import write_dataset
from tests.cohort.test_few import acdc
from tests.cohort.test_folds import make_cases, numbered
from tests.preparation.conftest import quicken_fingerprint


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("nnUNet_"):
            monkeypatch.delenv(name)


def test_dry_run_without_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "demooij", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "109 runs: 4 pretrainings and 105 fine-tunings or trainings from scratch" in said
    assert (
        "train     baseline on 10: nnUNetTrainerScratchCine, fold paper-nr10-seed{seed}, seeds 0 1 2; "
        in said
    )
    assert "Without the dataset: no dataset is named: give it with -d" in said
    assert "hours of one NVIDIA A100 (estimated), not measured, with the sizes that the" in said
    assert "That is an estimate from nnU-Net's documentation" in said
    assert not list(tmp_path.iterdir())


def test_dry_run_needs_no_snakemake(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "snakemake", None)
    assert main(["study", "demooij", "--dry-run"]) == 0
    assert main(["study", "demooij"]) == 1
    assert "snakemake is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(("study", "status"), [("demooij", 1), ("acdc-few", 0)])
def test_dry_run_ends_with_an_error_where_folds_cannot_be_made(
    tmp_path, monkeypatch, capsys, study, status
):
    """Nothing of the dataset is changed, whether its folds could be made or not."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    cases = make_cases(numbered(16)) if status else acdc()
    write_dataset(folder := tmp_path / "raw" / "Dataset114_Toy", cases)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert main(["study", study, "-d", "114", "--dry-run"]) == status
    said = capsys.readouterr()
    assert ("cannot carry the study" in said.err) == bool(status)
    if status:
        assert "makes no fold called" in said.err and "paper-nr50-seed0" in said.err
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_plans_that_the_study_makes(nnunet_folders, tmp_path, monkeypatch, capsys):
    """A dry run says with which line; a real run starts that very line."""
    write_dataset(tmp_path / "raw" / "Dataset114_Toy", acdc())
    started = []
    monkeypatch.setattr(preparing, "_command", lambda words, folder: started.append(words))
    monkeypatch.setattr(preparing, "folds_that_cannot_be_made", lambda study, dataset: "")
    how = "--patch 96 96 --width 0.5 --batch 12 -overwrite_plans_name few96"
    for given, arguments in (("few96", how), ("own", f"{how} -overwrite_plans_name own")):
        assert main(["study", "acdc-few", "-d", "114", "-p", given, "--dry-run"]) == 0
        said = capsys.readouterr().out
        line = f"nnunet-ssp prepare 114 {arguments}"
        assert (
            f"Dataset114_Toy has no plans {given} yet: the study makes them, with {line}\n" in said
        )
        assert "is missing" not in said and "with the sizes that the file gives" in said
        study, _ = asked_for(STUDIES / "acdc-few.yaml", "cpu", "114", given, None, None)
        preparing.make_plans(study)
        assert list(started[-1]) == shlex.split(line)
        words = parser().parse_args(started[-1][1:])
        assert words.overwrite_plans_name == given


def test_dry_run_estimates_the_hours(tmp_path, capsys, monkeypatch):
    """The published sizes are 100 epochs of 90,618 slices for each method, and 1000 passes over the labelled slices."""
    monkeypatch.chdir(tmp_path)
    speeds = {
        "setting": {"name": "a card", "date": "2026-01-01", "side": 256},
        "methods": {
            name: {"end_to_end_images_per_s": 1000.0} for name in ("MIM", "SimCLR", "PCL", "DINO")
        },
        "finetuning_images_per_s": 500.0,
    }
    write_json(tmp_path / "bench.json", speeds)
    assert main(["study", "demooij", "--dry-run", "--bench", "bench.json"]) == 0
    said = capsys.readouterr().out
    pretraining = sum(100 * (90618 // b * b) for b in (128, 224, 64, 64)) / 1000 / 3600
    steps = {n: 1000 * (n // 32) for n in (6738, 1151, 582, 349, 231, 3369, 4640, 2090)}
    table1 = 5 * sum(steps[n] for n in (6738, 1151, 582, 349, 231))
    others = 2 * (2 * steps[3369] + steps[4640] + steps[2090]) + 2 * steps[6738]
    finetuning = 3 * (table1 + others) * 32 / 500 / 3600
    assert f"{pretraining:.0f} of pretraining, {finetuning:,.0f} of training" in said
    assert "hours of one a card, 2026-01-01, with the sizes that the file gives" in said


@pytest.mark.parametrize(
    ("words", "device"),
    [
        ("acdc-few", "CPU core"),
        ("acdc-few --size gpu", "A100"),
        ("acdc-few --device cuda", "A100"),
        ("acdc-few --size gpu --device cpu", "CPU core"),
        ("demooij --device cpu", "CPU core"),
        ("demooij", "A100"),
        ("phantom", "CPU core"),
    ],
)
def test_hours_are_those_of_the_device_that_it_is_meant_for(
    tmp_path, capsys, monkeypatch, words, device
):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words.split(), "--dry-run"]) == 0
    said = capsys.readouterr().out
    (line,) = (
        line for line in said.splitlines() if re.match(r"About [\d.,]+ hours? of one ", line)
    )
    assert not line.startswith("About 1 hours")
    assert ("The study makes its dataset itself, a phantom." in said) == (words == "phantom")
    assert "no dataset" not in said or words != "phantom"
    assert ("CPU core" in line, "A100" in line) == (device == "CPU core", device == "A100")


def test_hours_of_a_cpu_by_its_table(tmp_path, capsys, monkeypatch):
    """Dense shows 42 epochs of 50 batches of 12 slices; trainings 25 of 20 of 12 images, with a prediction each."""
    monkeypatch.chdir(tmp_path)
    some = ["--models", "scratch", "Dense", "--folds", "2", "10"]
    assert main(["study", "acdc-few", "--dry-run", *some]) == 0
    said = capsys.readouterr().out
    first, second, third = (
        42 * 50 * 12 / 18.7 / 3600,
        12 * 25 * 20 * 12 / 25 / 3600,
        12 * 120 / 3600,
    )
    parts = f"{first:.2g} of pretraining, {second:.2g} of training, {third:.2g} of predictions"
    assert f"About {first + second + third:.2g} hours of one CPU core" in said and parts in said
    assert "That is an estimate from what ran on ACDC (docs/results.md" in said


def test_dry_run_of_a_method_of_ones_own(tmp_path, capsys, monkeypatch):
    """Without --bench the shipped speeds know none."""
    speeds = {
        "setting": {"name": "a card", "date": "2026-01-01", "side": 256},
        "methods": {name: {"end_to_end_images_per_s": 1.0} for name in ("MIM", "SimCLR", "PCL")},
        "finetuning_images_per_s": 500.0,
    }
    write_json(tmp_path / "speeds.json", speeds)
    monkeypatch.setattr("nnunet_ssp.study.estimate.SHIPPED", tmp_path / "speeds.json")
    assert main(["study", "demooij", "--dry-run"]) == 0
    said = capsys.readouterr().out
    line = re.search(r"Hours: unknown for DINO\. (nnunet-ssp bench .*) measures", said)[1]
    assert parser().parse_args(shlex.split(line)[1:]).file == Path("bench.json")
    (option,) = re.findall("then add (.*)\\.$", said, re.MULTILINE)
    words = ["study", "demooij", "--dry-run", *shlex.split(option)]
    assert parser().parse_args(words).bench == Path("bench.json")


@pytest.mark.parametrize(("size", "epochs"), [("cpu", "42 precision=bf16"), ("gpu", "100")])
def test_dry_run_of_acdc_few(tmp_path, capsys, monkeypatch, size, epochs):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "acdc-few", "--dry-run", "--size", size]) == 0
    said = capsys.readouterr().out
    assert "147 runs: 15 pretrainings and 132 fine-tunings or trainings from scratch" in said
    assert (
        "train     MIM deep on 5: nnUNetTrainerFinetune from MIM deep, fold few-nr5-seed{seed}, seeds 0 1 2; "
        in said
    )
    assert f"num_epochs={epochs} recipe=deep" in said
    assert main(["study", "acdc-few", "--dry-run", "--size", size, "--models", "scratch"]) == 0
    said = capsys.readouterr().out
    assert "11 runs: 0 pretrainings and 11 fine-tunings" in said
    some = ["--models", "scratch", "Dense", "--folds", "2", "10"]
    assert main(["study", "acdc-few", "--dry-run", "--size", size, *some]) == 0
    said = capsys.readouterr().out
    assert "13 runs: 1 pretraining and 12 fine-tunings" in said


def test_what_is_no_size_and_no_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "acdc-few", "--dry-run", "--size", "tpu"]) == 1
    assert "`--size` (=tpu) must be one of its sizes: cpu, gpu" in capsys.readouterr().err
    assert main(["study", "demooij", "--dry-run", "--models", "MAE"]) == 1
    assert "`--models` (=MAE) must be of baseline, SimCLR" in capsys.readouterr().err
    assert main(["study", "acdc-few", "--dry-run", "--folds", "3"]) == 1
    assert "`--folds` (=3) must be of 2, 5, 10" in capsys.readouterr().err
    assert main(["study", "demooij", "--dry-run", "--models", "SimCRL"]) == 1
    assert " Perhaps SimCLR? --dry-run lists the runs of each." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("study", "pretraining", "finetuning"),
    [
        # 400 and 25 epochs of 20,000 slices in batches of 128; 167 trainings of 150 epochs of 10 steps of 46.
        ("kalapos", 425 * (20000 // 128 * 128) * 0.875, 167 * 150 * 10 * 46 * 0.875),
        # 500 epochs of the whole, 19 times, and of 10, 25 and 50 %, in batches of 9; 343 of 100 epochs of 250 steps.
        (
            "dominic",
            500 * 9 * (19 * (44400 // 9) + 4440 // 9 + 11100 // 9 + 22200 // 9),
            343 * 100 * 250 * 32,
        ),
    ],
)
def test_shipped_studies_have_hours_without_the_data(
    tmp_path, capsys, monkeypatch, study, pretraining, finetuning
):
    monkeypatch.chdir(tmp_path)
    names = ("BYOL", "ContextPrediction", "ContextRestoration")
    speeds = {
        "setting": {"name": "a card", "date": "2026-01-01", "side": 256},
        "methods": {name: {"end_to_end_images_per_s": 10.0} for name in names},
        "finetuning_images_per_s": 20.0,
    }
    write_json(tmp_path / "bench.json", speeds)
    assert main(["study", study, "--dry-run", "--bench", "bench.json"]) == 0
    said = capsys.readouterr().out
    hours = pretraining / 10 / 3600, finetuning / 20 / 3600
    assert f": {hours[0]:,.0f} of pretraining, {hours[1]:,.0f} of training" in said
    assert main(["study", study, "--dry-run"]) == 0
    assert "hours of one NVIDIA A100 (estimated)" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["pipelines", "resnet50"])
def test_hours_with_natural_images_need_no_dataset(tmp_path, capsys, monkeypatch, size):
    """Theirs: ImageNet's 1,281,167 training images, from which BYOL goes on to the slices."""
    monkeypatch.chdir(tmp_path)
    speeds = {
        "setting": {"name": "a card", "date": "2026-01-01", "side": 256},
        "methods": {"BYOL": {"end_to_end_images_per_s": 1000.0}},
        "finetuning_images_per_s": 500.0,
    }
    write_json(tmp_path / "bench.json", speeds)
    assert main(["study", "kalapos", "--dry-run", "--size", size, "--bench", "bench.json"]) == 0
    said = capsys.readouterr().out
    # 400 epochs each: of natural images, of slices, and of slices after natural images.
    images = 400 * (1281167 // 128 * 128 + 2 * (20000 // 128 * 128))
    assert f": {images * 0.875 / 1000 / 3600:,.0f} of pretraining, " in said


def test_a_named_dataset_must_exist(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for dataset in ("999", "Dataset999_Hearts"):
        assert main(["study", "demooij", "-d", dataset, "--dry-run"]) == 1
        said = capsys.readouterr().err
        assert f"`-d` (={dataset}) must be a dataset in {tmp_path / 'raw'}" in said
        line = "nnunet-ssp convert mnms+mnms2 -i MNMS MNMS2 -d 999 && nnunet-ssp prepare 999"
        assert f"To make it: {line}. " in said
    assert main(["study", "demooij", "--dry-run"]) == 0
    monkeypatch.delenv("nnUNet_raw")
    assert main(["study", "demooij", "-d", "999", "--dry-run"]) == 1
    assert "nnUNet_raw is not set" in capsys.readouterr().err


@pytest.mark.parametrize("name", [file.stem for file in sorted(STUDIES.glob("*.yaml"))])
def test_the_page_of_studies_counts_the_runs(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (counts,) = re.findall(rf"^\| `{name}` \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    sizes = [[], ["--size", "pipelines"], ["--size", "resnet50"]][: counts.count(";") + 1]
    for size, count in zip(sizes, counts.split("; "), strict=True):
        assert main(["study", name, *size, "--dry-run"]) == 0
        said = capsys.readouterr().out
        pretrainings, trainings = count.split(" + ")
        assert f"runs: {pretrainings} pretrainings and {trainings} fine-tunings" in said


@pytest.mark.parametrize("name", ["acdc-few", "demooij"])
def test_a_dataset_for_the_folds_of_a_paper_is_converted_by_the_line(
    tmp_path, capsys, monkeypatch, name
):
    for folder in ("raw", "preprocessed", "results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    assert main(["study", name, "-d", "160", "--dry-run"]) == 1
    said = capsys.readouterr().err
    for line in re.search(r"To make it: (.*?)\. Without", said)[1].split(" && "):
        given = vars(parser().parse_args(shlex.split(line)[1:]))
        assert "160" in map(str, given.values())
    assert ("convert acdc -i FOLDER -d 160 --few." in said) == (name == "acdc-few")


@pytest.mark.slow
def test_a_named_dataset_is_made_by_the_line(nnunet_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    quicken_fingerprint(monkeypatch)
    for number in (1, 2):
        add_acdc(tmp_path / "my data", "training", number)
    for file in (tmp_path / "my data").rglob("*.nii*"):  # planes that can be planned for
        image = nibabel.load(file)
        voxels = np.asarray(image.dataobj).repeat(8, axis=0).repeat(8, axis=1)
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), file)
    assert main(["study", "kalapos", "-d", "999", "--dry-run"]) == 1
    said = capsys.readouterr().err
    convert, prepare = re.search(r"To make it: (.*?) \(", said)[1].split(" && ")
    convert = convert.replace("FOLDER", "'my data'")
    assert main(shlex.split(convert)[1:]) == 0
    made = dataset_folder(tmp_path / "raw", 999)
    assert f"Next: {prepare}" in capsys.readouterr().out.replace(made.name, "999")
    assert main(shlex.split(prepare)[1:]) == 0
    assert (tmp_path / "preprocessed" / made.name / "nnUNetPlans.json").is_file()
