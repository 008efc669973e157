from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from tests.corpus import CORPUS, SECONDS, trial
from tests.malformed.entry import Entry


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import what the commands import when they run: its time is none of an entry's."""
    for name in (
        *("matplotlib.pyplot", "nnunetv2.run.run_training", "pandas", "scipy.stats"),
        *("skimage.transform", "nnunet_ssp.preparation.command", "nnunet_ssp.study.results"),
    ):
        import_module(name)


@pytest.mark.timeout(SECONDS, func_only=True)
@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
def test_refused_in_words_and_nothing_written(entry: Entry, tmp_path: Path) -> None:
    wrong = trial(entry, tmp_path)
    assert not wrong, "\n".join(wrong)


def test_there_are_many_and_each_has_its_name() -> None:
    names = Counter(entry.name for entry in CORPUS)
    assert [name for name, times in names.items() if times > 1] == []
    assert len(CORPUS) >= 120


def test_every_pattern_asks_for_something() -> None:
    assert [entry.name for entry in CORPUS if len(entry.says) < 8] == []
