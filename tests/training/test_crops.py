"""Crops about the labelled structures, as de Mooij et al. place them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ssp.methods.mim import MIM, MIMSettings
from nnunet_ssp.methods.parts.views import draw_centres
from nnunet_ssp.training.crops import circle_centre, label_use, mask_centres

MIM_TRAINER = "nnUNetTrainerMIMPretrain"
PRETRAIN = "num_epochs=1 iterations_per_epoch=1 batch_size=4"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def radius(points: np.ndarray[Any, Any], centre: tuple[float, float]) -> float:
    return float(np.linalg.norm(points - centre, axis=1).max())


@pytest.mark.parametrize("seed", range(5))
def test_no_circle_around_the_points_is_smaller(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(40, 2)) * [3, 1]
    centre = circle_centre(points)
    best = radius(points, centre)
    for _ in range(2000):  # the radius is a convex function of the centre: no neighbour is better
        other = centre + rng.normal(size=2) * rng.choice([1e-4, 1e-2, 1])
        assert radius(points, other) >= best - 1e-9


def test_circles_of_few_points():
    assert circle_centre(np.array([[2.0, 3.0]])) == (2.0, 3.0)
    assert circle_centre(np.array([[0.0, 0], [0, 4], [0, 1]])) == pytest.approx((0, 2))
    assert circle_centre(np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])) == pytest.approx((1, 1))


def test_given_centres_leave_the_other_draws_as_they_are():
    sizes = np.array([[50, 60]] * 3)
    known = np.array([[3.0, 4.0], [np.nan, np.nan], [7.0, 8.0]])
    free = draw_centres(np.random.default_rng(0), sizes, (32, 32))
    found = draw_centres(np.random.default_rng(0), sizes, (32, 32), known)
    assert found[[0, 2]].tolist() == [[3, 4], [7, 8]]
    assert np.array_equal(found[1], free[1])


def test_a_method_s_views_lie_about_the_given_centres(make_network):
    method = MIM(make_network(), MIMSettings(batch_size=2), (32, 32), 1)
    sizes = np.array([[60, 60]] * 2)
    free = method.draw(np.random.default_rng(0), sizes)["views"]
    method.centres = np.array([[10.0, 20.0], [np.nan, np.nan]])
    views = method.draw(np.random.default_rng(0), sizes)["views"]
    # Everything else is drawn as before: the matrix moves with the centre, 40 px of 256 at most scaled by 1.4.
    assert np.array_equal(views.matrix[..., :2], free.matrix[..., :2])
    assert np.array_equal(views.matrix[1], free.matrix[1])
    offset = views.matrix[0, :, 2].numpy() - [10, 20]
    assert np.abs(offset).max() <= 32 * 40 / 256 * 1.4 * 2**0.5 + 1e-4
    assert views.noise_seed.tolist() == free.noise_seed.tolist()


def test_centres_are_those_of_the_masks(preprocessed):
    folder = preprocessed / "nnUNetPlans_2d"
    folder = folder if folder.is_dir() else preprocessed / "tiny_2d"
    names = sorted({f.name.split(".")[0] for f in folder.glob("*.b2nd") if "_seg" not in f.name})
    subject = names[0].rpartition("_frame")[0]
    own = [name for name in names if name.startswith(subject)]
    assert len(own) == 2  # end-diastole and end-systole
    found = mask_centres(folder, dict.fromkeys(own, "one") | {"unlabelled": "two"})
    assert found.keys() == {"one"}
    dataset = infer_dataset_class(str(folder))(str(folder), own)
    points = []
    for name in own:
        seen = (np.asarray(dataset.load_case(name)[1][:])[0] > 0).any(0)
        points.append((np.argwhere(seen) + 0.5) / np.array(seen.shape))
    every = np.concatenate(points)
    (low, high) = every.min(0), every.max(0)
    centre = np.array(found["one"])
    assert ((low < centre) & (centre < high)).all()
    assert radius(every, found["one"]) <= radius(every, tuple((low + high) / 2)) + 1e-9


def test_a_pretraining_with_crops_about_masks(runs, log):
    trainer = runs.run(MIM_TRAINER, f"{PRETRAIN} crops=mask")
    said = log(trainer)
    assert "Labels say where crops lie (crops=mask)" in said
    assert "No label is used" not in said
    # One of the four labelled subjects is validated on, the two others have no masks.
    assert said.count("WARNING: crops=mask reads the labels of 3 of 5 subjects in training") == 2
    batches = trainer.batches
    known = ~np.isnan(batches.centres).any(1)
    assert 0 < known.sum() < len(known)
    assert (batches.centres[known] > 0).all() and (batches.centres[known] < 1).all()
    number = int(np.flatnonzero(known[batches.store.case_of])[0])
    centre = batches._centres(batches.store, np.array([number]))[0]
    share = batches.centres[batches.store.case_of[number]]
    assert centre == pytest.approx(share * batches.store.sizes[number] - 0.5)
    # Validation masks are not read.
    assert batches._centres(batches._shown, np.array([0])) is None


def test_crops_without_masks_are_refused(runs, own_copy, monkeypatch):
    monkeypatch.setattr("nnunet_ssp.training.crops.mask_centres", lambda *_: {})
    with pytest.raises(
        ValueError, match=r"`crops` \(=mask\) must find masks in .*: use crops=free"
    ):
        runs.run(MIM_TRAINER, f"{PRETRAIN} crops=mask")


def test_what_the_log_says_without_the_setting():
    assert label_use(MIMSettings()) == "No label is used in training."
