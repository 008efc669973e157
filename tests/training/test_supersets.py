"""Dominic et al.'s supersets, the subjects with labels alone and then others, by nnU-Net's own command."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.dataset import open_dataset
from nnunet_ssp.cohort.membership import superset_of
from nnunet_ssp.cohort.privacy import hashed_subjects
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.expansion import StrictLoader
from tests.own_folders import use_own_folders

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
STEPS = "num_epochs=1 iterations_per_epoch=6 batch_size=8 mask_patch=4 sampling=poisson"
TRAINER = "nnUNetTrainerContextRestorationPretrain"
PLANS = "small"


class Slices:
    """The slice store, in which the slices of some subjects can be made NaN."""

    def __init__(self, folder: Path, subject_of: Callable[[str], str]) -> None:
        self.subject_of = subject_of
        self.whole = {file: np.load(file) for file in folder.glob("*.npy")}

    def spoil(self, subjects: Collection[str]) -> None:
        for file, array in self.whole.items():
            spoiled = self.subject_of(file.stem) in subjects
            np.save(file, np.full_like(array, np.nan) if spoiled else array)

    def count(self, subjects: Collection[str]) -> int:
        own = (a for f, a in self.whole.items() if self.subject_of(f.stem) in subjects)
        return sum(map(len, own))


def test_slices_are_drawn_from_the_subjects_of_the_superset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., str]
) -> None:
    use_own_folders(monkeypatch, tmp_path, command, processes=1)
    counts = {"labelled": 5, "unlabelled": 2, "testing": 1}
    source = write_mnms(tmp_path / "source", **counts, matrix=48, frames=4, slices=4)
    assert main(["convert", "mnms", "-i", str(source), "-d", "114"]) == 0
    sizes = ["--patch", "32", "32", "--width", "0.125", "--batch", "2"]
    assert main(["prepare", "114", *sizes, "-overwrite_plans_name", PLANS]) == 0
    assert main(["folds", "114", "--subsets", "2", "--seeds", "0"]) == 0
    data = open_dataset(114)
    number, fold = next(
        (n, fold) for n, fold in enumerate(data.folds) if fold.name == "5-fold-0-nr2-seed0"
    )
    cases = data.cases
    labelled, validation = ({cases[c].subject for c in part} for part in (fold.train, fold.val))
    allowed = {case.subject for case in cases.values() if case.split == "train"} - validation
    assert (len(labelled), len(allowed)) == (2, 6)
    (folder,) = data.prepared.glob("*_slices")
    store = Slices(folder, lambda case: cases[case].subject)

    def train(place: str, factor: float) -> str:
        words = ("nnUNetv2_train", 114, "2d", number, "-p", PLANS, "-tr", TRAINER, "-device", "cpu")
        settings = f"{STEPS} data_superset={factor}"
        return command(*words, nnUNet_ssp_settings=settings, nnUNet_results=str(tmp_path / place))

    study = yaml.load((STUDIES / "dominic.yaml").read_text("utf-8"), StrictLoader)
    factors = study["pretraining"]["superset, {factor} times"]["for"]["factor"]
    assert factors == [1.0, 1.5, 2.0]
    for factor, n in zip(factors, (2, 3, 4), strict=True):
        drawn = superset_of(labelled, allowed, factor, 0)
        assert labelled <= drawn
        assert len(drawn) == n
        store.spoil(allowed - drawn)  # a slice of theirs would make the loss NaN
        assert "not finite" not in train(f"results{n}", factor)
        (file,) = (tmp_path / f"results{n}").rglob("checkpoint_final.pth")
        content = torch.load(file, weights_only=False)
        assert all(map(math.isfinite, content["logging"]["train_losses"]))
        assert set(content["ssp"]["subjects"]) == hashed_subjects({f"mm1-{s}" for s in drawn})
        assert content["ssp"]["counts"]["slices"] == store.count(drawn)

    # That a spoiled slice is seen when it is drawn.
    store.spoil(labelled)
    with pytest.raises(AssertionError, match="not finite"):
        train("spoiled", 1.0)
    with pytest.raises(AssertionError, match=r"data_superset.* \(=4.0\) asks for 6 .* are 4"):
        train("none", 4.0)
