from __future__ import annotations

import pytest

from nnunet_ssp.demo.progress import WEIGHTS, ProgressBar


def test_where_there_is_no_bar_a_line_says_how_far_it_is(capsys):
    """Every 20 seconds: a training's part, or what the running command said last."""
    now = [0.0]
    with ProgressBar(sum(WEIGHTS.values()), clock=lambda: now[0]) as progress:
        for second in range(41):
            now[0] = second
            progress.show("phantom", 0, "preparing:  50%")
        progress.finish("phantom")
        for name in ("convert", "prepare"):
            progress.finish(name)
        now[0] = 60
        progress.show("pretrain", 0.5, "Epoch 5")
        now[0] = 79
        progress.show("pretrain", 0.6, "Epoch 6")
    line = "  phantom, 0% of the demo: preparing:  50%\n"
    # 10 + 10 + 20 of 660, and half of 270.
    assert capsys.readouterr().out == f"{line}{line}  pretrain 50%, 27% of the demo\n"


def test_the_time_left_of_a_second_call_counts_only_its_own_work():
    with ProgressBar(sum(WEIGHTS.values())) as progress:
        for name in ("phantom", "convert"):
            progress.goes_on()
            progress.finish(name)
        done = WEIGHTS["phantom"] + WEIGHTS["convert"]
        assert progress._bar.n == progress._bar.initial == done
        progress.finish("prepare")
        assert progress._bar.initial == done
        # A training that goes on begins in its middle.
        progress.goes_on()
        progress.show("pretrain", 0)
        progress.show("pretrain", 0.5)
        progress.show("pretrain", 0.75)
        earlier = done + WEIGHTS["pretrain"] * 0.5
        assert progress._bar.initial == pytest.approx(earlier)
        assert progress._bar.n == done + WEIGHTS["prepare"] + WEIGHTS["pretrain"] * 0.75
