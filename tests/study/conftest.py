from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.cohort.dataset import Dataset
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.splits import write_splits
from nnunet_ssp.evaluation.command import CASE_COLUMNS
from nnunet_ssp.evaluation.volumes import METRIC_COLUMNS
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.launch import TRAINERS_VARIABLE, trainers_folder
from nnunet_ssp.reporting.figures import render
from nnunet_ssp.slices.store import StoredCase, store_folder, write_index
from nnunet_ssp.study.data import Data, open_data
from nnunet_ssp.study.results import Results
from nnunet_ssp.study.runs import Run
from nnunet_ssp.study.spec import Study

CLASSES = ("LVBP", "LVM", "RV")
VENDORS = ("Siemens", "GE MEDICAL SYSTEMS")
N_TESTED = 8
SLICES = 10
SUBJECTS, SLICES_OF_A_CASE, BATCH = 10, 8, 4  # of `data`

SPECIFICATION: dict[str, Any] = {
    "title": "A study",
    "about": "First paragraph.\n\nSecond one.",
    "dataset": 114,
    "folds": {"all": "paper", "10": "nr10-seed{seed}"},
    "tests": {
        "all": {},
        "ED": {"phase": "ED"},
        "A+B": {"vendor": ["Siemens", "Philips"]},
        "C+D": {"vendor": ["GE", "Canon"]},
    },
    "seeds": [0, 1, 2],
    "pretraining": {"MIM": {"trainer": "MIM", "fold": "all"}},
    "models": {
        "baseline": {"trainer": "Scratch"},
        "MIM": {"trainer": "Finetune", "pretraining": "MIM"},
    },
    "baseline": "baseline",
    "tables": [{"title": "Table 1", "rows": "folds", "columns": "models"}],
}

Dice = Callable[[Run, int, str, str], float]


def dice(run: Run, subject: int, phase: str, class_name: str) -> float:
    """Return a Dice that differs with every argument."""
    value = 0.5 + 0.1 * (run.name == "MIM") + 0.2 * (run.label == "all") + 0.01 * run.seed
    value += 0.004 * subject + 0.02 * (phase == "ED")
    return value - 0.03 * CLASSES.index(class_name)


@dataclass
class Miniature:
    """Study with made-up runs."""

    study: Study
    data: Data
    output: Path
    runs: tuple[list[Run], list[Run]]

    @property
    def results(self) -> Results:
        """Read anew."""
        return Results(self.study, *self.runs, self.data, self.output)

    def run(self, model: str, fold: str, seed: int) -> Run:
        (found,) = (r for r in self.runs[1] if (r.name, r.label, r.seed) == (model, fold, seed))
        return found

    def finish(self, runs: Iterable[Run] | None = None, dice: Dice = dice) -> Miniature:
        """Write what finished runs leave; by default all of them."""
        for run in [*self.runs[0], *self.runs[1]] if runs is None else runs:
            self._finish(run, dice)
        return self

    def _finish(self, run: Run, dice: Dice) -> None:
        folder, fold = self.output / run.folder, self.output / run.fold_folder(self.data)
        fold.mkdir(parents=True, exist_ok=True)
        write_record(folder, "train", f"nnUNetv2_train {run.title} & more")
        if run.hands_on:
            (fold / "progress.png").write_bytes(picture())
            write_json(fold / "settings.json", {"counts": {"subjects": 3, "slices": 1000}})
            return
        steps = [20, 40, 60]
        area = [0.1, 0.2, 0.3 + 0.1 * run.seed]
        curve = {"epoch": [0, 1, 2], "step": steps, "pseudo_dice": area, "pseudo_dice_area": area}
        pd.DataFrame(curve).to_csv(fold / "learning_curve.csv", index=False)
        write_record(folder, "predict", "nnUNetv2_predict")
        write_record(folder, "evaluate", "nnunet-ssp evaluate")
        (folder / "evaluation").mkdir(exist_ok=True)
        frames, figures = measured(run, dice)
        frames.to_csv(folder / "evaluation" / "metrics.csv", index=False)
        figures.to_csv(folder / "evaluation" / "clinical.csv", index=False)
        (folder / "evaluation" / "report.html").write_text("<!doctype html><title>run</title>")


@lru_cache
def picture() -> bytes:
    return render(lambda canvas: canvas.subplots())


def write_record(folder: Path, stage: str, command: str) -> None:
    content = {"key": "a", "command": command, "seconds": 60.0, "finished": "", "machine": "here"}
    write_json(folder / f"{stage}.json", content)
    (folder / f"{stage}.log").write_text(f"$ {command}\n")


