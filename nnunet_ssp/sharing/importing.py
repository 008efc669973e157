"""`nnunet-ssp import`: check a shared pretraining, and get it ready for a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.membership import count_for_advice, test_subjects
from nnunet_ssp.cohort.splits import first_fold, read_splits
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files import checkpoints, saving
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import ON_A_HUB, PAGE, PLANS, Bundle, unverified_bundle
from nnunet_ssp.files.contents import printable, read_json, shown
from nnunet_ssp.files.names import must_name_plans
from nnunet_ssp.files.nnunet import configuration_of, read_dataset, read_plans
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.preparation.imported import FINETUNING, record_import
from nnunet_ssp.preparation.moved_plans import imported_from, plans_for
from nnunet_ssp.recommended import finetuning_settings
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import TrainingSettings
from nnunet_ssp.training import transfer
from nnunet_ssp.training.adapters import Adaptation
from nnunet_ssp.training.fitting import (
    Asking,
    Planned,
    adapt_misfit,
    adaptation_in_words,
    build_network,
    filled_weights,
    planned_network,
)
from nnunet_ssp.training.inspection import content_in_words

OPTION = Asking("The option", "--adapt", "--min-transferred ")
BY_IMAGE = ("spacing", "normalization_schemes")


@dataclass(frozen=True)
class Target:
    """The dataset and the plans that weights are for.

    Attributes:
        folder: Of the dataset, raw or preprocessed.
        dataset_json: Content of its `dataset.json`.
        file: The file of the plans, which may not exist yet.
        plans: Their content.
    """

    folder: Path
    dataset_json: dict[str, Any]
    file: Path
    plans: dict[str, Any]


def import_bundle(
    file: Path,
    dataset: str | None = None,
    plans_name: str | None = None,
    pth: Path | None = None,
    adapt: bool = False,
    least: float | None = None,
) -> None:
    """Check a shared pretraining, show its card, and print how to go on with it.

    Args:
        file: The zip, or the folder from a hub.
        dataset: Id or name of the dataset that gets its plans.
        plans_name: Name for these plans, by default that of the pretraining; with `adapt` also that of plans which the
            dataset has, and which stay.
        pth: New file for a checkpoint with its weights, which with `adapt` fits the dataset's plans.
        adapt: Whether weights that do not fit are adapted, as by `adapt=yes` in training.
        least: Least share of the encoder's parameters that must then come from the file, as `min_transferred` in
            training, whose default holds here, too.

    Raises:
        FileExistsError: `pth`, or other plans of that name, exist.
        FileNotFoundError: There is no such file or dataset.
        ValueError: The file is unsafe, altered, of a later version or contradicts itself, or does not suit the dataset.
    """
    if pth is not None and pth.exists():
        raise FileExistsError(f"{pth} exists already: choose another name for --pth.")
    asked = _asked(dataset, adapt, least)
    with ExitStack() as kept:  # at its end the checkpoint moves to its place
        with unverified_bundle(file) as bundle:
            content = bundle.as_checkpoint()
            checkpoints.check_content(content, file)
            pretrained = transfer.Pretrained(
                *(file, bundle.weights, content["ssp"], bundle.plans, bundle.card["configuration"]),
                transfer.channel_names(bundle.card),
            )
            make = partial(_planned, bundle, file)
            _check_network(pretrained, make())
            lines = _described(pretrained, bundle)
            target = adaptation = None
            if dataset is not None:
                name = plans_name or bundle.card["name"]
                target = _choose(pretrained, bundle, dataset, name, adapt)
                make = partial(_planned_there, target, pretrained.configuration)
                adaptation, said = _fit(pretrained, make(), asked)
                if adaptation is not None:
                    content |= _adapted_content(content, target, said[0])
                lines += [*said, *_next(bundle, file, target, asked if adaptation else None)]
            if pth is not None:
                content["network_weights"] = _weights(pretrained, make, adaptation)
                kept.enter_context(saving.saved(pth, content))
                line = f"For nnU-Net's own trainers: -pretrained_weights {shlex.quote(str(pth))}"
                lines += ["", line]
        if target is not None:
            if not target.file.exists():
                write_json(target.file, target.plans)
            settings = _settings(asked if adaptation else None)
            shared = imported_from(bundle, file, settings)
            record_import(target.file.parent, target.file.stem, shared)
    print("\n".join(map(printable, lines)))


def _asked(dataset: str | None, adapt: bool, least: float | None) -> TrainingSettings:
    """Return the settings of adapting; a number that is not given is training's own."""
    if adapt and dataset is None:
        raise ValueError("--adapt fits weights to the plans of a dataset: name it with -d.")
    if least is None:
        return TrainingSettings(adapt=adapt)
    if not adapt:
        raise ValueError(
            f"--min-transferred (={least:g}) is for weights that --adapt fits: add it."
        )
    return TrainingSettings(adapt=True, min_transferred=least)


