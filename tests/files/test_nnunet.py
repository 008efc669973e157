from __future__ import annotations

import json
from typing import Any

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nnunet import configuration_of, read_dataset, read_plans, resolve

DATASET = {
    "channel_names": {"0": "cineMRI"},
    "labels": {"background": 0, "LV": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


LISTED = {"images": ["imagesUn/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", [1], r"`labels` \(=\[1\]\) must be names with whole numbers"),
        ("labels", {}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": "1"}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": 1.5}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": True}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": []}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": -1}, "`labels` .* must be names with whole numbers"),
        ("channel_names", "MRI", r"`channel_names` \(=MRI\) must be names of at least one channel"),
        ("numTraining", "many", r"`numTraining` \(=many\) must be a whole number"),
        ("file_ending", "/../x", r"`file_ending` \(=/\.\./x\) must be an ending, as \.nii\.gz"),
        ("file_ending", 5, r"`file_ending` \(=5\) must be an ending"),
        ("regions_class_order", "1", r"`regions_class_order` \(=1\) must be a list of whole"),
        ("dataset", [1], r"`dataset` \(=\[1\]\) must be names with values"),
        ("dataset", {"../x": LISTED}, r"`dataset`: `case` \(=\.\./x\) must be one plain name"),
        ("dataset", {"/etc/x": LISTED}, "`case` .* must be one plain name"),
        ("dataset", {"a": "x"}, r"`dataset`: `a` \(=x\) must be names with values"),
        ("dataset", {"a": {}}, "`dataset`, a: `images` is missing"),
        (
            "dataset",
            {"a": {**LISTED, "images": "x"}},
            r"a: `images` \(=x\) must be a list of paths",
        ),
        ("dataset", {"a": {**LISTED, "images": []}}, r"a: `images` .* must be a list of paths"),
        ("dataset", {"a": {**LISTED, "label": None}}, r"a: `label` \(=None\) must be text"),
    ],
)
def test_dataset_json_of_wrong_content_is_refused(tmp_path, key, value, message):
    file = tmp_path / "dataset.json"
    write_json(file, DATASET | {key: value})
    with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
        read_dataset(file)


def test_images_and_masks_may_lie_anywhere(tmp_path):
    """nnU-Net reads them where `dataset` says; only names become paths of written files."""
    listed = {"images": ["/data/x.nii.gz"], "label": "../elsewhere/x.nii.gz"}
    write_json(tmp_path / "dataset.json", DATASET | {"dataset": {"x": listed}})
    assert read_dataset(tmp_path / "dataset.json")["dataset"] == {"x": listed}


CONFIGURATION = {
    "data_identifier": "P_2d",
    "batch_size": 2,
    "patch_size": [32, 32],
    "spacing": [1.5, 1],
    "normalization_schemes": ["ZScoreNormalization"],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    },
}


PLANS = {"dataset_name": "Dataset001_A", "plans_name": "P", "configurations": {"2d": CONFIGURATION}}


def set_in_plans(place: tuple[str, ...], value: object) -> dict[str, Any]:
    plans: dict[str, Any] = json.loads(json.dumps(PLANS))
    part = plans
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return plans


HERE = ("configurations", "2d")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("dataset_name",), "../x", r"`dataset_name` \(=\.\./x\) must be one plain name"),
        (("plans_name",), "a/b", r"`plans_name` \(=a/b\) must be one plain name"),
        ((*HERE, "data_identifier"), "../../x", r"`data_identifier` .* must be one plain name"),
        ((*HERE, "data_identifier"), 3, r"`data_identifier` \(=3\) must be one plain name"),
        ((*HERE, "previous_stage"), "../x", r"`previous_stage` .* must be one plain name"),
        (("configurations", "a/b"), CONFIGURATION, r"`configuration` \(=a/b\) must be one plain"),
        (("configurations",), {}, "`configurations` .* must be names with configurations"),
        (("configurations",), [1], "`configurations` .* must be names with configurations"),
        (HERE, "x", "`configurations` .* must be names with configurations"),
        ((*HERE, "patch_size"), "32", r"2d: `patch_size` \(=32\) must be a list of whole numbers"),
        ((*HERE, "patch_size"), [0, 32], "`patch_size` .* must be a list of whole numbers"),
        ((*HERE, "batch_size"), 2.5, r"`batch_size` \(=2\.5\) must be a whole number from 1"),
        ((*HERE, "spacing"), [1, 0], r"`spacing` \(=\[1, 0\]\) must be a list of lengths"),
        ((*HERE, "spacing"), [float("nan"), 1], "`spacing` .* must be a list of lengths"),
        ((*HERE, "spacing"), [1e999, 1], "`spacing` .* must be a list of lengths"),
        ((*HERE, "architecture"), [], r"`architecture` \(=\[\]\) must be names"),
        ((*HERE, "architecture", "arch_kwargs"), 1, r"`architecture`: `arch_kwargs` \(=1\) must"),
        (
            (*HERE, "inherits_from"),
            "2d",
            "no configuration may inherit from itself, but 2d from 2d",
        ),
        ((*HERE, "inherits_from"), "x", r"`inherits_from` \(=x\) must be one of 2d"),
        ((*HERE, "inherits_from"), [1], r"`inherits_from` \(=\[1\]\) must be one of 2d"),
        (("transpose_forward",), "x", r"`transpose_forward` \(=x\) must be each axis once"),
    ],
)
def test_plans_of_wrong_content_are_refused(tmp_path, place, value, message):
    file = tmp_path / "P.json"
    write_json(file, set_in_plans(place, value))
    with pytest.raises(ValueError, match=rf"P\.json.*{message}"):
        read_plans(file)


def test_a_ring_of_configurations_is_refused_and_a_chain_is_followed():
    a, b, c = ({"inherits_from": name} for name in ("b", "c", "a"))
    with pytest.raises(ValueError, match="no configuration may inherit from itself, but a from b"):
        resolve({"configurations": {"a": a, "b": b, "c": c}}, "a", "plans")
    chain = {"a": {**a, "x": 1}, "b": {**b, "x": 2, "y": 2}, "c": {"x": 3, "y": 3, "z": 3}}
    assert resolve({"configurations": chain}, "a", "plans") == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize("name", ["dataset_name", "plans_name", "data_identifier", "patch_size"])
def test_what_nnunet_needs_of_plans_is_asked_for(name):
    plans: dict[str, Any] = json.loads(json.dumps(PLANS))
    assert configuration_of(plans, "2d", "P.json")["batch_size"] == 2
    (plans if name in plans else plans["configurations"]["2d"]).pop(name)
    with pytest.raises(ValueError, match=rf"P\.json.*: `{name}` is missing"):
        configuration_of(plans, "2d", "P.json")
