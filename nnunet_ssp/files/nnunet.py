"""nnU-Net's own files, plans and `dataset.json`, checked before anything uses their values."""

from __future__ import annotations

import math
import pkgutil
import pydoc
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import (
    COUNT,
    NAMES,
    TEXT,
    TEXTS,
    WAY_OUT,
    Rule,
    check,
    is_whole,
    nests_too_deeply,
    optional,
    read_json,
    shown,
)
from nnunet_ssp.files.names import PLAIN, must_be_plain

NATURAL = "NaturalImage2DIO"  # nnU-Net's reader of PNG and TIFF


def _list(words: str, holds: Callable[[Any], bool]) -> Rule:
    return Rule(words, lambda v: isinstance(v, list) and len(v) > 0 and all(map(holds, v)))


def _is_length(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]


def _is_label(value: object) -> bool:
    if isinstance(value, list):  # a region
        return bool(value) and all(map(is_whole, value))
    return is_whole(value)


ENDING = Rule(
    "an ending, as .nii.gz",
    lambda v: isinstance(v, str) and re.fullmatch(r"(\.[A-Za-z0-9]{1,16}){1,3}", v) is not None,
)
AXES = Rule(
    "each axis once, as [0, 1, 2]",
    lambda v: isinstance(v, list) and all(map(is_whole, v)) and sorted(v) == list(range(len(v))),
)
DATASET: dict[str, Rule] = {
    "channel_names": Rule("names of at least one channel", lambda v: NAMES.holds(v) and bool(v)),
    "modality": NAMES,  # nnU-Net's former name
    "labels": Rule(
        "names with whole numbers from 0, or with lists of them",
        lambda v: NAMES.holds(v) and bool(v) and all(map(_is_label, v.values())),
    ),
    "numTraining": COUNT,
    "file_ending": ENDING,
    "regions_class_order": optional(_list("a list of whole numbers from 0", is_whole)),
    "overwrite_image_reader_writer": optional(TEXT),
    "dataset": NAMES,
}
LISTED = {"images": _list("a list of paths", TEXT.holds), "label": TEXT}

PLANS = {
    "dataset_name": PLAIN,
    "plans_name": PLAIN,
    "configurations": Rule(
        "names with configurations",
        lambda v: NAMES.holds(v) and bool(v) and all(map(NAMES.holds, v.values())),
    ),
    "transpose_forward": AXES,
    "transpose_backward": AXES,
    "label_manager": TEXT,
    "image_reader_writer": TEXT,
    "foreground_intensity_properties_per_channel": NAMES,
}
CONFIGURATION = {
    "data_identifier": PLAIN,
    "preprocessor_name": TEXT,
    "batch_size": Rule("a whole number from 1", lambda v: is_whole(v, 1)),
    "patch_size": _list("a list of whole numbers from 1", lambda v: is_whole(v, 1)),
    "spacing": _list("a list of lengths above 0 mm", _is_length),
    "normalization_schemes": TEXTS,
    "use_mask_for_norm": _list("a list of true and false", lambda v: isinstance(v, bool)),
    "resampling_fn_data": TEXT,
    "resampling_fn_seg": TEXT,
    "resampling_fn_data_kwargs": NAMES,
    "resampling_fn_seg_kwargs": NAMES,
    "previous_stage": optional(PLAIN),
    "architecture": NAMES,
}
# Limits of a network: nnU-Net plans at most 10 stages, 6 blocks in each and 512 features.
STAGES, BLOCKS, LARGEST = 16, 64, 4096


def _is_within(value: object, most: int) -> bool:
    """Whether a value is a whole number from 1, or a list of them, or a list of such lists."""
    if isinstance(value, list):
        return len(value) <= STAGES and all(
            _is_within(part, most) for item in value for part in _as_list(item)
        )
    return is_whole(value, 1) and value <= most  # type: ignore[operator]


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _per_stage(most: int) -> Rule:
    words = f"a whole number from 1 to {most}, or a list of them for at most {STAGES} stages"
    return Rule(words, lambda v: _is_within(v, most))


def _has_small_numbers(value: object) -> bool:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return all(map(_has_small_numbers, parts))
    return not isinstance(value, int) or abs(value) <= LARGEST


def _is_module(name: object, package: str) -> bool:
    """Whether a name is that of a network or layer of a package, looked up as nnU-Net does: by importing it."""
    if not isinstance(name, str) or not re.fullmatch(
        rf"{re.escape(package)}(\.\w+)+", name, re.ASCII
    ):
        return False
    from torch.nn import Module

    try:
        found = pydoc.locate(name)
        if found is None and package == NETWORKS:  # nnU-Net then takes the first of this last name
            modules = pkgutil.iter_modules(import_module(package).__path__, f"{package}.")
            held = (vars(import_module(module.name)) for module in modules)
            last = name.rpartition(".")[2]
            found = next((names[last] for names in held if last in names), None)
    except Exception:  # whatever an import may raise
        return False
    return (
        isinstance(found, type)
        and issubclass(found, Module)
        and found.__module__.startswith(f"{package}.")
    )


