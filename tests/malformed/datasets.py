"""Small valid inputs to be spoilt: a dataset, raw and prepared with narrow plans, predictions, a pretrained file."""

from __future__ import annotations

import json
import pickle
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.cohort.splits import write_splits
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.slices import store as slices
from nnunet_ssp.training import transfer
from tests.cine_trees import AFFINE, save

NUMBER, NAME = "907", "Dataset907_Small"
SHAPE = (24, 20, 3)  # columns, rows, slices
LABELS = {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}
SPACING = [6.93, 1.22, 1.41]  # mm, as in AFFINE: slices, rows, columns

_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
PLANS: dict[str, Any] = {
    "dataset_name": NAME,
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": SPACING,
    "original_median_shape_after_transp": [3, 20, 24],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        "0": {
            **{"max": 900.0, "mean": 450.0, "median": 450.0, "min": 0.0},
            **{"percentile_00_5": 5.0, "percentile_99_5": 895.0, "std": 260.0},
        }
    },
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [32, 32],
            "median_image_size_in_voxels": [20.0, 24.0],
            "spacing": [1.5, 1.5],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": _RESAMPLING,
            "resampling_fn_seg_kwargs": {**_RESAMPLING, "is_seg": True, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {**_RESAMPLING, "order": 1},
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": [4, 8, 8],
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3]] * 3,
                    "strides": [[1, 1], [2, 2], [2, 2]],
                    "n_conv_per_stage": [1, 1, 1],
                    "n_conv_per_stage_decoder": [1, 1],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": True,
        }
    },
}


def plans() -> dict[str, Any]:
    """A copy of the plans, to be spoilt."""
    return dict(json.loads(json.dumps(PLANS)))


def case(subject: str, frame: int, phase: str = "", split: str = "train") -> Case:
    about = {"source": "mm1", "source_frame": frame, "n_frames": 4, "base": "first", "vendor": "GE"}
    rest = dict.fromkeys(("centre", "scanner", "field", "pathology"), "")
    name = f"{subject}_frame{frame:02d}"
    return Case(case=name, subject=subject, split=split, frame=frame, phase=phase, **about, **rest)  # type: ignore[arg-type]


TRAINING = [case(s, f, p) for s in ("A", "B", "C") for f, p in ((0, "ED"), (2, "ES"), (1, ""))]
TEST = [case("T", 0, "ED", "test"), case("T", 2, "ES", "test")]
CASES = {case.case: case for case in [*TRAINING, *TEST]}


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


def mask(seed: int) -> np.ndarray:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[5:11, 5 + seed % 3 : 11] = 2
    drawn[6:10, 6:10] = 1
    drawn[12:16, 5:11] = 3
    return drawn


def folds() -> list[dict[str, list[str]]]:
    labelled = [c for c in TRAINING if c.labelled]
    return [
        {
            "train": sorted(c.case for c in labelled if c.subject != held),
            "val": sorted(c.case for c in labelled if c.subject == held),
        }
        for held in "ABC"
    ]


def dataset_json() -> dict[str, Any]:
    return {
        "channel_names": {"0": "cineMRI"},
        "labels": dict(LABELS),
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }


def write_tables(home: Path) -> None:
    write_cases(home / "cases.csv", CASES.values())
    write_splits(home, folds(), CASES, ["3-fold-0", "3-fold-1", "3-fold-2"], "by hand")
    write_json(home / "dataset.json", dataset_json())


def raw(root: Path) -> Path:
    """The raw dataset: three subjects with two labelled frames and one without, one test subject."""
    home = root / "raw" / NAME
    for number, about in enumerate(CASES.values()):
        part = {"train": "Tr", "test": "Ts"}[about.split] if about.labelled else "Un"
        save(image(number), home / f"images{part}" / f"{about.case}_0000.nii.gz", AFFINE)
        if about.labelled:
            save(mask(number), home / f"labels{part}" / f"{about.case}.nii.gz", AFFINE)
    write_tables(home)
    return home


def write_preprocessed(folder: Path) -> None:
    """nnU-Net's own files of the labelled training cases."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for about in TRAINING:
        if about.labelled:
            data = rng.normal(size=(1, 3, 20, 24)).astype(np.float32)
            seg = (data > 1).astype(np.int16)
            for array, ending in ((data, ""), (seg, "_seg")):
                file = folder / f"{about.case}{ending}.b2nd"
                blosc2.asarray(array, urlpath=str(file), mode="w")
            properties = {
                "bbox_used_for_cropping": [[0, 3], [0, 20], [0, 24]],
                "shape_before_cropping": (3, 20, 24),
                "class_locations": {value: np.argwhere(seg == value) for value in (1, 2, 3)},
            }
            (folder / f"{about.case}.pkl").write_bytes(pickle.dumps(properties))


def prepared(root: Path) -> Path:
    """The prepared dataset as trainers open it: plans, tables, nnU-Net's files and the slice store."""
    home = root / "preprocessed" / NAME
    home.mkdir(parents=True)
    write_tables(home)
    write_json(home / "nnUNetPlans.json", PLANS)
    write_preprocessed(home / "nnUNetPlans_2d")
    store = slices.store_folder(home, "nnUNetPlans_2d")
    rng = np.random.default_rng(0)
    entries = {}
    for about in TRAINING:
        data = rng.normal(size=(1, 3, 20, 24)).astype(np.float32)
        source = ((f"{about.case}_0000.nii.gz", 1, 1),)
        shape = slices.write_case(store, about.case, data)
        entries[about.case] = slices.StoredCase(shape, 0, 3, source)
    configuration = PLANS["configurations"]["2d"]
    slices.write_index(store, slices.preprocessing_of(PLANS, configuration), entries)
    temporary = home / ".ssp-tmp"
    if temporary.is_dir():
        temporary.rmdir()
    return home


def store(home: Path) -> Path:
    return slices.store_folder(home, "nnUNetPlans_2d")


def predictions(root: Path) -> Path:
    """The raw dataset's test cases as a model predicted them."""
    home = raw(root)
    folder = root / "predictions"
    for number, about in enumerate(CASES.values()):
        if about.split == "test":
            save(mask(number + 1), folder / f"{about.case}.nii.gz", AFFINE)
    assert (home / "labelsTs").is_dir()
    return folder


@lru_cache
def _network_state() -> bytes:
    torch.manual_seed(0)
    architecture = PLANS["configurations"]["2d"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(LABELS),
        deep_supervision=True,
    )
    stream = BytesIO()
    torch.save(transfer.pretrained_weights(network, "encoder+decoder", len(LABELS)), stream)
    return stream.getvalue()


def checkpoint() -> dict[str, Any]:
    """The content of a pretrained file that fits the prepared dataset."""
    return {
        "network_weights": torch.load(BytesIO(_network_state()), weights_only=True),
        "init_args": {"plans": plans(), "configuration": "2d", "fold": 0},
        "current_epoch": 1,
        "ssp": {
            "trainer": "nnUNetTrainerMIMPretrain",
            "method": "MIM",
            "transfers": "encoder+decoder",
            "settings": {"num_epochs": 1, "mask_ratio": 0.6},
            "weights_from": "scratch",
            "versions": {"nnunet_ssp": "0.1", "torch": "2.9"},
            "subjects": ["mm1-A"],
            "counts": {"subjects": 1, "frames": 3, "slices": 9},
            "papers": ["Somebody et al., A paper, 2024."],
        },
    }
