"""Which trained model made predictions, as far as names and files tell; pretrainings, and seeds that are none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssp.console import some
from nnunet_ssp.evaluation.for_new_patients import PRINTED, segments
from nnunet_ssp.evaluation.provenance import is_validation, read_provenance
from nnunet_ssp.files.contents import read_json, shown
from nnunet_ssp.launch import predictions_folder
from nnunet_ssp.nnunet import results_here

_PRETRAINING = re.compile(r"(nnUNetTrainer\w*Pretrain)(_.+)?_fold_(all|\d+)")


def model_notes(models: Mapping[str, Sequence[Path]], dataset: str) -> list[str]:
    """Warn of predictions of a pretraining, and of different models under one name.

    Args:
        models: Folders of predictions of each model, absolute.
        dataset: Name of the dataset that they are scored on.
    """
    notes = []
    for name, folders in models.items():
        for folder in folders:
            # By name: the page, which is shared, has no paths.
            who = name if len(folders) == 1 else f"{name}, {folder.name}"
            notes += _of_a_pretraining(who, folder)
        notes += _mixed(name, folders, dataset)
    return list(dict.fromkeys(notes))


def _of_a_pretraining(who: str, folder: Path) -> list[str]:
    """Return the sentence on predictions of a pretraining, as a list of none or one."""
    if named := _PRETRAINING.fullmatch(folder.name):
        return [
            f"WARNING: {who}: by the folder's name these are predictions of {named[1]}, a pretraining, which segments "
            "nothing; fine-tune it first, then predict with the fine-tuning."
        ]
    origin = read_provenance(folder).model
    if not re.fullmatch(r"Dataset\d{3}_.+", origin) or PRINTED.fullmatch(folder.name):
        return []
    base = results_here() / origin
    held = {f.parts[-3] for f in base.glob("*__*__*/fold_*/checkpoint_final.pth")}
    if not held or any(map(segments, held)):
        return []
    return [
        f"{who}: in nnUNet_results {shown(origin)} has pretrainings alone ({some(held, 3)}), which segment nothing. If "
        "one of these predicted, fine-tune it first, then predict with the fine-tuning."
    ]


def _mixed(name: str, folders: Sequence[Path], dataset: str) -> list[str]:
    """Return the sentence on folders of one name whose trainers or plans differ, as a list of none or one."""
    for kind, of in (("different models", _model), ("models of different plans", _plans)):
        found = list(dict.fromkeys(of(folder, dataset) for folder in folders))
        found = [one for one in found if one]
        if len(found) > 1:
            return [
                f"WARNING: {name}: its folders were predicted by {kind} ({some(found)}), yet folders of one name are "
                "taken for seeds or folds of one model, and averaged. Give each model a name of its own."
            ]
    return []


def _model(folder: Path, dataset: str) -> str:
    """Return trainer, plans and configuration, as in the name of a printed folder; empty if unknown."""
    if is_validation(folder):
        model = folder.parents[1].name
        if model.count("__") != 2:
            return ""
        return Path(predictions_folder(dataset, model, "")).name.removesuffix("_fold_")
    return folder.name.rpartition("_fold_")[0] if PRINTED.fullmatch(folder.name) else ""


def _plans(folder: Path, dataset: str) -> str:
    """Return the name of the plans in nnU-Net's file beside predictions; empty if there is none."""
    place = folder.parents[1] if is_validation(folder) else folder
    try:
        plans: dict[str, Any] = read_json(place / "plans.json", dict)
    except (OSError, ValueError):
        return ""
    found = plans.get("plans_name")
    own = plans.get("dataset_name")
    if not isinstance(found, str) or not found:
        return ""
    # Plans of one name are other plans in another dataset.
    return shown(found) if own in (None, dataset) else f"{shown(found)} of {shown(own)}"