def _described(pretrained: transfer.Pretrained, bundle: Bundle) -> list[str]:
    """Return lines on what was imported."""
    lines = content_in_words(pretrained)
    if licences := bundle.card["data"].get("licences"):
        named = licences if isinstance(licences, list) else [licences]
        lines.append(f"licences of the data: {'; '.join(map(shown, named))}")
    if bundle.card.get("measured"):
        page = PAGE if pretrained.file.is_file() else ON_A_HUB[PAGE]
        lines.append(f"gains that were measured: in {page}")
    return lines


def _weights(
    pretrained: transfer.Pretrained, make: Callable[..., Planned], adaptation: Adaptation | None
) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: the file's own, or those of a network that some of them fill."""
    if adaptation is None and not pretrained.encoder_alone:
        return pretrained.weights
    if adaptation is None:  # nnU-Net's loader asks for a decoder
        adaptation = transfer.adapted(pretrained, make().network, {}, encoder_only=True)
    return filled_weights(make("cpu"), adaptation)


def _planned(bundle: Bundle, file: Path, device: str = "meta") -> Planned:
    """Build the network of the plans in the file."""
    name, channels = bundle.card["configuration"], bundle.card["channel_names"]
    configuration = configuration_of(bundle.plans, name, str(file), ("architecture",))
    network = build_network(
        configuration["architecture"], len(channels), 2, f"{file}, its plans", device
    )
    return Planned(network, bundle.plans, configuration, {"channel_names": channels}, 2)


def _planned_there(target: Target, configuration: str, device: str = "meta") -> Planned:
    """Build the network of the dataset's plans."""
    return planned_network(
        target.plans, configuration, target.dataset_json, str(target.file), device
    )


def _check_network(pretrained: transfer.Pretrained, planned: Planned) -> None:
    """Refuse weights that are not those of the plans beside them, or hold NaN or infinity."""
    alone = replace(pretrained, ssp={}, plans={}, channels=())
    if refusals := planned.compare(alone).refusals:
        raise ValueError(
            f"{pretrained.file}: weights that do not go with its plans: {'; '.join(refusals)}."
        )


def _choose(
    pretrained: transfer.Pretrained, bundle: Bundle, dataset: str, name: str, adapt: bool
) -> Target:
    """Return the dataset with the pretraining's plans; with `adapt`, plans that it has by that name are taken."""
    folder, content = _find(dataset)
    _check_leak(bundle, pretrained.file, folder)
    must_name_plans(name, "the plans' name")
    file = nnunet_folder("nnUNet_preprocessed") / folder.name / f"{name}.json"
    if adapt and file.is_file():
        return Target(folder, content, file, read_plans(file))
    target = Target(folder, content, file, _plans_for(bundle, folder.name, content, name))
    if file.is_file() and read_json(file, dict) != target.plans:
        theirs = replace(target, plans=read_plans(file))
        planned = _planned_there(theirs, pretrained.configuration)
        refusals = "; ".join(planned.compare(pretrained).refusals)
        raise FileExistsError(
            f"{file} has other plans{f' ({refusals})' if refusals else ''}: choose another name with -p, or fit the "
            "weights to them with --adapt."
        )
    return target


def _fit(
    pretrained: transfer.Pretrained, planned: Planned, asked: TrainingSettings
) -> tuple[Adaptation | None, list[str]]:
    """Return the tensors to take if the weights must be adapted, and what to say of it."""
    comparison = planned.compare(pretrained)
    adaptation = adapt_misfit(
        *(pretrained, comparison, planned.network, planned.dataset_json),
        wanted=asked.adapt,
        least=asked.min_transferred,
        asking=OPTION,
    )
    if adaptation is None:
        return None, []
    return adaptation, adaptation_in_words(comparison, adaptation, OPTION)


def _adapted_content(content: Mapping[str, Any], target: Target, how: str) -> dict[str, Any]:
    """Return what a checkpoint of adapted weights holds in place of the pretraining's own entries."""
    arguments = {"plans": target.plans, "dataset_json": target.dataset_json}
    return {
        "init_args": content["init_args"] | arguments,
        "ssp": content["ssp"] | {"adapted": how.partition(": ")[2]},
    }


