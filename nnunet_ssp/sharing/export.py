"""`nnunet-ssp export`: a pretraining as one zip, with its plans and a card, without names and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ssp.cohort import privacy
from nnunet_ssp.console import shape_in_words
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.bundles import FINGERPRINT, Bundle, write_bundle
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_name_plans
from nnunet_ssp.files.nnunet import check_plans, configuration_of
from nnunet_ssp.network import is_output_layer
from nnunet_ssp.sharing.card import card_of, page_of, prepared_folder, seen_cases
from nnunet_ssp.sharing.gains import measured_gains
from nnunet_ssp.training import transfer

# What nnU-Net writes into a fingerprint: numbers only.
IN_FINGERPRINT = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    half: bool = False,
    subjects: bool = False,
    data_licence: list[str] | None = None,
    hub: bool = False,
    trust: bool = False,
) -> Path:
    """Write a pretraining to be shared.

    Args:
        checkpoint: Its checkpoint.
        output: The zip, with or without its ending; with `hub` the folder.
        half: Whether to store float16.
        subjects: Whether to list subjects by name, from this machine's `cases.csv`.
        data_licence: Licences of the data.
        hub: Whether to write the folder that a model hub expects.
        trust: Whether to run code that the checkpoint asks for, see `checkpoints.load`.

    Returns:
        What was written.

    Raises:
        FileExistsError: It is there already.
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint is no pretraining, is not 2D, or its subjects' names are not known here.
    """
    name = must_name_plans(output.name.removesuffix(".zip"), "-o")
    target = output if hub else output.with_name(f"{name}.zip")
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name with -o.")
    # Of optimiser and heads nothing is read.
    content = checkpoints.load(checkpoint, trust, mmap=True)
    if "method" not in content.get("ssp", {}):
        raise ValueError(
            f"{checkpoint} is no pretraining of nnunet-ssp: its record has no `method`. nnUNetv2_export_model_to_zip "
            "shares models that segment."
        )
    public = privacy.stripped(content)
    plans, configuration = _network_of(public.get("init_args", {}), checkpoint)
    weights = content["network_weights"]
    checkpoints.refuse_non_finite(checkpoint, weights)
    prepared = prepared_folder(content["init_args"]["plans"].get("dataset_name"))
    seen = seen_cases(content["ssp"], prepared, configuration["data_identifier"])
    if subjects and not seen:
        raise ValueError(
            f"--subjects: the names of the subjects are not known: {checkpoint} holds hashes, and nnUNet_preprocessed "
            "has no dataset with these subjects, frames and slices."
        )
    record = content["ssp"]
    measured = measured_gains(checkpoint, record["method"], record.get("settings"))
    card = card_of(name, public, seen, data_licence or (), subjects, measured)
    fresh = transfer.fresh_keys(weights) | {key for key in weights if is_output_layer(key)}
    bundle = Bundle(weights, card, plans, _fingerprint(checkpoint, prepared))
    write_bundle(target, bundle, page_of(card, configuration, hub), fresh, half, hub)
    print(f"Written: {target}")
    for line in _remarks(bundle, bool(seen), subjects):
        print(f"note: {line}")
    return target


def _network_of(arguments: dict[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return plans that say how to prepare for the network and no more, and the network's configuration."""
    plans, name = arguments.get("plans", {}), arguments.get("configuration", "")
    where = f"{file}, plans"
    check_plans(plans, where)
    needed = ("data_identifier", "patch_size", "spacing", "normalization_schemes", "architecture")
    configuration = configuration_of(plans, name, where, needed)
    if len(configuration["patch_size"]) != 2:
        raise ValueError(
            f"{file}: configuration {name} must be 2D: its patch is {shape_in_words(configuration['patch_size'])}."
        )
    return plans | {"configurations": {name: configuration}}, configuration


def _fingerprint(checkpoint: Path, prepared: Path | None) -> dict[str, Any]:
    places = [checkpoint.parent.parent, *([prepared] if prepared else [])]
    file = next((f for place in places if (f := place / FINGERPRINT).is_file()), None)
    content = read_json(file, dict) if file else {}
    return {name: content[name] for name in IN_FINGERPRINT if name in content}


def _remarks(bundle: Bundle, known: bool, subjects: bool) -> list[str]:
    lines = []
    if not known:
        lines.append(
            "the card has no counts by source, vendor and field strength: nnUNet_preprocessed has no such dataset, or "
            "it has changed since"
        )
    if not bundle.fingerprint:
        lines.append(f"no {FINGERPRINT} was found beside the checkpoint or in nnUNet_preprocessed")
    if not bundle.card["data"]["licences"]:
        lines.append(
            "the card states no licence of the data: export again with --data-licence 'SET: LICENCE'"
        )
    if subjects:
        lines.append("the card names the subjects")
    return lines