NETWORKS, LAYERS = "dynamic_network_architectures.architectures", "torch.nn"
# Of this package: a U-Net with an encoder of timm.
OWN_NETWORK = "nnunet_ssp.timm_unet.TimmUNet"
NETWORK = Rule(
    f"a network of {NETWORKS}, or {OWN_NETWORK}",
    lambda v: v == OWN_NETWORK or _is_module(v, NETWORKS),
)
LAYER = optional(Rule(f"a layer of {LAYERS}", lambda v: _is_module(v, LAYERS)))
ARCHITECTURE = {
    "network_class_name": TEXT,
    "arch_kwargs": Rule(
        f"names with values, whose numbers are at most {LARGEST}",
        lambda v: NAMES.holds(v) and not nests_too_deeply(v) and _has_small_numbers(v),
    ),
    "_kw_requires_import": TEXTS,
}
ARCH_KWARGS = {
    "n_stages": Rule(
        f"a whole number from 1 to {STAGES}", lambda v: is_whole(v, 1) and v <= STAGES
    ),
    **dict.fromkeys(
        ("features_per_stage", "kernel_sizes", "strides", "decoder_features"), _per_stage(LARGEST)
    ),
    **dict.fromkeys(
        ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"), _per_stage(BLOCKS)
    ),
    "conv_bias": Rule("true or false", lambda v: isinstance(v, bool)),
    **dict.fromkeys(("norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs"), optional(NAMES)),
}
# What earlier versions of nnU-Net wrote in place of `architecture`.
FORMER = {
    "UNet_class_name": Rule(
        "PlainConvUNet or ResidualEncoderUNet",
        lambda v: v in ("PlainConvUNet", "ResidualEncoderUNet"),
    ),
    **dict.fromkeys(
        ("n_conv_per_stage_encoder", "n_conv_per_stage_decoder"),
        Rule(
            f"a list of whole numbers from 1 to {BLOCKS}, at most {STAGES}",
            lambda v: isinstance(v, list) and _is_within(v, BLOCKS),
        ),
    ),
    **dict.fromkeys(
        (
            *("UNet_base_num_features", "unet_max_num_features"),
            *("conv_kernel_sizes", "pool_op_kernel_sizes"),
        ),
        _per_stage(LARGEST),
    ),
}
# Without these nnU-Net can neither preprocess nor build a network.
NEEDED = ("data_identifier", "patch_size", "batch_size", "spacing", "normalization_schemes")
# What else its preprocessing looks up, in plans and in a configuration.
PREPARING = (
    *("transpose_forward", "transpose_backward", "image_reader_writer"),
    "foreground_intensity_properties_per_channel",
)
PREPARING_EACH = (
    *("preprocessor_name", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg"),
    *("resampling_fn_data_kwargs", "resampling_fn_seg_kwargs"),
)


def read_dataset(file: Path, required: Collection[str] = ("labels",)) -> dict[str, Any]:
    """Read `dataset.json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, or a value breaks its rule.
    """
    content = read_json(file, dict)
    check_dataset(content, str(file), required)
    return content


def check_dataset(content: dict[str, Any], where: str, required: Collection[str] = ()) -> None:
    """Check the content of `dataset.json`; images and masks may lie anywhere, names of cases must be plain.

    Raises:
        ValueError: A key is missing, or a value breaks its rule.
    """
    missing = [name for name in required if name not in content]
    if missing:
        raise ValueError(f"{where}: `{', '.join(missing)}` is missing.")
    check(content, DATASET, where)
    if "labels" in content and 0 not in content["labels"].values():
        raise ValueError(f"{where}: `labels` must have a background, which is 0.")
    for case, entry in content.get("dataset", {}).items():
        place = f"{where}, `dataset`"
        must_be_plain(case, "case", place)
        check({case: entry}, {case: NAMES}, place)
        check(entry, LISTED, f"{place}, {case}", tuple(LISTED))


def read_plans(file: Path, trust: bool = False) -> dict[str, Any]:
    """Read a plans file; see `check_plans`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, or a value breaks its rule.
    """
    plans = read_json(file, dict)
    check_plans(plans, str(file), trust)
    return plans


def names_of_plans(folder: Path) -> list[str]:
    """Return the names of the plans in a dataset's folder of nnUNet_preprocessed."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            content = read_json(file, dict)
        except (ValueError, OSError):
            continue
        if "configurations" in content:
            found.append(file.stem)
    return found


def check_plans(plans: dict[str, Any], where: str, trust: bool = False) -> None:
    """Check plans: names that become paths or are imported, kinds of values, and that none inherits from itself.

    Args:
        plans: Content of a plans file.
        where: The file, for messages.
        trust: Whether it may name any class; nnU-Net imports and calls the named one.

    Raises:
        ValueError: A value breaks its rule.
    """
    check(plans, PLANS, where, ("configurations",))
    for name in plans["configurations"]:
        must_be_plain(name, "configuration", where)
        place = f"{where}, configuration {name}"
        resolved = resolve(plans, name, where)
        check(resolved, CONFIGURATION, place)
        _check_architecture(resolved, place, trust)


def _check_architecture(configuration: dict[str, Any], where: str, trust: bool) -> None:
    if "architecture" not in configuration:
        if "UNet_class_name" in configuration:
            check(configuration, FORMER, where, FORMER)
        return
    architecture, where = configuration["architecture"], f"{where}, `architecture`"
    check(architecture, ARCHITECTURE, where, ARCHITECTURE)
    values, imported = architecture["arch_kwargs"], architecture["_kw_requires_import"]
    inside = f"{where}, `arch_kwargs`"
    check(values, ARCH_KWARGS, inside, imported)
    if trust:
        return
    try:
        check(architecture, {"network_class_name": NETWORK}, where)
        check(values, dict.fromkeys(imported, LAYER), inside)
    except ValueError as error:
        raise ValueError(f"{error} {WAY_OUT}") from None


def configuration_of(
    plans: dict[str, Any], name: str, where: str, needed: Collection[str] = NEEDED
) -> dict[str, Any]:
    """Return one resolved configuration of checked plans.

    Args:
        plans: Content of a plans file.
        name: Of the configuration.
        where: The file.
        needed: Keys that it must have; by default all that nnU-Net needs, those of the plans included.

    Raises:
        ValueError: There is none of that name, or a key is missing in it.
    """
    known = plans["configurations"]
    if name not in known:
        raise ValueError(
            f"`configuration` (={shown(name)}) must be one that {where} has: {', '.join(known)}."
        )
    if needed is NEEDED:
        check(plans, {}, where, ("dataset_name", "plans_name"))
        # nnU-Net makes one folder of both, and of a trainer's name.
        must_be_plain(f"{plans['plans_name']}__{name}", "plans and configuration", where)
    resolved = resolve(plans, name, where)
    check(resolved, {}, f"{where}, configuration {name}", needed)
    if needed is NEEDED and not {"architecture", "UNet_class_name"} & resolved.keys():
        raise ValueError(f"{where}, configuration {name}: `architecture` is missing.")
    return resolved


def require_preparing(plans: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse plans by whose configuration nnU-Net cannot preprocess, because something is missing in them.

    Raises:
        ValueError: Names what is missing.
    """
    check(dict(plans), {}, where, PREPARING)
    check(resolve(plans, name, where), {}, f"{where}, configuration {name}", PREPARING_EACH)


def resolve(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return a configuration with what it inherits from others.

    Args:
        plans: Content of a plans file.
        name: Of the configuration.
        where: The file.

    Raises:
        ValueError: It inherits from itself, or from one that is not there.
    """
    configurations = plans["configurations"]
    chain, resolved = [name], dict(configurations[name])
    while "inherits_from" in resolved:
        parent = resolved.pop("inherits_from")
        if not isinstance(parent, str) or parent not in configurations:
            rule = f"must be one of {', '.join(configurations)}"
            raise ValueError(
                f"{where}, configuration {chain[-1]}: `inherits_from` (={shown(parent)}) {rule}."
            )
        if parent in chain:
            way = " from ".join([*chain, parent])
            raise ValueError(f"{where}: no configuration may inherit from itself, but {way} does.")
        chain.append(parent)
        resolved = {**configurations[parent], **resolved}
    return resolved


def write_descriptions(
    base: str | Path, plans: dict[str, Any], dataset_json: dict[str, Any], prepared: str | Path
) -> None:
    """Write what nnU-Net keeps beside the folds of its results.

    Args:
        base: The trainer's folder in nnUNet_results.
        plans: Content of `plans.json`.
        dataset_json: Content of `dataset.json`.
        prepared: The dataset's folder in nnUNet_preprocessed, which may hold a fingerprint.
    """
    write_json(Path(base, "plans.json"), plans)
    write_json(Path(base, "dataset.json"), dataset_json)
    fingerprint = Path(prepared, "dataset_fingerprint.json")
    if fingerprint.is_file():
        shutil.copyfile(fingerprint, Path(base, fingerprint.name))
