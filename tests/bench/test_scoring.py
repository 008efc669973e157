from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.bench import scoring
from nnunet_ssp.bench.place import Bench
from nnunet_ssp.evaluation import distances
from nnunet_ssp.evaluation import scoring as ours
from tests.bench.conftest import CPU, TINY

pytestmark = pytest.mark.usefixtures("one_thread")
BENCH = Bench(Path("unused"), CPU, TINY)


def test_each_way_has_the_same_scores(tmp_path):
    pairs = scoring.write_pairs(BENCH, tmp_path)
    assert len({pair.case for pair in pairs}) == 2 * scoring.SUBJECTS
    found, before = scoring.score_as_today(pairs), scoring.score_as_before(pairs)
    for tables, old_tables in zip(found, before, strict=True):
        for rows, old_rows in zip(tables, old_tables, strict=True):
            for row, old in zip(rows, old_rows, strict=True):
                assert row.keys() == old.keys()
                for name, value in old.items():
                    exact = isinstance(value, str)
                    assert row[name] == (value if exact else pytest.approx(value, nan_ok=True)), (
                        name
                    )
    dice = [row["dice"] for frames, _ in found for row in frames]
    theirs = [
        metrics["Dice"]
        for result in scoring.dice_alone(pairs)
        for metrics in result["metrics"].values()
    ]
    assert dice == pytest.approx(theirs)
    assert min(dice) > 0 and max(dice) < 1, "all classes are there, and shifted"


def test_the_way_before_is_not_todays(tmp_path, monkeypatch):
    pairs = scoring.write_pairs(BENCH, tmp_path)
    ways = []
    score = ours.score_pair

    def score_pair(*words):
        ways.append((ours._crop, distances.surface, distances._nearest))
        return score(*words)

    monkeypatch.setattr(ours, "score_pair", score_pair)
    scoring.score_as_before(pairs[:1])
    scoring.score_as_today(pairs[:1])
    assert all(old is not new for old, new in zip(*ways, strict=True))


def test_the_row(monkeypatch):
    ran = []

    def in_turns(works, device, seconds, clock):
        for name, work in works.items():
            ran.append((name, len(work())))
        return {"nnunet": [1.0, 1.0], "before": [3.0, 3.0], "ours": [1.5, 1.0]}

    monkeypatch.setattr(scoring, "in_turns", in_turns)
    found = scoring.scoring_over_before(BENCH)
    assert ran == [("nnunet", 4), ("before", 4), ("ours", 4)]
    assert found["scoring_over_before"] == 2.5
    assert found["scoring_over_nnunet"] == pytest.approx((1 / 1.5 + 1) / 2)
    assert found["scoring_pairs"] == 4
