from __future__ import annotations

import pytest

from nnunet_ssp.files.names import LONGEST, is_plain, must_be_plain, must_name_plans

ESCAPING = [
    "../x",
    "..",
    ".",
    "",
    " ",
    "a/b",
    "/etc/x",
    "a\\b",
    "C:x",
    "c:\\x",
    ".hidden",
    "a\0b",
    "a\nb",
    "a\x7f",
    "\ud800",
    "x" * (LONGEST + 1),
    "ü" * (LONGEST // 2 + 1),
    None,
    3,
    ["x"],
]


@pytest.mark.parametrize("name", ESCAPING, ids=ascii)
def test_a_name_that_is_no_plain_component_is_refused(name):
    assert not is_plain(name)
    with pytest.raises(ValueError, match=r"cases\.csv: `case` \(=.*\) must be one plain name") as e:
        must_be_plain(name, "case", "cases.csv")
    assert str(e.value).isprintable() and len(str(e.value)) < 400


@pytest.mark.parametrize(
    "name", ["mm1-A1_frame00", "a.b_1", "Größe 3", "patient (1)", "x" * LONGEST, "1:2", "~a", "$b"]
)
def test_plain_names_stay_as_they_are(name):
    assert must_be_plain(name, "case") == name


@pytest.mark.parametrize("name", ["dataset", "dataset_fingerprint", "Splits_Final"])
def test_plans_do_not_replace_files_of_nnunets(name):
    with pytest.raises(ValueError, match=rf"-p \(={name}\) must be none of dataset, "):
        must_name_plans(name, "-p")
    assert must_name_plans(f"{name}2", "-p") == f"{name}2"
