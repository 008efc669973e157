"""The trainings of a study.

The name of a run's folder holds a fingerprint of all that decides its result. That is trainer, settings, seed, the
fold's cases, the plans and, for fine-tuning, the pretraining's fingerprint. A changed run gets a new
folder, an unchanged one is found again, and nothing is overwritten.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssp.launch import trainer_paths, trainers_folder
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import override
from nnunet_ssp.study.data import Data, digest, digest_of
from nnunet_ssp.study.defaults import changed, recorded_defaults
from nnunet_ssp.study.spec import ALL, REPORT, SEED, GivenSettings, Study
from nnunet_ssp.training.handover import TIMM
from nnunet_ssp.training.snapshots import is_due, snapshot_file

ONE_PASS = "iterations_per_epoch"  # the setting that `match=epochs` computes


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Name of the pretraining or the model.
        label: The study's name of the fold; for a pretraining the fold's own name.
        seed: Seed of the training.
        trainer: Full name of the trainer.
        fold: Name in `folds.csv`.
        settings: Value of nnUNet_ssp_settings.
        folder: Path below the study's folder, with `/`.
        weights: Training or file that the weights come from.
        hands_on: File that the next training takes from it; None for a fine-tuning.
        dataset: Full name of the dataset, if it is not the study's.
        file: Name of a file in the study's folder, which stands in the place of a training.
        digest: Hash of this file's content; empty while it is not there.
        snapshot: Epoch of the pretraining whose snapshot it starts from; None for its end.
        plans: Name of its plans, if they are not the study's.
    """

    name: str
    label: str
    seed: int
    trainer: str
    fold: str
    settings: str
    folder: str
    weights: Run | None = None
    hands_on: str | None = None
    dataset: str = ""
    file: str = ""
    digest: str = ""
    snapshot: int | None = None
    plans: str = ""

    @property
    def origin(self) -> list[Run]:
        """Return every run that this one's weights come from, the first one first."""
        return [] if self.weights is None else [*self.weights.origin, self.weights]

    @property
    def title(self) -> str:
        """Name of the run for readers."""
        on = f"{self.dataset}, {self.label}" if self.dataset else self.label
        where = self.label if self.hands_on is None else f"pretraining on {on}"
        return f"{self.name}, {where}, seed {self.seed}"

    @property
    def settings_of_all_seeds(self) -> str:
        """The settings without the seed."""
        return " ".join(word for word in self.settings.split() if not word.startswith("seed="))

    def fold_folder(self, data: Data) -> str:
        """Return nnU-Net's folder of the training, below the study's folder."""
        trainer = f"{self.trainer}{data.of(self.plans).results_folder}"
        name = self.dataset or data.name
        return f"{self.folder}/results/{name}/{trainer}/fold_{self.fold_number(data)}"

    def fold_number(self, data: Data) -> int | str:
        """Return the fold as nnU-Net's commands take it."""
        return ALL if self.fold == ALL else data.fold(self.fold)[0]

    def start(self, data: Data) -> str:
        """Return the file that a training starts from, below the study's folder."""
        before = self.weights
        assert before is not None
        if before.file:
            return before.file
        folder = before.fold_folder(data)
        if self.snapshot is None:
            return f"{folder}/{before.hands_on}"
        return snapshot_file(folder, self.snapshot).as_posix()


Runs = tuple[list[Run], list[Run]]  # pretrainings, and trainings


