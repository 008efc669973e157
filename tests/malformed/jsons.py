"""JSON files: `dataset.json`, plans, `convert.json`, `index.json` of the slice store, `splits_final.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.malformed import datasets, images
from tests.malformed.checkpoints import trainer
from tests.malformed.entry import Damage, Entry, replaced
from tests.malformed.images import PREPARED
from tests.malformed.tables import EVALUATE, FOLDS, PREPARE, STUDY

Change = Callable[[Any], Any]

# Files that are not JSON, or not an object.
NOT_JSON: dict[str, tuple[Damage, str]] = {
    "empty": (replaced(b""), "JSON|empty"),
    "half": (
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) and None,
        "JSON",
    ),
    "not UTF-8": (replaced(b'{"a": "\xff\xfe\x81"}'), "JSON|UTF-8|encoding"),
    "a web page": (replaced(b"<!DOCTYPE html><html></html>"), "JSON"),
    "100,000 brackets": (replaced(b"[" * 100_000), "JSON|nested|deep"),
    "a number": (replaced(b"17"), "object|must|JSON"),
    "null": (replaced(b"null"), "object|must|JSON"),
    "a text": (replaced(b'"text"'), "object|must|JSON"),
    "a list": (replaced(b"[1, 2]"), "object|must|JSON|fold"),
}


def changed(change: Change) -> Damage:
    """Another content; `change` edits it in place, or returns what replaces it."""

    def damage(file: Path) -> None:
        content = json.loads(file.read_text())
        new = change(content)
        file.write_text(json.dumps(content if new is None else new))

    return damage


def put(*path: Any) -> Damage:
    """The last of the arguments at the place that the others name."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return changed(change)


def without(*path: str) -> Damage:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return changed(change)


def spoilt(
    name: str, spoil: Damage, *command: str, also_raw: bool = True
) -> Callable[[Path], list[str]]:
    """Both copies of one of the dataset's files."""

    def make(root: Path) -> list[str]:
        predictions = datasets.predictions(root)
        datasets.prepared(root)
        for place in ("raw", "preprocessed") if also_raw else ("preprocessed",):
            if (file := root / place / datasets.NAME / name).is_file():
                spoil(file)
        return [word.replace("PREDICTIONS", str(predictions)) for word in command]

    return make


OF_DATASET_JSON: dict[str, tuple[Damage, str]] = {
    "no labels": (without("labels"), "labels"),
    "labels in a list": (put("labels", ["background", "LV"]), "labels"),
    "labels in words": (put("labels", {"background": 0, "LV": "one"}), "labels"),
    "a negative label": (put("labels", {"background": 0, "LV": -1}), "labels"),
    "a label of 0.5": (put("labels", {"background": 0, "LV": 0.5}), "labels"),
    "labels of lists of lists": (put("labels", {"background": 0, "LV": [[1]]}), "labels"),
    "an ending in numbers": (put("file_ending", 7), "file_ending"),
    "an ending that is a path": (put("file_ending", "/../../x.nii.gz"), "file_ending"),
    "no ending": (put("file_ending", ""), "file_ending"),
}
OF_PREPARE: dict[str, tuple[Damage, str]] = {
    "no channel names": (without("channel_names"), "channel_names"),
    "channel names in a text": (put("channel_names", "cine"), "channel_names"),
    "no channel": (put("channel_names", {}), "channel_names"),
    "cases in a number": (put("dataset", 3), "dataset"),
    "cases without images": (put("dataset", {"A_frame00": {"label": "x"}}), "dataset|A_frame00"),
    "a case with a path": (
        put(
            "dataset",
            {
                "../../escaped": {
                    "images": ["imagesTr/A_frame00_0000.nii.gz"],
                    "label": "labelsTr/A_frame00.nii.gz",
                }
            },
        ),
        "escaped.*(plain|path|letters|name)",
    ),
    "labels without background": (put("labels", {"LVBP": 1, "LVM": 2, "RV": 3}), "background"),
    "labels with a gap": (put("labels", {"background": 0, "LVBP": 1, "RV": 7}), "labels|value"),
}

