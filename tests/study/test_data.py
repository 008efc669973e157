from __future__ import annotations

from dataclasses import replace

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.study.data import Data, open_data
from tests.study.conftest import BATCH, SLICES_OF_A_CASE, SUBJECTS

LABELLED = SUBJECTS - 2  # the fold validates on two


def test_what_the_plans_and_tables_say(data):
    assert (data.number, data.name) == ("114", "Dataset114_Small")
    assert data.patch_size == (64, 32)
    assert data.batch_size == BATCH
    assert data.results_folder == "__nnUNetPlans__2d"
    assert data.test_cases == [f"S{SUBJECTS + 2}_frame00", f"S{SUBJECTS + 2}_frame01"]


def test_slices_of_a_fold(data):
    assert data.labelled_slices("5-fold-0") == LABELLED * 2 * SLICES_OF_A_CASE
    # A pretraining draws from the two without labels, too, and never from the validation's or the test's.
    assert data.pretraining_slices("5-fold-0") == (LABELLED + 2) * 2 * SLICES_OF_A_CASE


def test_a_fold_by_its_name(data):
    number, fold = data.fold("5-fold-0")
    assert (number, fold.name) == (0, "5-fold-0")
    assert not data.has_fold("5-fold-1")
    with pytest.raises(
        ValueError,
        match="Dataset114_Small must have a fold called 5-fold-1; nnunet-ssp folds 114 lists",
    ):
        data.fold("5-fold-1")


def test_a_subset_by_its_share(data):
    """A quarter of eight subjects is two; a quarter of their slices, 32."""
    (fold,) = data.dataset.folds
    subsets = [replace(fold, name=f"5-fold-0-{part}-seed0") for part in ("nr2", "slices32")]
    more = replace(data, dataset=replace(data.dataset, folds=[fold, *subsets]))
    assert more.fold("5-fold-0-nr0.25-seed0") == (1, subsets[0])
    assert more.fold("5-fold-0-slices0.25-seed0") == (2, subsets[1])
    assert not more.has_fold("5-fold-0-nr0.25-seed1")
    assert not more.has_fold("5-fold-0-nr0.5-seed0")


def test_a_fingerprint_stands_for_what_is_learned_from(data):
    """Another dataset may have the same plans and cases, and other labels."""
    before = data.fingerprint("5-fold-0"), data.unlabelled_fingerprint("5-fold-0")

    def changes(other: Data) -> tuple[bool, bool]:
        own = other.fingerprint("5-fold-0"), other.unlabelled_fingerprint("5-fold-0")
        return own[0] != before[0], own[1] != before[1]

    folder = data.dataset.prepared
    assert changes(open_data(114, "nnUNetPlans")) == (False, False)
    folds = [replace(data.dataset.folds[0], name="first"), *data.dataset.folds]
    assert changes(replace(data, dataset=replace(data.dataset, folds=folds))) == (True, True)
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"LV": 1', '"LV": 2'))
    assert changes(open_data(114, "nnUNetPlans")) == (True, False)
    (folder / "dataset.json").write_text(text)
    folder.rename(folder.with_name("Dataset115_Small"))
    assert changes(open_data(115, "nnUNetPlans")) == (True, True)


def test_a_store_of_another_time_is_refused(data):
    cases = dict(data.dataset.cases)
    del cases["S11_frame00"]  # unlabelled
    other = replace(data, dataset=replace(data.dataset, cases=cases))
    with pytest.raises(
        ValueError, match=r"\(S11_frame00 is in only one of .*nnunet-ssp prepare 114"
    ):
        other.pretraining_slices("5-fold-0")
    other = replace(data)
    other.__dict__["stored"] = {n: s for n, s in data.stored.items() if n != "S5_frame01"}
    with pytest.raises(ValueError, match=r"\(S5_frame01 is in only one of"):
        other.labelled_slices("5-fold-0")


def test_without_plans(data):
    with pytest.raises(
        FileNotFoundError, match=r"make it: nnunet-ssp prepare 114 -overwrite_plans_name other$"
    ):
        open_data(114, "other")
    write_json(data.dataset.prepared / "3d.json", {"configurations": {"3d_fullres": {}}})
    with pytest.raises(
        ValueError, match=r"`configuration` \(=2d\) must be one that .*3d\.json has: 3d_fullres"
    ):
        open_data(114, "3d")
