from __future__ import annotations

import pytest

from nnunet_ssp.dataset_conversion.mnms import LABELS
from nnunet_ssp.evaluation.labels import SYNONYMS, read_labels
from tests.evaluation.conftest import write_dataset_json


def read(folder, labels, **named):
    write_dataset_json(folder, labels)
    return read_labels(folder / "dataset.json", named)


@pytest.mark.parametrize(
    ("labels", "structures"),
    [
        (LABELS, ["LVBP", "LVM", "RV"]),
        ({"background": 0, "RV": 1, "MLV": 2, "LVC": 3}, ["LVC", "MLV", "RV"]),
        ({"background": 0, "left ventricle": 1, "Myocardium": 2}, ["left ventricle", "Myocardium"]),
        ({"background": 0, "rv_cavity": 2, "LV-blood pool": 1}, ["LV-blood pool", "rv_cavity"]),
        ({"background": 0, "liver": 1}, []),
    ],
)
def test_structures_are_found_by_their_names(tmp_path, labels, structures):
    found = read(tmp_path, labels)
    assert list(found.structures.values()) == structures
    assert found.classes == {name: (value,) for name, value in labels.items() if value}


def test_the_user_has_the_last_word(tmp_path):
    labels = {"background": 0, "LV": 1, "cavity": 2, "muscle": 3}
    found = read(tmp_path, labels, LV="cavity", MYO="muscle", RV=None)
    assert found.structures == {"LV": "cavity", "MYO": "muscle"}
    with pytest.raises(
        ValueError, match=r"`--rv` \(=right\) must be a class of .*: LV, cavity, mu"
    ):
        read(tmp_path, labels, RV="right")


def test_two_names_of_one_structure_are_refused(tmp_path):
    labels = {"background": 0, "LV": 1, "LVC": 2}
    with pytest.raises(ValueError, match=r"LV and LVC could both be the LV; say which with --lv"):
        read(tmp_path, labels)
    assert read(tmp_path, labels, LV="LVC").structures == {"LV": "LVC"}


def test_structures_that_share_a_label_value_are_said_so(tmp_path):
    region = read(tmp_path, {"background": 0, "LV": [1, 2], "MYO": 2, "RV": 3})
    assert region.overlap == (
        "LV, which is taken for LV, and MYO, for MYO, share the label value 2; name the class of "
        "either alone with --lv or --myo"
    )
    labels = {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}
    assert "share the label value 2" in read(tmp_path, labels, LV="LVM").overlap
    assert read(tmp_path, labels).overlap == ""


def test_people_read_one_name_for_a_structure(tmp_path):
    """Whatever the dataset calls it; a name that another class has stays that class's."""
    found = read(tmp_path, {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3, "scar": 4})
    assert [found.shown(name) for name in found.classes] == ["LV", "MYO", "RV", "scar"]
    assert found.shown("mean") == "mean"
    other = read(tmp_path, {"background": 0, "LV": 1, "cavity": 2}, LV="cavity")
    assert [other.shown(name) for name in other.classes] == ["LV", "cavity"]


def test_no_name_stands_for_two_structures():
    names = [name for words in SYNONYMS.values() for name in words.split()]
    assert len(names) == len(set(names))


def test_regions_and_the_ignore_label(tmp_path):
    labels = {"background": 0, "heart": [1, 2, 3], "LV": [1], "RV": 3, "ignore": 4}
    found = read(tmp_path, labels)
    assert found.classes == {"heart": (1, 2, 3), "LV": (1,), "RV": (3,)}
    assert found.ignore == 4
    assert found.values == {0, 1, 2, 3, 4}


def test_a_dataset_without_classes_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset.json: `labels` .* must have a class to evaluate"
    ):
        read(tmp_path, {"background": 0})