CONFIGURATION = ("configurations", "2d")
OF_PLANS: dict[str, tuple[Damage, str]] = {
    "no configurations": (without("configurations"), "configurations"),
    "configurations in a list": (put("configurations", []), "configurations"),
    "a configuration of null": (put(*CONFIGURATION, None), "2d|configurations"),
    "no 2d": (put("configurations", {"3d_fullres": {}}), "has: 3d_fullres"),
    "a data identifier that is a path": (
        put(*CONFIGURATION, "data_identifier", "../../escaped"),
        "data_identifier",
    ),
    "an absolute data identifier": (
        put(*CONFIGURATION, "data_identifier", "/tmp/escaped"),
        "data_identifier",
    ),
    "a data identifier of dots": (put(*CONFIGURATION, "data_identifier", ".."), "data_identifier"),
    "a data identifier of a number": (put(*CONFIGURATION, "data_identifier", 5), "data_identifier"),
    "a patch in words": (put(*CONFIGURATION, "patch_size", "large"), "patch_size"),
    "a patch of no size": (put(*CONFIGURATION, "patch_size", [0, 32]), "patch_size"),
    "a spacing of 0": (put(*CONFIGURATION, "spacing", [0.0, 1.5]), "spacing"),
    "a negative spacing": (put(*CONFIGURATION, "spacing", [-1.5, 1.5]), "spacing"),
    "a spacing of NaN": (put(*CONFIGURATION, "spacing", [float("nan"), 1.5]), "spacing"),
    "a spacing of a thousandth": (
        put(*CONFIGURATION, "spacing", [1.5e-4, 1.5e-4]),
        "spacing|1,?000|unit|pixels",
    ),
    "inheriting from itself": (put(*CONFIGURATION, {"inherits_from": "2d"}), "inherit"),
    "inheriting in a circle": (
        put("configurations", {"2d": {"inherits_from": "b"}, "b": {"inherits_from": "2d"}}),
        "inherit",
    ),
    "inheriting from nothing": (put(*CONFIGURATION, {"inherits_from": "none"}), "inherit|none"),
    "a preprocessor that there is not": (
        put(*CONFIGURATION, "preprocessor_name", "Nobody"),
        "preprocessor|Nobody",
    ),
    "a preprocessor that is a function": (
        put(*CONFIGURATION, "preprocessor_name", "load_json"),
        "preprocessor_name.*load_json.*class of nnU-Net",
    ),
    "a normalisation that there is not": (
        put(*CONFIGURATION, "normalization_schemes", ["Nobody"]),
        "normali|Nobody",
    ),
    "a reader that there is not": (
        put("image_reader_writer", "Nobody"),
        "image_reader_writer|Nobody|reader",
    ),
    "axes that are none": (put("transpose_forward", [0, 0, 7]), "transpose_forward"),
    "plans called with a path": (put("plans_name", "../../escaped"), "plans_name"),
    "no architecture": (without(*CONFIGURATION, "architecture"), "architecture"),
}
ARCHITECTURE = (*CONFIGURATION, "architecture")
ARGUMENTS = (*ARCHITECTURE, "arch_kwargs")
HUB = {"repo_or_dir": "HUB", "model": "f", "source": "local"}


def from_the_hub(file: Path) -> None:
    """Plans whose network is a function of a folder that is run to load it."""
    hub = file.parents[2] / "hub"
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text("open('escaped', 'w')\ndef f(**_): pass\n")
    put(*ARGUMENTS, {**HUB, "repo_or_dir": str(hub)})(file)
    put(*ARCHITECTURE, "_kw_requires_import", [])(file)
    put(*ARCHITECTURE, "network_class_name", "torch.hub.load")(file)


OF_ARCHITECTURES: dict[str, tuple[Damage, str]] = {
    "a network from the hub": (from_the_hub, r"network_class_name.*torch\.hub\.load.*trust"),
    "a layer that is none": (put(*ARGUMENTS, "nonlin", "os.getcwd"), "nonlin.*layer.*trust"),
    "a norm of NaN": (put(*ARGUMENTS, "norm_op", float("nan")), "norm_op.*layer"),
    "kernels of null": (put(*ARGUMENTS, "kernel_sizes", None), "kernel_sizes.*whole number"),
    "convolutions in words": (put(*ARGUMENTS, "n_conv_per_stage", "x"), "n_conv_per_stage"),
    "a million convolutions": (
        put(*ARGUMENTS, "n_conv_per_stage", [10**6, 1, 1]),
        "n_conv_per_stage|4096",
    ),
    "a million stages": (put(*ARGUMENTS, "n_stages", 10**6), "n_stages|4096"),
    "a network without a name": (
        without(*ARCHITECTURE, "network_class_name"),
        "network_class_name.*missing",
    ),
}
# What fits its rule, and still makes no network.
OF_NETWORKS: dict[str, tuple[Damage, str]] = {
    "fewer convolutions than stages": (
        put(*ARGUMENTS, "n_conv_per_stage", [1]),
        "cannot build a network",
    ),
    "an argument that there is not": (put(*ARGUMENTS, "depth", 3), "cannot build a network.*depth"),
    "a convolution by name": (
        put(*ARCHITECTURE, "_kw_requires_import", ["norm_op"]),
        "cannot build a network",
    ),
}


def of_training(spoil: Damage) -> Callable[[Path], Callable[[], object]]:
    """Do what `nnUNetv2_train` does with plans."""

    def make(root: Path) -> Callable[[], object]:
        spoil(datasets.prepared(root) / "nnUNetPlans.json")
        return lambda: trainer("nnUNetTrainerMIMPretrain", continue_training=False).initialize()

    return make


def of_inspect_plans(spoil: Damage) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        torch.save(datasets.checkpoint(), root / "good.pth")
        spoil(datasets.prepared(root) / "nnUNetPlans.json")
        return ["inspect", str(root / "good.pth"), "-d", datasets.NUMBER]

    return make