def _find(dataset: str) -> tuple[Path, dict[str, Any]]:
    """Return the dataset's folder, raw or preprocessed, and its `dataset.json`."""
    raw, prepared = (nnunet_folder(f"nnUNet_{kind}") for kind in ("raw", "preprocessed"))
    try:
        folder = dataset_folder(raw, dataset)
    except FileNotFoundError:
        folder = dataset_folder(prepared, dataset)
    return folder, read_dataset(folder / "dataset.json")


def _check_leak(bundle: Bundle, file: Path, folder: Path) -> None:
    if not (folder / "cases.csv").is_file():
        return
    record = bundle.card["record"]
    links = [*record.get("chain", []), record.get("pretraining", {}), record]
    hashes = privacy.hashed_subjects(s for link in links for s in link.get("subjects", ()))
    seen = privacy.ours_among(test_subjects(read_cases(folder / "cases.csv")), hashes)
    if seen:
        raise ValueError(
            f"{file} has seen {count_of(len(seen), 'test subject')} of {folder.name} ({some(seen)}): every result "
            "would be wrong."
        )


def _plans_for(
    bundle: Bundle, dataset: str, dataset_json: dict[str, Any], name: str
) -> dict[str, Any]:
    """Return the source's plans under a new name, as nnU-Net moves plans between datasets."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    reader = determine_reader_writer_from_dataset_json(
        dataset_json, allow_nonmatching_filename=True, verbose=False
    )
    channels = len(transfer.channel_names(dataset_json))
    only = [bundle.card["configuration"]]
    return plans_for(bundle.plans, only, dataset, name, channels, reader.__name__, PLANS)


def _next(
    bundle: Bundle, file: Path, target: Target, adapted: TrainingSettings | None
) -> list[str]:
    """Return the commands that go on with the plans of a dataset, with the settings by which weights are adapted."""
    folder, dataset_json, plans = target.folder, target.dataset_json, target.plans
    number = dataset_id(folder.name)
    name, configuration = plans["plans_name"], bundle.card["configuration"]
    planned = configuration_of(plans, configuration, str(target.file), BY_IMAGE)
    spacing = " x ".join(f"{side:g}" for side in planned["spacing"])
    labelled = any(value != 0 for value in dataset_json["labels"].values())
    fold = first_fold(
        folder / "splits_final.json", dataset_json.get("numTraining", 0) if labelled else 0
    )
    shared = imported_from(bundle, file, _settings(adapted))
    own = configuration_of(bundle.plans, configuration, str(file), BY_IMAGE)
    alike = all(set(map(str, own[key])) == set(map(str, planned[key])) for key in BY_IMAGE)
    lines = [
        "",
        f"Plans {name} of {plans['dataset_name']}: images are resampled to {spacing} mm and normalised by "
        f"{', '.join(planned['normalization_schemes'])}, {'as' if alike else 'other than'} in the pretraining.",
        f"Next: nnunet-ssp prepare {number} -c {configuration} -p {shlex.quote(name)}",
    ]
    if shared.trainer:
        lines.append(f"Then, to pretrain further: {shared.further(number, fold, name)}")
    if labelled:
        settings = _finetuning_settings(folder, dataset_json, fold)
        lines.append(
            f"Or, to fine-tune: {shared.command(number, fold, name, FINETUNING, settings)}"
        )
    return lines


def _finetuning_settings(folder: Path, dataset_json: dict[str, Any], fold: str) -> str:
    """Return the settings that `prepare` will recommend for so many labels."""
    splits, table = folder / "splits_final.json", folder / "cases.csv"
    ending = dataset_json.get("file_ending", "")
    masks = [*folder.glob(f"labelsTr/[!.]*{ending}"), *folder.glob(f"gt_segmentations/*{ending}")]
    listed = dataset_json.get("dataset")  # nnU-Net's other form, whose files lie anywhere
    labelled = {mask.name.removesuffix(ending) for mask in masks} | {*(listed or ())}
    n_labelled, _ = count_for_advice(
        *(fold, labelled, read_splits(splits) if splits.is_file() else []),
        read_cases(table) if table.is_file() else {},
    )
    return finetuning_settings(n_labelled)


def _settings(adapted: TrainingSettings | None) -> str:
    """Return the settings by which weights are adapted; nothing for those that fit as they are."""
    words = ["adapt=yes"] if adapted else []
    if adapted and adapted.min_transferred != TrainingSettings.min_transferred:
        words.append(f"min_transferred={as_word(adapted.min_transferred)}")
    return " ".join(words)
