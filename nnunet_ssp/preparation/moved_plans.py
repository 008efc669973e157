"""Plans of one dataset, or of a shared pretraining, for another dataset, as nnU-Net moves plans between datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ssp.console import count_of, nearest
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import Bundle, is_shared, read_bundle
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_name_plans
from nnunet_ssp.files.nnunet import (
    NATURAL,
    configuration_of,
    names_of_plans,
    read_plans,
    require_preparing,
)
from nnunet_ssp.launch import NNUNET_PLANS, planning_command
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.preparation.imported import Imported, record_import
from nnunet_ssp.settings import learned_by

if TYPE_CHECKING:  # it loads nnU-Net's readers of images, 150 MB
    from nnunet_ssp.preparation.raw_checks import Rules

BY_CHANNEL = ("normalization_schemes", "use_mask_for_norm")
NEEDED = ("patch_size", "spacing", *BY_CHANNEL)  # of a configuration


def install_plans(
    source: str,
    target: Path,
    configurations: Sequence[str],
    rules: Rules,
    plans_name: str | None = None,
    new_name: str | None = None,
) -> str:
    """Write another's plans for a dataset, and print by which rules its images are prepared.

    Args:
        source: Dataset id or name, or the zip or folder of a shared pretraining.
        target: The dataset's folder in nnUNet_preprocessed.
        configurations: Those that are wanted.
        rules: Rules for the files of the dataset.
        plans_name: Which plans of the other dataset; by default its only ones, or nnUNetPlans.
        new_name: Name for the plans here; by default their own.

    Returns:
        The name of the plans.

    Raises:
        FileExistsError: The dataset has other plans of that name.
        FileNotFoundError: There is no such dataset or file, or it has no such plans.
        ValueError: The plans do not suit the dataset.
    """
    plans, name, where, bundle = _find(source, target.name, plans_name)
    name = new_name or name
    channels, reader = rules.channels, rules.reader
    for configuration in configurations:
        wanted = configuration_of(plans, configuration, where, NEEDED)
        if reader == NATURAL and len(wanted["patch_size"]) != 2:
            raise ValueError(f"{where}: configuration {configuration} must be 2D for 2D images.")
        require_preparing({**plans, "image_reader_writer": reader}, configuration, where)
    moved = plans_for(plans, configurations, target.name, name, channels, reader, where)
    file = target / f"{name}.json"
    if file.is_file() and read_json(file, dict) != moved:
        raise FileExistsError(
            f"{file} has other plans than {where}: choose another name with -overwrite_plans_name."
        )
    write_json(file, moved)
    theirs = plans.get("dataset_name", Path(source).name)
    for configuration in configurations:
        before = configuration_of(plans, configuration, where, NEEDED)
        print(f"Plans {name} of {theirs}, {configuration}: {_rules(before, reader)}")
    there = len(configuration_of(plans, configurations[0], where, NEEDED)[BY_CHANNEL[0]])
    if bundle is not None:
        settings = "" if channels == there else "adapt=yes"
        record_import(target, name, imported_from(bundle, Path(source), settings))
    if channels != there:
        print(
            f"note: the images have {count_of(channels, 'channel')}, those of {theirs} {there}: to train on with these "
            "weights there, set adapt=yes, which fits the first layer."
        )
    return name


def imported_from(bundle: Bundle, file: Path, settings: str) -> Imported:
    """Return the record of a shared pretraining.

    Args:
        bundle: Its content.
        file: The zip or folder.
        settings: By which its weights fit.
    """
    record = bundle.card["record"]
    trainer = str(record.get("trainer", ""))
    trainer = trainer if trainer.isidentifier() else ""
    place = str(file.expanduser().resolve())
    recorded = record.get("settings")
    known = recorded if isinstance(recorded, dict) else {}
    learned = learned_by(str(record.get("method", "")), known)
    return Imported(place, bundle.card["configuration"], trainer, settings, learned)


def _find(
    source: str, dataset: str, plans_name: str | None
) -> tuple[dict[str, Any], str, str, Bundle | None]:
    """Return the plans, their name, where they are from, and the pretraining that they came with."""
    path = Path(source).expanduser()
    if path.exists() and is_shared(path):
        if plans_name is not None:
            raise ValueError(f"{path} has plans of one name only: leave out -p {plans_name}.")
        bundle = read_bundle(path)
        return bundle.plans, str(bundle.card["name"]), str(path), bundle
    if path.suffix == ".zip":
        known = "is no shared pretraining" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{path} {known}: --plans-from takes a dataset, or a zip of export."
        )
    folder = dataset_folder(nnunet_folder("nnUNet_preprocessed"), source)
    if folder.name == dataset:
        raise ValueError(f"--plans-from (={source}) must be another dataset; its own plans: -p.")
    names = names_of_plans(folder)
    if not names:
        command = planning_command(dataset_id(folder.name), plans_name or NNUNET_PLANS)
        raise FileNotFoundError(f"{folder} has no plans: run {command} first.")
    chosen = plans_name or (names[0] if len(names) == 1 else NNUNET_PLANS)
    if chosen not in names:
        near = "" if plans_name is None else nearest(chosen, names)
        raise FileNotFoundError(
            f"{folder} has no plans {chosen}: choose with -p, of {', '.join(names)}.{near}"
        )
    file = folder / f"{chosen}.json"
    return read_plans(file), chosen, str(file), None


def plans_for(
    plans: Mapping[str, Any],
    configurations: Sequence[str],
    dataset: str,
    name: str,
    channels: int,
    reader: str,
    where: str,
) -> dict[str, Any]:
    """Return plans for another dataset.

    Natural images have no spacing in mm: their pixels count as pixels of the plans, and rows stay rows.

    Args:
        plans: The plans.
        configurations: Those that are moved.
        dataset: Name of the other dataset.
        name: Name of the plans there.
        channels: Number of its channels.
        reader: Name of nnU-Net's class that reads its images.
        where: File of the plans, for messages.

    Raises:
        ValueError: The name is none for plans, or the normalisation is not one for these images.
    """
    must_name_plans(name, "the plans' name")
    moved = {}
    for configuration in configurations:
        own = dict(configuration_of(dict(plans), configuration, where, NEEDED))
        own |= {key: _repeated(own[key], channels, key, where) for key in BY_CHANNEL if key in own}
        if reader == NATURAL:
            _check_natural(own, configuration, where)
            own["spacing"] = [1.0] * len(own["spacing"])
        moved[configuration] = own | {"data_identifier": f"{name}_{configuration}"}
    content = {
        **plans,
        "dataset_name": dataset,
        "plans_name": name,
        "image_reader_writer": reader,
        "configurations": moved,
    }
    if reader == NATURAL:
        content |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    key = "foreground_intensity_properties_per_channel"
    if known := plans.get(key, {}):  # nnU-Net looks them up for every channel
        first = next(iter(known.values()))
        content[key] = {**known, **{str(n): known.get(str(n), first) for n in range(channels)}}
    return content


def _repeated(values: Sequence[Any], channels: int, key: str, where: str) -> list[Any]:
    if len(values) == channels:
        return list(values)
    if any(value != values[0] for value in values):
        raise ValueError(
            f"{where}: `{key}` (={', '.join(map(str, values))}) must be one for all channels, as the images to "
            f"prepare have {count_of(channels, 'channel')}."
        )
    return [values[0]] * channels


def _check_natural(configuration: Mapping[str, Any], name: str, where: str) -> None:
    if "CTNormalization" in configuration["normalization_schemes"]:
        raise ValueError(
            f"{where}, {name}: `normalization_schemes` (=CTNormalization) is for Hounsfield units, which natural "
            "images do not have; take plans of another normalisation."
        )


def _rules(configuration: Mapping[str, Any], reader: str) -> str:
    """Say how images are resampled and normalised."""
    spacing = " x ".join(f"{side:.4g}" for side in configuration["spacing"])
    schemes = " and ".join(dict.fromkeys(configuration["normalization_schemes"]))
    normalised = f"each is normalised by {schemes}, channel by channel"
    if reader == NATURAL:
        return (
            f"natural images have no spacing in mm, so that their pixels count as pixels of these plans "
            f"({spacing} mm there), without resampling; {normalised}."
        )
    return f"images are resampled to {spacing} mm; {normalised}."