def study_runs(study: Study, data: Data | None, output: Path | None = None) -> Runs:
    """List every training that the study's tables and figures need, each once.

    Args:
        study: The study.
        data: Its dataset. None if it is not here, as in a dry run; then the steps of `match=epochs` and the
            fingerprints are not the real ones.
        output: The study's folder, whose files of weights are then read whole, as they are part of the fingerprints.

    Returns:
        The pretrainings and the fine-tunings.

    Raises:
        ValueError: A trainer or setting does not exist, or a model's trainer does not fit its pretraining.
    """
    _check_shared(study)
    pretrainings: dict[str, Run] = {}
    trainings = []
    for name, label, seed in study.needed():
        model = study.models[name]
        wanted = model.pretraining
        weights = (
            None if wanted is None else _pretraining(study, wanted, data, output, pretrainings)
        )
        trainings.append(_training(study, name, label, seed, weights, data))
    before = [run for run in pretrainings.values() if not run.file]
    folders = [run.folder for run in (*before, *trainings)]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise ValueError(f"{twice[0]} must be the folder of one run: give models other names.")
    return before, trainings


def _pretraining(
    study: Study, name: str, data: Data | None, output: Path | None, made: dict[str, Run]
) -> Run:
    """Return a pretraining's run; it joins those `made`, behind the one that it goes on from."""
    if name not in made:
        part = study.pretraining[name]
        before = part.pretraining
        weights = None if before is None else _pretraining(study, before, data, output, made)
        if part.file:
            made[name] = _of_file(name, part.file, output)
        else:
            made[name] = _own(study, name, data, weights)
    return made[name]


def _of_file(name: str, file: str, output: Path | None) -> Run:
    name_there = file.removeprefix(TIMM)  # nothing for timm's own cache
    content = digest_of(output / name_there) if output and name_there else ""
    place = f"file {file} {content}".strip()
    return Run(name, "", 0, "", "", "", place, hands_on=file, file=file, digest=content)


def _own(study: Study, name: str, data: Data | None, weights: Run | None) -> Run:
    part = study.pretraining[name]
    data = data and data.of(part.plans)
    place = f"pretraining.{name}"
    trainer = _trainer_class(f"nnUNetTrainer{part.trainer}Pretrain", f"{place}.trainer")
    if not hasattr(trainer, "method_class"):
        raise ValueError(
            f"{place}.trainer (={part.trainer}) must be one of our pretraining methods"
        )
    fold = part.fold if part.dataset is not None else study.folds.get(part.fold, part.fold)
    if SEED in fold:
        raise ValueError(f"{place}.fold (={part.fold}) must be one fold, not one for each seed")
    _check_own(part.settings, trainer, place)
    settings = study.settings.get("pretraining", {}) | part.settings | {"seed": part.seed}
    text, marked = _settings_texts(study, settings, trainer, place)
    source = data.source(part.dataset) if data and part.dataset else None
    drawn = source.fingerprint if source else data and data.unlabelled_fingerprint(fold)
    chained: list[Any] = [weights.folder] if weights else []
    if part.plans:
        chained.append(f"plans {part.plans}")
    if data and not source and override(trainer.defaults, text)[0].data_superset is not None:
        chained.append(data.fold(fold)[1].train)  # the labelled cases decide the draw
    key = key_of([trainer.__name__, fold, marked, drawn, *chained])
    return Run(
        name=name,
        label=fold,
        seed=part.seed,
        trainer=trainer.__name__,
        fold=fold,
        settings=text,
        folder=f"pretraining/{slug(name)}/seed{part.seed}-{key}",
        weights=weights,
        hands_on=trainer.method_class.checkpoint,
        dataset=source.name if source else str(part.dataset or ""),
        plans=part.plans,
    )