def measured(run: Run, dice: Dice) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`metrics.csv` and `clinical.csv` of a run."""
    frames, figures = [], []
    for subject in range(N_TESTED):
        name = f"T{subject}"
        for number, phase in enumerate(("ED", "ES")):
            for class_name in CLASSES:
                row = {"model": run.name, "seed": 0, "subject": name, "case": f"{name}_{number}"}
                row |= dict.fromkeys(CASE_COLUMNS, "")
                row |= {"phase": phase, "vendor": VENDORS[subject % 2], "centre": "04"}
                value = dice(run, subject, phase, class_name)
                row |= {"class": class_name, "dice": value, "dice_nan": value}
                row |= {"hd95_mm": 10 - value, "assd_mm": 2 - value, "missed": 0}
                frames.append(row | {"reference_ml": 50.0, "predicted_ml": 49.0})
        error = (-1) ** subject * (1.0 + run.seed)
        numbers = (60.0, 60.0 + error, error, error / 0.6)
        figures.append((run.name, 0, name, "LV EF", "%", *numbers))
    table = pd.DataFrame(frames).drop(columns="base")
    return table, pd.DataFrame(figures, columns=list(METRIC_COLUMNS))


def make_data(folder: Path) -> Data:
    """Make a prepared dataset of eight labelled subjects: `paper` trains on six, `nr10-seed0` to `5` on two."""
    prepared = folder / "nnUNet_preprocessed" / "Dataset114_MNMs"
    labels = {"background": 0} | {name: i for i, name in enumerate(CLASSES, 1)}
    write_json(prepared / "dataset.json", {"labels": labels, "file_ending": ".nii.gz"})
    cases = {}
    for subject in range(8):
        for frame, phase in enumerate(("ED", "ES")):
            about = (f"S{subject}", "mm1", frame, "train", frame, 20, phase, "first", "Siemens")
            case = Case(f"S{subject}_frame{frame:02d}", *about, "", "", "", "")
            cases[case.case] = case
    stored = {name: StoredCase((SLICES, 1, 8, 8), 0, SLICES) for name in cases}
    about = ("T0", "mm1", 0, "test", 0, 20, "ED", "first", "Siemens")
    cases["T0_frame00"] = Case("T0_frame00", *about, "", "", "", "")
    write_index(store_folder(prepared, "data"), {}, stored)

    def fold(name: str, subjects: int) -> Fold:
        names = [n for n in stored if int(cases[n].subject[1:]) < subjects]
        return Fold(name, tuple(names), ("S7_frame00",), "")

    folds = [fold("paper", 6), *(fold(f"nr10-seed{seed}", 2) for seed in range(6))]
    places = (folder / "nnUNet_raw" / "none", prepared, folder / "nnUNet_results")
    dataset = Dataset(*places, cases, folds)
    return Data(dataset, "nnUNetPlans", {"data_identifier": "data", "batch_size": 4})


@pytest.fixture
def miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Miniature]:
    """Make a study of `SPECIFICATION` with some parts replaced, and none of its runs done."""
    monkeypatch.setenv(TRAINERS_VARIABLE, str(trainers_folder()))

    def make(**parts: Any) -> Miniature:
        # As read from a file, where nothing is shared.
        study = Study.model_validate(json.loads(json.dumps(SPECIFICATION | parts)))
        data = make_data(tmp_path)
        pretrainings = {
            name: Run(
                name=name,
                label=study.folds[part.fold],
                seed=part.seed,
                trainer=f"nnUNetTrainer{part.trainer}Pretrain",
                fold=study.folds[part.fold],
                settings="",
                folder=f"pretraining/{name}/seed0-aa",
                hands_on="checkpoint_final.pth",
            )
            for name, part in study.pretraining.items()
        }
        trainings = [
            Run(
                name=model,
                label=fold,
                seed=seed,
                trainer=f"nnUNetTrainer{study.models[model].trainer}",
                fold=study.fold_of(fold, seed),
                settings="",
                folder=f"runs/{model.replace(' ', '-')}/{fold}/seed{seed}-bb",
                weights=pretrainings.get(study.models[model].pretraining or ""),
            )
            for model, fold, seed in study.needed()
        ]
        return Miniature(study, data, tmp_path / "out", (list(pretrainings.values()), trainings))

    return make


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty folders of nnU-Net, and our trainers."""
    for place in ("raw", "preprocessed", "results"):
        (tmp_path / place).mkdir()
        monkeypatch.setenv(f"nnUNet_{place}", str(tmp_path / place))
    monkeypatch.setenv(TRAINERS_VARIABLE, str(trainers_folder()))


@pytest.fixture
def data(tmp_path: Path, nnunet_folders: None) -> Data:
    """Make a prepared dataset without images: 10 labelled subjects, 2 without labels, 1 for the test; one fold."""
    names = [f"S{number}" for number in range(SUBJECTS + 3)]  # the last one for the test
    phases = ("ED", "ES")
    cases = [
        Case(
            **{"case": f"{subject}_frame0{f}", "subject": subject, "source": "mm1"},
            **{"source_frame": f, "frame": f, "n_frames": 2, "base": "first", "vendor": "Siemens"},
            **dict.fromkeys(("centre", "scanner", "field", "pathology"), ""),
            phase=phases[f] if number < SUBJECTS or subject == names[-1] else "",
            split="test" if subject == names[-1] else "train",
        )
        for number, subject in enumerate(names)
        for f in (0, 1)
    ]
    ours = [case for case in cases if case.split == "train"]
    folder = tmp_path / "preprocessed" / "Dataset114_Small"
    folder.mkdir(parents=True)
    write_cases(folder / "cases.csv", cases)
    write_json(
        folder / "dataset.json", {"labels": {"background": 0, "LV": 1}, "file_ending": ".nii.gz"}
    )
    plan = {"patch_size": [64, 32], "batch_size": BATCH, "data_identifier": "nnUNetPlans_2d"}
    write_json(folder / "nnUNetPlans.json", {"configurations": {"2d": plan}})
    fold = {
        "train": [case.case for case in ours if case.labelled and case.subject not in names[:2]],
        "val": [case.case for case in cases if case.subject in names[:2]],
    }
    write_splits(folder, [fold], {case.case: case for case in cases}, ["5-fold-0"], ["by hand"])
    store = store_folder(folder, "nnUNetPlans_2d")
    store.mkdir()
    entry = StoredCase((SLICES_OF_A_CASE, 1, 64, 32), 0, SLICES_OF_A_CASE)
    write_index(store, {}, {case.case: entry for case in ours})
    return open_data(114, "nnUNetPlans")
