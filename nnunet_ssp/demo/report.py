"""The results of the demo and their page: Dice, curves, movement, predictions, commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.console import count_of
from nnunet_ssp.settings import typed_before

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nnunet_ssp.reporting.page import Page

CAVEAT = (
    "This run is short: it shows the workflow, not a benefit. A difference between the two models "
    "says nothing about pretraining."
)

DATASET_ID = "999"
# With this memory nnU-Net plans what two CPU cores train in minutes: 96 x 96 pixels in batches of 4 for the phantom,
# 128 x 128 in batches of 2 for real cine.
PLANS = "demoPlans"

PRETRAINER = "nnUNetTrainerDensePretrain"
MODELS = {"Fine-tuned": "nnUNetTrainerFinetune", "From scratch": "nnUNetTrainerScratch"}
FINETUNER, SCRATCH = MODELS.values()


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    # A key of WEIGHTS; also names the log file.
    name: str
    command: tuple[str, ...]
    # Value of nnUNet_ssp_settings.
    settings: str = ""
    # Where it exists, exit status 1 means that a part was left out, as by a conversion that refuses subjects.
    made: Path | None = None

    @property
    def line(self) -> str:
        """The command as typed in a shell."""
        return typed_before(self.settings) + shlex.join(self.command)


@dataclass(frozen=True)
class Layout:
    """Paths below the demo's folder, as the user named it."""

    output: Path
    # The dataset's name without its number.
    name: str

    @property
    def dataset(self) -> str:
        """Full name of the dataset."""
        return f"Dataset{DATASET_ID}_{self.name}"

    @property
    def raw(self) -> Path:
        """The converted dataset."""
        return self.output / "nnUNet_raw" / self.dataset

    @property
    def plans(self) -> Path:
        """The plans file."""
        return self.output / "nnUNet_preprocessed" / self.dataset / f"{PLANS}.json"

    def fold(self, trainer: str) -> Path:
        """Return the folder of a training's results."""
        folder = self.output / "nnUNet_results" / self.dataset / f"{trainer}__{PLANS}__2d"
        return folder / "fold_0"

    def checkpoint(self, trainer: str) -> Path:
        """Return the final checkpoint of a training."""
        return self.fold(trainer) / "checkpoint_final.pth"

    def predictions(self, trainer: str) -> Path:
        """Return the folder of the predictions of the fine-tuned or the control model."""
        return self.output / "predictions" / trainer


@dataclass(frozen=True)
class DemoData:
    """The converted dataset, and the cases on which both models are compared."""

    cases: dict[str, Case]
    # Cases of `train` and `val` in fold 0.
    fold: dict[str, list[str]]
    # Values by name, without the background.
    labels: dict[str, int]
    # File ending of the images.
    ending: str
    tested: list[str]
    # Description of the tested cases, in words.
    tested_what: str
    # Folders of the tested cases.
    images: Path
    references: Path

    def subjects(self, cases: list[str]) -> list[str]:
        """Return the subjects of some cases, each once, in order."""
        return list(dict.fromkeys(self.cases[case].subject for case in cases))


def score(layout: Layout, dataset: DemoData) -> pd.DataFrame:
    """Score the 3D Dice of both models.

    Returns:
        Columns `model`, `subject`, `case`, `class`, `dice` and more.
    """
    from nnunet_ssp.evaluation.files import References, find_pairs
    from nnunet_ssp.evaluation.labels import Labels
    from nnunet_ssp.evaluation.scoring import score_pairs

    references = {c: dataset.references / f"{c}{dataset.ending}" for c in dataset.tested}
    folders = {model: [layout.predictions(trainer)] for model, trainer in MODELS.items()}
    pairs, _ = find_pairs(folders, References(references), dataset.ending)
    labels = Labels({name: (value,) for name, value in dataset.labels.items()})
    scores = score_pairs(pairs, labels).frames
    return scores.assign(subject=[dataset.cases[case].subject for case in scores["case"]])