def _training(
    study: Study, name: str, label: str, seed: int, weights: Run | None, data: Data | None
) -> Run:
    model = study.models[name]
    data = data and data.of(model.plans)
    place = f"models.{name}"
    trainer = _trainer_class(f"nnUNetTrainer{model.trainer}", f"{place}.trainer")
    needs = getattr(trainer, "needs_weights", None)
    if needs is None or needs != (weights is not None):
        rule = (
            "a fine-tuning trainer"
            if weights
            else "a trainer from scratch, as there is no pretraining"
        )
        raise ValueError(f"{place}.trainer (={model.trainer}) must be {rule}")
    if weights is not None and model.snapshot is not None:
        _check_snapshot(weights, model.snapshot, place)
    fold = study.fold_of(label, seed)
    _check_own(model.settings, trainer, place)
    settings = study.settings.get("finetuning", {}) | model.settings
    if study.evaluate == "validation":
        settings["final_validation"] = True
    settings.setdefault("final_validation", False)
    if study.match == "epochs":
        told, _ = _settings_texts(study, settings, trainer, place)
        given = override(trainer.defaults, told)[0]
        largest = given.iterations_per_epoch if ONE_PASS in settings else None
        settings[ONE_PASS] = steps_per_epoch(study, label, largest, data, seed)
    text, marked = _settings_texts(study, settings | {"seed": seed}, trainer, place)
    content = [trainer.__name__, fold, marked, weights and weights.folder]
    if model.snapshot is not None:
        content.append(f"snapshot {model.snapshot}")
    if model.plans:
        content.append(f"plans {model.plans}")
    if data and getattr(trainer, "draws_unlabelled", False):
        content.append(data.unlabelled_fingerprint(fold))
    key = key_of([*content, data and data.fingerprint(fold)])
    return Run(
        name=name,
        label=label,
        seed=seed,
        trainer=trainer.__name__,
        fold=fold,
        settings=text,
        folder=f"runs/{slug(name)}/{slug(label)}/seed{seed}-{key}",
        weights=weights,
        snapshot=model.snapshot,
        plans=model.plans,
    )


def _check_snapshot(weights: Run, epochs: int, place: str) -> None:
    """Refuse a snapshot that its pretraining does not make."""
    settings = override(find_trainer(weights.trainer).defaults, weights.settings)[0]
    every, last = settings.snapshot_epochs, settings.num_epochs
    if epochs > last or not is_due(every, epochs):
        made = f"one every {every} of its {last} epochs" if every else "none: set snapshot_epochs"
        raise ValueError(
            f"{place}.snapshot (={epochs}) must be one that {weights.name} makes ({made})"
        )