OF_SPLITS: dict[str, tuple[Damage, str]] = {
    "folds in an object": (replaced(b'{"0": {"train": [], "val": []}}'), "list"),
    "a fold in a list": (replaced(b'[["a"], ["b"]]'), "fold 0"),
    "a fold without val": (changed(lambda c: c[1].pop("val") and None), "fold 1.*val"),
    "numbers for names": (put(0, "train", [1, 2]), "fold 0.*train"),
    "names that are no cases in val": (put(0, "val", ["Z_frame00"]), "fold 0.*Z_frame00"),
    "names that are no cases in train": (put(0, "train", ["Z_frame00"]), "fold 0.*Z_frame00"),
    "names that are paths": (put(0, "val", ["../../escaped"]), "fold 0.*escaped"),
}


# Folds that `folds` lists with a warning; whoever trains or prepares is refused.
LISTED = ("names that are no cases in val", "names that are no cases in train")


def of_convert_json(spoil: Damage) -> Callable[[Path], list[str]]:
    """An unfinished conversion, to be continued."""

    def make(root: Path) -> list[str]:
        words = images.of_mnms(lambda file: None, "image")(root)
        target = root / "raw" / "Dataset007_MNMs"
        target.mkdir(parents=True)
        settings = {
            "converter": "mnms",
            "input": str((root / "source").resolve()),
            "options": {"test": None},
        }
        (target / "convert.json").write_text(json.dumps(settings))
        spoil(target / "convert.json")
        return words

    return make


def entries() -> Iterator[Entry]:
    for name, (spoil, rule) in NOT_JSON.items():
        for what, command, writes in (
            ("prepare", PREPARE, None),
            ("evaluate", EVALUATE, None),
        ):
            make = spoilt("dataset.json", spoil, *command)
            says = rf"error:.*dataset\.json.*({rule})"
            yield Entry(f"dataset.json in {what}: {name}", make, says, writes=writes)
        make = spoilt("nnUNetPlans.json", spoil, *PREPARE)
        says = rf"error:.*nnUNetPlans\.json.*({rule})"
        yield Entry(f"plans: {name}", make, says, writes=PREPARED)
        make = spoilt("splits_final.json", spoil, *FOLDS)
        yield Entry(f"splits_final.json: {name}", make, rf"error:.*splits_final\.json.*({rule})")
        make = of_convert_json(spoil)
        yield Entry(f"convert.json: {name}", make, rf"error:.*convert\.json.*({rule})")
    for name, (spoil, rule) in OF_DATASET_JSON.items():
        for what, command in (("prepare", PREPARE), ("evaluate", EVALUATE)):
            make = spoilt("dataset.json", spoil, *command)
            says = rf"error:.*dataset\.json.*({rule})"
            yield Entry(f"dataset.json in {what}: {name}", make, says)
    for name, (spoil, rule) in OF_PREPARE.items():
        make = spoilt("dataset.json", spoil, *PREPARE)
        yield Entry(f"dataset.json in prepare: {name}", make, rf"error:.*({rule})", writes=PREPARED)
    for name, (spoil, rule) in OF_PLANS.items():
        make = spoilt("nnUNetPlans.json", spoil, *PREPARE)
        says = rf"error:.*nnUNetPlans\.json.*({rule})"
        yield Entry(f"plans: {name}", make, says, writes=PREPARED)
    for name, (spoil, rule) in {**OF_ARCHITECTURES, **OF_NETWORKS}.items():
        says = rf"error:.*nnUNetPlans\.json.*({rule})"
        yield Entry(f"plans in inspect: {name}", of_inspect_plans(spoil), says)
        if name in OF_ARCHITECTURES:
            says_there = rf"error:.*plans nnUNetPlans.*({rule})"
            yield Entry(f"plans in a training: {name}", of_training(spoil), says_there)
        if name in OF_ARCHITECTURES:
            make = spoilt("nnUNetPlans.json", spoil, *PREPARE)
            yield Entry(f"plans: {name}", make, says, writes=PREPARED)
    for name in ("inheriting from itself", "inheriting in a circle", "no configurations"):
        spoil, rule = OF_PLANS[name]
        make = spoilt("nnUNetPlans.json", spoil, *STUDY)
        yield Entry(f"plans in study: {name}", make, rf"error:.*nnUNetPlans\.json.*({rule}|2d)")
    for name, (spoil, rule) in OF_SPLITS.items():
        make = spoilt("splits_final.json", spoil, *FOLDS)
        says, exits = rf"error:.*splits_final\.json.*({rule})", 1
        if name in LISTED:
            says, exits = rf"WARNING: {rule}", 0
        yield Entry(f"splits_final.json: {name}", make, says, exits)
    both = changed(lambda c: c[0]["train"].append(c[0]["val"][0]))
    make = spoilt("splits_final.json", both, *FOLDS, "--check")
    yield Entry(
        "splits_final.json: a case on both sides",
        make,
        "LEAK    fold 0: A is in both train and val",
    )
    for name in ("names that are no cases in val", "names that are paths"):
        spoil, rule = OF_SPLITS[name]
        make = spoilt("splits_final.json", spoil, *PREPARE)
        says = rf"error:.*splits_final\.json.*({rule})"
        yield Entry(f"splits_final.json in prepare: {name}", make, says)


ENTRIES = tuple(entries())
