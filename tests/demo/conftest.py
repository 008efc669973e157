"""A demo whose commands only write what the real ones would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.cohort.splits import make_splits
from nnunet_ssp.demo import command as demo
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.reporting.figures import render

SHAPE = (5, 24, 24)


VENDORS = ("A", "B", "C", "D")


def case(subject: str, frame: int, split: str, phase: str) -> Case:
    return Case(
        case=f"{subject}_frame{frame:02d}",
        subject=subject,
        source="mm1",
        source_frame=frame,
        split=split,
        frame=frame,
        n_frames=3,
        phase=phase,
        base="first",
        vendor=VENDORS[int(subject[-1]) % 4],
        centre="1",
        scanner="",
        field="",
        pathology="",
    )


def heart(shift: int = 0) -> np.ndarray:
    """Draw a ring around a disc, beside a box."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    radius = np.hypot(rows - 12, columns - 11 - shift)
    slice_ = np.select([radius < 3, radius < 6, (abs(rows - 12) < 5) & (columns > 18)], [1, 2, 3])
    return np.stack([np.zeros_like(slice_), *[slice_] * 3, np.zeros_like(slice_)])


def write_image(path: Path, array: np.ndarray, kind: type) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.astype(kind)), str(path))


class Commands:
    """Stand-in for the real commands that writes what they would have written."""

    def __init__(self, output: Path, labelled: int = 4, testing: int = 2) -> None:
        self.output = output
        self.steps: list[demo.Step] = []
        self.labelled, self.testing = labelled, testing

    def __call__(self, step: demo.Step) -> None:
        self.steps.append(step)
        words = list(step.command)
        if step.name == "convert":
            self.convert(words[words.index("--name") + 1])
        elif step.name == "prepare":
            configuration = {"patch_size": [96, 96], "batch_size": 4}
            plans = {"configurations": {"2d": configuration}}
            write_json(self.layout.plans, plans)
        elif words[0] == "nnUNetv2_train":
            self.train(words[words.index("-tr") + 1])
        elif words[0] == "nnUNetv2_predict":
            images, predictions = (Path(words[words.index(flag) + 1]) for flag in ("-i", "-o"))
            for file in images.iterdir():
                name = file.name.replace("_0000", "")
                write_image(predictions / name, heart(shift=1), np.uint8)

    def convert(self, name: str) -> None:
        self.layout = demo.Layout(self.output, name)
        raw = self.layout.raw
        train = [f"train{i}" for i in range(self.labelled)]
        test = [f"test{i}" for i in range(self.testing)]
        cases = [
            case(subject, frame, split, phase)
            for split, subjects in (("train", train), ("test", test))
            for subject in subjects
            for frame, phase in enumerate(("ED", "", "ES"))
            if split == "train" or phase
        ]
        raw.mkdir(parents=True)
        write_cases(raw / "cases.csv", cases)
        write_json(raw / "splits_final.json", make_splits({c.case: c for c in cases}))
        labels = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
        write_json(raw / "dataset.json", {"labels": labels, "file_ending": ".nii.gz"})
        noise = np.random.default_rng(0).normal(0, 20, SHAPE)
        for c in (c for c in cases if c.labelled):
            end = "Ts" if c.split == "test" else "Tr"
            write_image(raw / f"images{end}" / f"{c.case}_0000.nii.gz", heart() * 90 + noise, float)
            write_image(raw / f"labels{end}" / f"{c.case}.nii.gz", heart(), np.uint8)

    def train(self, trainer: str) -> None:
        fold = self.layout.fold(trainer)
        fold.mkdir(parents=True)
        falling = (1 / np.arange(1, demo.EPOCHS + 1)).tolist()
        logging = {"train_losses": falling, "val_losses": falling, "mean_fg_dice": falling[::-1]}
        for name in ("latest", "best", "final"):
            torch.save(
                {"network_weights": {"w": torch.zeros(1)}, "logging": logging},
                fold / f"checkpoint_{name}.pth",
            )
        if trainer == demo.PRETRAINER:
            (fold / "movement").mkdir()
            for epoch in (0, 5, 10):
                png = render(lambda figure: figure.subplots().plot([0, 1]), size=(4, 1))
                (fold / "movement" / f"epoch_{epoch:03d}.png").write_bytes(png)


@pytest.fixture
def finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = Commands(Path("demo"))
    assert demo.run(device="cpu", execute=commands) == 0
    return commands, capsys.readouterr().out
