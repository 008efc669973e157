from __future__ import annotations

from nnunet_ssp.study.plots import caption, each_plot, fixed_words, styles
from tests.study.test_figures import figure


def test_a_picture_for_each_combination_that_varies(miniature):
    shown = figure(kind="labels", classes=["LV", "mean"], scores=["dice", "area"])
    found = [(*plot[1:3], plot[3]) for plot in each_plot(shown, miniature().results)]
    # A learning curve has no classes.
    assert found == [
        ("LV", "dice", "LV-dice"),
        ("mean", "dice", "mean-dice"),
        ("mean", "area", "mean-area"),
    ]


def test_the_caption_begins_with_the_study_s_own_words(miniature):
    results = miniature().finish().results
    shown = figure(kind="labels", caption="Ours.")
    said = caption(shown, results, fixed_words(shown, results), "Theirs.")
    assert said.startswith("Ours. ") and "Theirs." in said and "Incomplete" not in said


def test_curves_keep_their_style_whichever_are_drawn():
    every = styles([f"model {n}" for n in range(20)])
    assert len({(s["color"], s["marker"]) for s in every.values()}) == 20
    assert styles(["model 0", "model 1"]) == {k: every[k] for k in ("model 0", "model 1")}
