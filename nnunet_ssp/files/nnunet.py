"""nnU-Net's own files, plans and `dataset.json`, checked before anything uses their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_ssp.files.contents import (
    COUNT,
    NAMES,
    TEXT,
    TEXTS,
    Rule,
    check,
    is_whole,
    optional,
    read_json,
    shown,
)
from nnunet_ssp.files.names import PLAIN, must_be_plain


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
ARCHITECTURE = {"network_class_name": TEXT, "arch_kwargs": NAMES, "_kw_requires_import": TEXTS}
# Without these nnU-Net can neither preprocess nor build a network.
NEEDED = ("data_identifier", "patch_size", "batch_size", "spacing", "normalization_schemes")


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


def read_plans(file: Path) -> dict[str, Any]:
    """Read a plans file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, or a value breaks its rule.
    """
    plans = read_json(file, dict)
    check_plans(plans, str(file))
    return plans


def check_plans(plans: dict[str, Any], where: str) -> None:
    """Check plans: names that become paths, kinds of values, and that no configuration inherits from itself.

    Raises:
        ValueError: A value breaks its rule.
    """
    check(plans, PLANS, where, ("configurations",))
    for name in plans["configurations"]:
        must_be_plain(name, "configuration", where)
        place = f"{where}, configuration {name}"
        resolved = resolve(plans, name, where)
        check(resolved, CONFIGURATION, place)
        check(resolved.get("architecture", {}), ARCHITECTURE, f"{place}, `architecture`")


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
