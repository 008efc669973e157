"""The labels are nnU-Net's own, voxel for voxel, and the doubt is what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.phantom import PhantomSubject
from nnunet_ssp.predict.model import check_model
from nnunet_ssp.predict.network import Segmenter

REGIONS = {"background": 0, "heart": [1, 2], "LV": 1}

pytestmark = pytest.mark.usefixtures("one_thread")


def stock(model: Path, subject: PhantomSubject, folder: Path, folds: tuple, mirror: bool):
    """The labels (X, Y, Z, T) that nnU-Net's command makes of frames as `convert` writes them."""
    folder.mkdir()
    for t in range(subject.image.shape[3]):
        write_nifti(folder / f"frame{t}_0000.nii.gz", subject.image[..., t], subject.affine)
    with quiet():
        predictor = nnUNetPredictor(
            use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(model), folds)
        (folder / "out").mkdir()
        predictor.predict_from_files_sequential(str(folder), str(folder / "out"))
    files = sorted((folder / "out").glob("*.nii.gz"))
    return np.stack([np.asarray(nibabel.load(file).dataobj) for file in files], axis=-1)


def whole(network: Segmenter, voxels: np.ndarray, affine: np.ndarray) -> tuple:
    """The labels (X, Y, Z, T) of all frames, and their doubts."""
    labels, doubts = zip(*network.segment(voxels, affine), strict=True)
    return np.stack(labels, axis=-1), list(doubts)


@pytest.mark.parametrize(
    ("folds", "mirror", "options"),
    [
        ((0,), True, {}),
        ((0, 1), True, {}),
        ((0,), False, {}),
        ((0,), True, {"labels": REGIONS, "regions_class_order": [2, 1]}),
    ],
)
def test_labels_equal_those_of_nnunet(
    make_model: Callable[..., Path],
    subject: PhantomSubject,
    tmp_path: Path,
    folds: tuple[int, ...],
    mirror: bool,
    options: dict,
) -> None:
    folder = make_model(tmp_path / "model", folds=folds, **options)
    network = Segmenter(check_model(folder), "cpu", mirror, tmp_path)
    labels, doubts = whole(network, subject.image, subject.affine)
    expected = stock(folder, subject, tmp_path / "frames", folds, mirror)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 1
    assert len(doubts) == subject.image.shape[3]
    if len(folds) > 1 or mirror:
        assert all(0 < doubt <= 100 for doubt in doubts)
    else:
        assert all(map(math.isnan, doubts))


@pytest.mark.slow
def test_labels_equal_those_of_the_command(
    make_model: Callable[..., Path],
    subject: PhantomSubject,
    tmp_path: Path,
    command: Callable[..., str],
) -> None:
    folder, images = make_model(tmp_path / "model", folds=(0, 1)), tmp_path / "images"
    images.mkdir()
    for t in range(2):
        write_nifti(images / f"frame{t}_0000.nii.gz", subject.image[..., t], subject.affine)
    words = ["-i", images, "-o", tmp_path / "out", "-m", folder, "-f", 0, 1, "-device", "cpu"]
    command("nnUNetv2_predict_from_modelfolder", *words, "-npp", 1, "-nps", 1)
    network = Segmenter(check_model(folder), "cpu", True, tmp_path)
    labels, _ = whole(network, subject.image[..., :2], subject.affine)
    for t in range(2):
        file = nibabel.load(tmp_path / "out" / f"frame{t}.nii.gz")
        np.testing.assert_array_equal(labels[..., t], np.asarray(file.dataobj))


def test_a_frame_does_not_depend_on_those_before(
    make_model: Callable[..., Path], subject: PhantomSubject, tmp_path: Path
) -> None:
    network = Segmenter(check_model(make_model(tmp_path / "model")), "cpu", True, tmp_path)
    labels, doubts = whole(network, subject.image, subject.affine)
    last, doubt = whole(network, subject.image[..., [2]], subject.affine)
    np.testing.assert_array_equal(last[..., 0], labels[..., 2])
    assert doubt == doubts[2:]
    assert network.passes == 4
    network.predictor.use_mirroring = False
    assert network.passes == 1


def test_equal_folds_do_not_disagree(
    make_model: Callable[..., Path], subject: PhantomSubject, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", folds=(0, 1))
    weights = (folder / "fold_0" / "checkpoint_final.pth").read_bytes()
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(weights)
    network = Segmenter(check_model(folder), "cpu", False, tmp_path)
    _, doubts = whole(network, subject.image[..., :1], subject.affine)
    assert doubts == [0.0]


def test_a_reader_that_turns_images_is_refused(
    make_model: Callable[..., Path], subject: PhantomSubject, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    plans = folder / "plans.json"
    plans.write_text(plans.read_text().replace('"SimpleITKIO"', '"SimpleITKIOWithReorient"'))
    network = Segmenter(check_model(folder), "cpu", False, tmp_path)
    with pytest.raises(RuntimeError, match=r"`image_reader_writer` \(=SimpleITKIOWithReorient\)"):
        network.segment(subject.image, subject.affine)


def test_weights_that_do_not_fit_are_refused_in_words(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", checkpoint={"network_weights": {"a": torch.ones(1)}})
    with pytest.raises(RuntimeError, match="nnU-Net cannot build the network of these plans"):
        Segmenter(check_model(folder), "cpu", True, tmp_path)
    folder = make_model(tmp_path / "other", checkpoint={"trainer_name": "nnUNetTrainerNobodyHas"})
    with pytest.raises(RuntimeError, match="nnU-Net cannot build"):
        Segmenter(check_model(folder), "cpu", True, tmp_path)
    assert not list(tmp_path.glob(".ssp-tmp*"))
