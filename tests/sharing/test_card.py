"""The card of a shared pretraining."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.sharing.card import by_group, last_values, page_of, prepared_folder, seen_cases
from tests.sharing.conftest import row

CARD = {
    "name": "heart",
    "record": {"method": "MIM", "chain": [{"method": "BYOL", "counts": {"slices": 7}}]},
    "data": {"counts": {"subjects": 1}, "by_group": [], "licences": []},
    "channel_names": {"0": "cineMRI"},
    "epochs": None,
    "last_values": {"val_losses": 0.123456},
    "papers": ["A paper."],
}
CONFIGURATION = {
    "spacing": [1.25, 1.25],
    "patch_size": [128, 128],
    "normalization_schemes": ["ZScoreNormalization"],
}


def test_subjects_are_counted_once_per_group() -> None:
    rows = by_group({"a": (row("A", 0), 5), "b": (row("A", 3), 4), "c": (row("C", 0), 3)})
    assert [(r["source"], r["subjects"], r["frames"], r["slices"]) for r in rows] == [
        ("acdc", 1, 1, 3),
        ("mm1", 1, 2, 9),
    ]


def test_only_numbers_are_last_values() -> None:
    curves = {"a": [1, 2], "b": [[0.5]], "c": [True], "d": "x", "lrs": [1.0], "e": [float("inf")]}
    assert last_values(curves) == {"a": 2.0}


def test_a_page_for_people() -> None:
    page = page_of(CARD, CONFIGURATION, hub=False)
    assert page.startswith("# heart\n")
    for words in (
        "**Data**: 1 subject. Licences: not stated.",
        "1 channel, 1.25 x 1.25 mm, ZScoreNormalization; patch 128 x 128",
        "hashes only",
        "| BYOL | 7 |",
        "| val_losses | 0.1235 |",
        "* A paper.",
        "**Epochs**: not recorded.",
    ):
        assert words in page


def test_nothing_is_counted_where_the_dataset_is_not(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared_folder("Dataset001_A") is None
    assert prepared_folder(None) is None
    assert seen_cases({}, environment, "nnUNetPlans_2d") == {}
    monkeypatch.delenv("nnUNet_preprocessed")
    assert prepared_folder("Dataset001_A") is None