def class_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean Dice over subjects, each the mean of its frames.

    Returns:
        Rows: the classes and `Mean`. Columns: the models.
    """
    subjects = scores.groupby(["model", "class", "subject"], sort=False)["dice"].mean()
    table = subjects.groupby(level=["class", "model"], sort=False).mean().unstack("model")
    table = table[list(MODELS)].rename_axis(index="3D Dice", columns=None)
    table.loc["Mean"] = table.mean()
    return table


def demo_page(
    layout: Layout,
    dataset: DemoData,
    plan: Mapping[str, Any],
    scores: pd.DataFrame,
    seconds: Mapping[Step, float],
    setup: Sequence[str],
    device: str,
) -> Page:
    """Build the report of a run.

    Args:
        layout: The paths of the demo.
        dataset: The cases that both models predicted.
        plan: nnU-Net's 2d configuration.
        scores: The models' Dice, from `score`.
        seconds: The steps that ran and the time each took.
        setup: The shell lines that set what the commands need.
        device: The device of the trainings.
    """
    from nnunet_ssp.cohort.membership import sides, training_cases
    from nnunet_ssp.reporting.page import Page

    page = Page("Pretrain, fine-tune, predict: a run of nnunet-ssp", notice=CAVEAT)
    stored = sorted(training_cases(dataset.cases))
    pretraining = sides(stored, dataset.fold["val"], dataset.cases).train
    rows, columns = plan["patch_size"]
    page.paragraph(
        f"Pretraining on movement saw {_counts(dataset, pretraining)}, without labels. Fine-tuning "
        f"saw the labels of {_counts(dataset, dataset.fold['train'])}. Both models have the "
        f"network that nnU-Net planned for patches of {rows} × {columns} pixels and differ only "
        "in their initial weights. They are compared on "
        f"{_counts(dataset, dataset.tested)}: {dataset.tested_what}."
    )
    _add_dice(page, dataset, scores)
    _add_curves(page, layout)
    _add_movement(page, layout)
    page.heading("Predictions")
    page.image(
        overlays(layout, dataset),
        alt="The reference and both predictions in colour on one slice of each subject.",
        caption="The slice in the middle of the heart, at the subject's first labelled frame. White: "
        "outline of the reference.",
        wide=True,
    )
    page.heading("The commands")
    page.paragraph(
        "Exactly what ran, made small. On your own data, convert your folder, and then follow the "
        "commands that prepare and each training print: they choose method and settings by the "
        "number of your labels. README.md has them, too."
    )
    page.code("\n\n".join(["\n".join(setup), *(step.line for step in seconds)]))
    page.heading("Time and versions")
    times = [(step.name, round(time)) for step, time in seconds.items()]
    page.table(["Step", "Seconds"], [*times, ("All steps", sum(time for _, time in times))])
    page.table(["Software", "Version"], versions(device))
    return page


def _counts(dataset: DemoData, cases: list[str]) -> str:
    subjects = len(dataset.subjects(cases))
    return f"{count_of(len(cases), 'frame')} of {count_of(subjects, 'subject')}"


def _add_dice(page: Page, dataset: DemoData, scores: pd.DataFrame) -> None:
    page.heading("3D Dice")
    means = class_means(scores)
    fine, scratch = MODELS
    page.table(
        ["Class", fine, scratch, "Difference"],
        [(str(name), a, b, a - b) for name, a, b in means.itertuples(name=None)],
        caption="Mean over subjects, each the mean of its frames. A class that is in neither "
        "prediction nor reference counts 1.",
    )
    subjects = scores.groupby("subject", sort=False)
    tables = {str(subject): class_means(own) for subject, own in subjects}
    page.table(
        ["Subject", *(str(name) for name in means.index)],
        [
            (subject, *(f"{a:.2f} / {b:.2f}" for a, b in table.itertuples(index=False, name=None)))
            for subject, table in tables.items()
        ],
        caption="Each subject: fine-tuned / from scratch.",
    )


def _add_curves(page: Page, layout: Layout) -> None:
    from nnunet_ssp.reporting.figures import add_title, count_along

    def drawing(
        curves: Mapping[str, list[float]], ylabel: str, what: str
    ) -> Callable[[Figure], None]:
        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            n = max(map(len, curves.values()))
            add_title(axes, f"{what}, {layout.dataset}, fold 0, {count_of(n, 'epoch')}")
            for label, values in curves.items():
                axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=label)
            axes.set(xlabel="Epoch", ylabel=ylabel)
            count_along(axes, 1, n)
            figure.legend(loc="outside lower center", ncols=len(curves))

        return draw

    page.heading("Curves")
    logged = read_curves(layout.checkpoint(PRETRAINER))
    losses = {"training": logged["train_losses"], "validation": logged["val_losses"]}
    page.plot(
        drawing(losses, "Loss", "Pretraining"),
        alt="Training and validation loss of the pretraining by epoch.",
        caption="Pretraining: what moves, foretold from one frame; 1 means that only the mean was learned.",
    )
    dice = {
        model: read_curves(layout.checkpoint(trainer))["mean_fg_dice"]
        for model, trainer in MODELS.items()
    }
    page.plot(
        drawing(dice, "Pseudo Dice", "Fine-tuning"),
        alt="Pseudo Dice of fine-tuning and of training from scratch by epoch.",
        caption="Fine-tuning and its control: nnU-Net's pseudo Dice, a rough estimate on random "
        "patches of fold 0's validation subjects.",
    )


def read_curves(checkpoint: Path) -> dict[str, list[Any]]:
    """Read the curves that nnU-Net logged by epoch, from a checkpoint of this run."""
    from nnunet_ssp.files.checkpoints import load

    # Memory-mapped: the weights are not needed.
    logging: dict[str, list[Any]] = load(checkpoint, mmap=True).get("logging", {})
    return logging


def _add_movement(page: Page, layout: Layout) -> None:
    images = sorted((layout.fold(PRETRAINER) / "movement").glob("epoch_*.png"))
    if not images:
        return
    page.heading("Movement")
    for path in dict.fromkeys((images[0], images[-1])):
        epochs = int(path.stem.removeprefix("epoch_"))  # done when it was drawn
        page.image(
            path,
            alt="Slices, how much each pixel differs in another frame, and what the network says from one frame.",
            caption=f"After {count_of(epochs, 'epoch')} of pretraining."
            if epochs
            else "Before pretraining.",
            scrolls=True,
        )


def overlays(layout: Layout, dataset: DemoData, limit: int = 4) -> bytes:
    """Draw the reference and both predictions on the first labelled frame of some subjects.

    Args:
        layout: The paths of the demo.
        dataset: The cases that both models predicted.
        limit: Largest number of subjects shown.

    Returns:
        The content of a PNG file.
    """
    from nnunet_ssp.evaluation.files import read_array
    from nnunet_ssp.reporting.figures import (
        Overlay,
        label_window,
        overlay_grid,
        slices_to_show,
    )

    first_frames: dict[str, str] = {}
    for case in dataset.tested:
        first_frames.setdefault(dataset.cases[case].subject, case)
    folders = {"Reference": dataset.references}
    folders |= {model: layout.predictions(trainer) for model, trainer in MODELS.items()}
    rows = {}
    for subject, case in list(first_frames.items())[:limit]:
        image = read_array(dataset.images / f"{case}_0000{dataset.ending}")
        maps = [read_array(path / f"{case}{dataset.ending}") for path in folders.values()]
        (z,), window = slices_to_show(maps[0], 1), label_window(maps[0])
        reference = maps[0][z][window]
        rows[f"{subject}, slice {z + 1}"] = [
            Overlay(image[z][window], labels[z][window], reference if i else None)
            for i, labels in enumerate(maps)
        ]
    title = f"{layout.dataset}: first labelled frame of each subject"
    return overlay_grid(rows, list(folders), dataset.labels, title)


def versions(device: str) -> list[tuple[str, str]]:
    """List the packages and the machine that made the report."""
    import platform

    import torch

    cores = f"{os.cpu_count()} CPU cores"
    return [
        *((name, metadata.version(name)) for name in ("nnunet-ssp", "nnunetv2", "torch", "numpy")),
        ("Python", platform.python_version()),
        ("System", platform.system()),
        ("Device", f"{torch.cuda.get_device_name()}, {cores}" if device == "cuda" else cores),
    ]
