"""A phantom dataset, converted and prepared once, and trainers on it with a small network."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.training import finetuning_progress, precision, progress
from tests.warm import scripts

DATASET = "Dataset901_Phantom"
FEATURES = [4, 8, 16, 16, 16]  # instead of 32 to 512: the network's shape stays, its cost goes


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnUNet_raw and nnUNet_preprocessed of the phantom: 4 labelled, 2 unlabelled, 1 test subject.

    Plans `tiny` have a narrow network, `tinyres` a narrow residual one; both share one slice store.
    """
    base = tmp_path_factory.mktemp("phantom")
    counts = {"labelled": 4, "unlabelled": 2, "testing": 1}
    source = write_mnms(base / "source", **counts, seed=1, matrix=48, frames=4, slices=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (base / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(base / name))
        mnms.convert(source, 901, "Phantom", workers=1)
        folder = prepare(901, gpu_memory_target=0.1, overwrite_plans_name="tiny", workers=1)
    plans = json.loads((folder / "tiny.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    arguments = architecture["arch_kwargs"]
    arguments["features_per_stage"] = FEATURES[: arguments["n_stages"]]
    (folder / "tiny.json").write_text(json.dumps(plans))
    architecture["network_class_name"] = architecture["network_class_name"].replace(
        "PlainConvUNet", "ResidualEncoderUNet"
    )
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    plans["plans_name"] = "tinyres"
    (folder / "tinyres.json").write_text(json.dumps(plans))
    yield base
    shutil.rmtree(base)


@pytest.fixture
def preprocessed(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's environment for one test; returns the dataset's preprocessed folder, shared and not to be changed."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(prepared / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(prepared / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", str(files("nnunet_ssp.trainers")))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train"])
    return prepared / "preprocessed" / DATASET


@pytest.fixture
def own_copy(preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preprocessed dataset that a test may change."""
    shutil.copytree(preprocessed, tmp_path / "preprocessed" / DATASET)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path / "preprocessed" / DATASET


@dataclass
class Runs:
    """Makes trainers as `nnUNetv2_train` does."""

    monkeypatch: pytest.MonkeyPatch

    def make(
        self,
        trainer: str,
        settings: str = "",
        fold: int | str = 0,
        plans: str = "tiny",
        configuration: str = "2d",
        weights: Path | None = None,
        resume: bool = False,
        device: str = "cpu",
        validate: bool = False,
    ) -> Any:
        """A trainer after nnU-Net's own loading of weights or checkpoint, before training or a later validation."""
        self.monkeypatch.setenv("nnUNet_ssp_settings", settings)
        argv = ["nnUNetv2_train", "901", configuration, str(fold), "-tr", trainer]
        argv += ["-pretrained_weights", str(weights)] if weights else []
        self.monkeypatch.setattr(sys, "argv", argv)
        folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
        content = json.loads((folder / f"{plans}.json").read_text())
        content["continue_training"] = resume
        dataset_json = json.loads((folder / "dataset.json").read_text())
        made = recursive_find_trainer_class_by_name(trainer)(
            content, configuration, fold, dataset_json, torch.device(device)
        )
        maybe_load_checkpoint(made, resume, validate, str(weights) if weights else None)
        return made

    def run(self, trainer: str, settings: str = "", **options: Any) -> Any:
        """A trainer after training."""
        made = self.make(trainer, settings, **options)
        made.run_training()
        return made

    def interrupt(self, trainer: str, settings: str = "", epochs: int = 1, **options: Any) -> Any:
        """A trainer that was interrupted after its first epoch, which was saved, or after several."""
        made = self.make(trainer, settings, **options)
        epoch_end = made.on_epoch_end

        def stop() -> None:
            epoch_end()
            if made.current_epoch == epochs:
                raise KeyboardInterrupt

        made.on_epoch_end = stop
        with pytest.raises(KeyboardInterrupt):
            made.run_training()
        return made


@pytest.fixture
def runs(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """`precision=auto` computes in float32, whatever a trial of the processor would find."""
    monkeypatch.setattr(precision, "has_bf16", lambda: False)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of an epoch this short."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    for module in (progress, finetuning_progress):
        monkeypatch.setattr(module, "plot_progress", lambda *_: None)
    monkeypatch.setattr(progress, "plot_images", lambda *_: None)


@pytest.fixture(scope="session")
def pretrained_once(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """The final checkpoint of a short MIM pretraining on fold 0, made at the first call."""
    made: list[Path] = []

    def make() -> Path:
        if not made:
            with pytest.MonkeyPatch.context() as patch:
                results = tmp_path_factory.mktemp("pretrained")
                for name, value in {
                    "nnUNet_raw": prepared / "raw",
                    "nnUNet_preprocessed": prepared / "preprocessed",
                    "nnUNet_results": results,
                    "nnUNet_extTrainer": files("nnunet_ssp.trainers"),
                }.items():
                    patch.setenv(name, str(value))
                settings = (
                    "num_epochs=1 iterations_per_epoch=2 batch_size=4 val_iterations_per_epoch=1"
                )
                trainer = Runs(patch).run("nnUNetTrainerMIMPretrain", settings)
                made.append(Path(trainer.output_folder) / "checkpoint_final.pth")
        return made[0]

    return make


@pytest.fixture
def pretrained(pretrained_once: Callable[[], Path], preprocessed: Path) -> Path:
    return pretrained_once()


@pytest.fixture
def log() -> Callable[[Any], str]:
    """The text of a trainer's log."""
    return lambda trainer: Path(trainer.log_file).read_text()


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a console script of this Python environment and returns all it prints."""
    with scripts(tmp_path_factory.mktemp("scripts")) as ready:
        yield ready.run


@pytest.fixture
def same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step sees one batch: nnU-Net's order of the data does not survive an interruption."""
    kept: list[Any] = []
    own = nnunet.nnUNetTrainer.get_dataloaders

    def repeat(trainer: Any) -> Any:
        if not kept:
            kept.extend(next(loader) for loader in own(trainer))
        return [itertools.repeat(batch) for batch in kept]

    monkeypatch.setattr(nnunet.nnUNetTrainer, "get_dataloaders", repeat)