def steps_per_epoch(
    study: Study, label: str, largest: int | None, data: Data | None, seed: int
) -> int:
    """Compute the steps of an epoch with `match=epochs`.

    Args:
        study: The study.
        label: Its name of the fold.
        largest: Steps on its largest fold, the others in proportion; None for one pass over the slices.
        data: The dataset. Without it the study's `sizes` count, and without those an epoch has one step.
        seed: Seed of the training, for folds that differ by seed.
    """
    n = count_labelled_slices(study, label, data, seed)
    if not n:
        return 1
    if largest is not None:
        folds = {(other, own) for _, other, own in study.needed()}
        most = max(count_labelled_slices(study, other, data, own) for other, own in folds)
        return max(1, round(largest * n / most))
    batch = data.batch_size if data else study.sizes.batch_size if study.sizes else 1
    return max(1, n // batch)


def count_labelled_slices(study: Study, label: str, data: Data | None, seed: int) -> int:
    """Count the labelled slices of a fold; 0 if unknown."""
    if data is not None:
        return data.labelled_slices(study.fold_of(label, seed))
    return study.sizes.labelled_slices.get(label, 0) if study.sizes else 0


def only(runs: Runs, models: Sequence[str] | None, folds: Sequence[str] | None = None) -> Runs:
    """Return the runs of some models and some of the study's folds, with their pretrainings."""
    if models is None and folds is None:
        return runs
    trainings = [
        run
        for run in runs[1]
        if (models is None or run.name in models) and (folds is None or run.label in folds)
    ]
    used = {before.folder for run in trainings for before in run.origin}
    return [run for run in runs[0] if run.folder in used], trainings


def scores_folder(study: Study, run: Run) -> str:
    """Return where the predictions and scores of a training are, below the study's folder."""
    return f"{run.folder}/reported" if study.evaluate == REPORT else run.folder


def resolved(run: Run) -> dict[str, Any]:
    """Return every setting of a training but the seed."""
    settings = asdict(override(find_trainer(run.trainer).defaults, run.settings)[0])
    return {name: value for name, value in settings.items() if name != "seed"}


def slug(name: str) -> str:
    """Make a part of a path from a name, without a need for quotes."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "-"


def find_trainer(name: str) -> Any:
    """Find a trainer's class as nnU-Net does; None if there is none."""
    return _find_trainer(name, tuple(trainer_paths()))


@lru_cache
def _find_trainer(name: str, folders: tuple[str, ...]) -> Any:
    """Take ours from their folder; else run nnU-Net's search, which imports all of its trainers and prints much."""
    ours = trainers_folder()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, at its import
        if folders[:1] == (str(ours),) and name.isidentifier() and (ours / f"{name}.py").is_file():
            return getattr(import_module(f"nnunet_ssp.trainers.{name}"), name)
        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return None


def _trainer_class(name: str, place: str) -> Any:
    found = find_trainer(name)
    if found is None:
        raise ValueError(f"{place}: nnU-Net finds no trainer {name}")
    return found


def _check_own(settings: GivenSettings, trainer: Any, place: str) -> None:
    """Refuse a setting that the trainer lacks, because equal runs would be compared.

    The study's shared settings may have such settings, for the trainers that know them.
    """
    if "seed" in settings:
        raise ValueError(f"{place}.settings: seed must not be given there, but as seed or in seeds")
    known = {field.name for field in fields(trainer.defaults)}
    foreign = [name for name in settings if name not in known]
    if not foreign and "recipe" in settings:
        try:
            foreign = override(trainer.defaults, _words({"recipe": settings["recipe"]}))[1]
        except ValueError as error:
            raise ValueError(f"{place}.settings: {error}") from None
    if foreign:
        raise ValueError(
            f"{place}.settings: {trainer.__name__} has no setting {', '.join(foreign)}"
        )


def _check_shared(study: Study) -> None:
    """Refuse a shared setting that no trainer of the study has."""
    names = {
        "pretraining": [f"{part.trainer}Pretrain" for part in study.pretraining.values()],
        "finetuning": [model.trainer for model in study.models.values()],
    }
    for kind, settings in study.settings.items():
        found = (find_trainer(f"nnUNetTrainer{name}") for name in names[kind])
        known = {field.name for trainer in found if trainer for field in fields(trainer.defaults)}
        if foreign := [name for name in settings if name not in known]:
            raise ValueError(f"settings.{kind}: no trainer of the study has {', '.join(foreign)}")
        if "seed" in settings:
            raise ValueError(f"settings.{kind}: seed must not be given there, but in seeds")


def _words(settings: GivenSettings) -> str:
    return " ".join(f"{name}={as_word(value)}" for name, value in sorted(settings.items()))


def _settings_texts(
    study: Study, settings: GivenSettings, trainer: Any, place: str
) -> tuple[str, str]:
    """Write the value of nnUNet_ssp_settings, checked by the trainer's own rules, and that for the fingerprint.

    They differ in a default that has changed since it was recorded, see `defaults`: a study that relies on the recorded
    value says it, and keeps its fingerprint; in another the new value is part of the fingerprint.
    """
    text = _words(settings)
    try:
        resolved = asdict(override(trainer.defaults, text)[0])
        new = changed(trainer.__name__, settings, resolved)
        if study.defaults == "current":
            return text, _words(settings | new)
        old = recorded_defaults(trainer.__name__, settings)
        told = _words(settings | {name: old[name] for name in new})
        override(trainer.defaults, told)
        return told, text
    except ValueError as error:
        raise ValueError(f"{place}.settings: {error}") from None


def key_of(content: object) -> str:
    """Return a digest of what must be equal for a result to count."""
    return digest(content)[:8]
