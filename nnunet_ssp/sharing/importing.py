"""`nnunet-ssp import`: check a shared pretraining, and get it ready for a dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.membership import test_subjects
from nnunet_ssp.cohort.splits import first_fold
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import ON_A_HUB, PAGE, PLANS, Bundle, read_bundle
from nnunet_ssp.files.contents import printable, read_json, shown
from nnunet_ssp.files.nnunet import configuration_of, read_dataset
from nnunet_ssp.launch import device_flag
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.preparation.moved_plans import plans_for
from nnunet_ssp.training import transfer
from nnunet_ssp.training.inspection import content_in_words


def import_bundle(
    file: Path, dataset: str | None = None, plans_name: str | None = None, pth: Path | None = None
) -> None:
    """Check a shared pretraining, show its card, and print how to go on with it.

    Args:
        file: The zip, or the folder from a hub.
        dataset: Id or name of the dataset that gets its plans.
        plans_name: Name for these plans; by default that of the pretraining.
        pth: New file for a checkpoint with its weights.

    Raises:
        FileExistsError: `pth`, or other plans of that name, exist.
        FileNotFoundError: There is no such file or dataset.
        ValueError: The file is unsafe, altered, of a later version or contradicts itself, or does not suit the dataset.
    """
    if pth is not None and pth.exists():
        raise FileExistsError(f"{pth} exists already: choose another name for --pth.")
    bundle = read_bundle(file)
    content = bundle.as_checkpoint()
    checkpoints.check_content(content, file)
    _check_network(bundle, file)
    pretrained = transfer.Pretrained(
        file, bundle.weights, content["ssp"], bundle.plans, bundle.card["configuration"]
    )
    if pth is not None and pretrained.encoder_alone:
        raise ValueError(
            f"{file} holds an encoder alone, which nnU-Net's own trainers do not load: leave out --pth, and take it "
            "with -pretrained_weights and one of our trainers."
        )
    lines = content_in_words(pretrained)
    if licences := bundle.card["data"].get("licences"):
        lines.append(f"licences of the data: {shown(licences)}")
    if bundle.card.get("measured"):
        lines.append(f"gains that were measured: in {PAGE if file.is_file() else ON_A_HUB[PAGE]}")
    if dataset is not None:
        lines += _install(bundle, file, dataset, plans_name or bundle.card["name"])
    if pth is not None:
        transfer.save(pth, content)
        lines += ["", f"For nnU-Net's own trainers: -pretrained_weights {shlex.quote(str(pth))}"]
    print("\n".join(map(printable, lines)))


def _check_network(bundle: Bundle, file: Path) -> None:
    """Refuse weights that are not those of the plans beside them, or hold NaN or infinity."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    name = bundle.card["configuration"]
    configuration = configuration_of(bundle.plans, name, str(file), ("architecture",))
    architecture = configuration["architecture"]
    try:
        with torch.device("meta"):  # only names and shapes are compared
            network = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                len(bundle.card["channel_names"]),
                2,
                deep_supervision=True,
            )
    except Exception as error:  # whatever a network's constructor may raise
        reason = shown(" ".join(str(error).split()))
        raise ValueError(
            f"{file}: nnU-Net cannot build a network from its plans ({reason})."
        ) from error
    pretrained = transfer.Pretrained(file, bundle.weights, {}, {}, name)
    if refusals := transfer.compare(pretrained, network, bundle.plans, configuration).refusals:
        raise ValueError(f"{file}: weights that do not go with its plans: {'; '.join(refusals)}.")


def _install(bundle: Bundle, file: Path, dataset: str, name: str) -> list[str]:
    """Write the plans for a dataset; return what to do next."""
    folder, content = _find(dataset)
    theirs, ours = len(bundle.card["channel_names"]), len(transfer.channel_names(content))
    if theirs != ours:
        raise ValueError(
            f"{file}: pretrained with {count_of(theirs, 'input channel')}, {folder.name} has {ours}."
        )
    _check_leak(bundle, file, folder)
    plans = _plans_for(bundle, folder.name, content, name)
    target = nnunet_folder("nnUNet_preprocessed") / folder.name / f"{name}.json"
    if target.is_file() and read_json(target, dict) != plans:
        raise FileExistsError(f"{target} has other plans: choose another name with -p.")
    write_json(target, plans)
    return _next(bundle, file, folder, content, plans)


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
    bundle: Bundle, file: Path, folder: Path, dataset_json: dict[str, Any], plans: dict[str, Any]
) -> list[str]:
    """Return the commands that go on with the plans of a dataset, whose raw or preprocessed folder is given."""
    number = dataset_id(folder.name)
    name, configuration = plans["plans_name"], bundle.card["configuration"]
    planned = plans["configurations"][configuration]
    spacing = " x ".join(f"{side:g}" for side in planned["spacing"])
    labelled = any(value != 0 for value in dataset_json["labels"].values())
    fold = first_fold(
        folder / "splits_final.json", dataset_json.get("numTraining", 0) if labelled else 0
    )
    train = f"nnUNetv2_train {number} {configuration} {fold} -p {shlex.quote(name)}"
    weights = f"-pretrained_weights {shlex.quote(str(file.resolve()))}{device_flag()}"
    lines = [
        "",
        f"Plans {name} of {plans['dataset_name']}: images are resampled to {spacing} mm and normalised by "
        f"{', '.join(planned['normalization_schemes'])}, as in the pretraining.",
        f"Next: nnunet-ssp prepare {number} -c {configuration} -p {shlex.quote(name)}",
    ]
    trainer = bundle.card["record"].get("trainer", "")
    if trainer.isidentifier():
        lines.append(f"Then, to pretrain further: {train} -tr {trainer} {weights}")
    if labelled:
        lines.append(f"Or, to fine-tune: {train} -tr nnUNetTrainerFinetune {weights}")
    return lines
