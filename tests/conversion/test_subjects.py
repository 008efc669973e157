from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.conversion.subjects import Task, make_cases, without_labels


def test_cases_are_all_frames_for_training_and_labelled_ones_for_testing():
    phases = {0: "ED", 2: "ES"}
    given = {"source": "toy", "base": "first", "vendor": "GE", "first": 1, "field": "3"}
    train = make_cases(Task("A", "train", ()), phases, 4, **given)
    assert [(c.case, c.phase) for c in train] == [
        ("A_frame00", "ED"),
        ("A_frame01", ""),
        ("A_frame02", "ES"),
        ("A_frame03", ""),
    ]
    assert {(c.source_frame - c.frame, c.n_frames, c.field, c.centre) for c in train} == {
        (1, 4, "3", "")
    }
    test = make_cases(Task("A", "test", ()), phases, 4, **given)
    assert [c.case for c in test] == ["A_frame00", "A_frame02"]
    every = make_cases(Task("A", "test", (), test_frames="all"), phases, 4, **given)
    assert [(c.phase, c.split) for c in every] == [(c.phase, "test") for c in train]
    assert len(make_cases(Task("A", "test", ()), {}, 4, **given)) == 4
    few = make_cases(Task("A", "train", ()), phases, 30, frames=[9, 0], **given)
    assert [(c.frame, c.n_frames) for c in few] == [(0, 30), (9, 30)]


def test_masks_are_known_by_the_names_of_files_that_are_there(tmp_path: Path):
    image, mask = tmp_path / "A_sa.nii.gz", tmp_path / "A_sa_gt.nii.gz"
    image.touch()
    assert not Task("A", "train", (image, mask)).has_masks
    mask.touch()
    assert Task("A", "train", (image, mask)).has_masks
    assert not Task("A", "train", (image,)).has_masks


def test_a_subject_without_labels_is_refused_or_noted():
    place = Path("A")
    said = without_labels(Task("A", "train", ()), "no mask", place)
    assert said == "no mask: converted as unlabelled"
    with pytest.raises(ValueError, match="A: no mask; a test subject must have labels"):
        without_labels(Task("A", "test", ()), "no mask", place)
    said = without_labels(Task("A", "test", (), test_frames="all"), "no mask", place)
    assert said == "no mask: for prediction only, in imagesTs without labelsTs"
