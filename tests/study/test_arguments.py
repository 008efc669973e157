from __future__ import annotations

import pytest

from nnunet_ssp.study.arguments import matching_names, must_be_options, must_know, must_match


def test_known_options_with_their_values_pass():
    must_be_options("prepare", "-gpu_memory_target 0.5 --patch 64 64 --any-plane")
    must_be_options("make_folds", "--subsets 0.5 0.1 --of 5-fold-0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--overwrite", "must be one of the options that a study may give"),
        ("--patch 64", "--patch must have 2 values"),
        ("-gpu_memory", "must be one of the options"),
        ("'", "must be arguments as in a shell"),
    ],
)
def test_others_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        must_be_options("prepare", text)


def test_the_known_names_are_listed():
    must_know("a", None, {"b"}, "letters")
    with pytest.raises(ValueError, match=r"a \(=c\) must be one of letters: b\.$"):
        must_know("a", "c", {"b"}, "letters")
    with pytest.raises(ValueError, match=r"of models: MIM, baseline\. Perhaps baseline\?$"):
        must_know("a", "baselin", ["MIM", "baseline"], "models")


def test_names_and_patterns():
    known = {"MIM": 0, "MIM, mask": 0, "baseline": 0}
    assert matching_names(None, known) == list(known)
    assert matching_names(["baseline", "MIM*"], known) == ["baseline", "MIM", "MIM, mask"]
    must_match("a", ["MIM*"], known, "models")
    with pytest.raises(
        ValueError, match=r"a \(=DINO\*\) must be one of models: MIM, MIM, mask, ba"
    ):
        must_match("a", ["DINO*"], known, "models")
