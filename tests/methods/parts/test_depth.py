from __future__ import annotations

from nnunet_ssp.methods.parts.depth import depth_warning

ADVICE = 'Consider nnUNet_ssp_settings="recipe=deep".'
LEVELS5 = [f"encoder {i}" for i in range(1, 6)] + [f"decoder {i}" for i in range(4, 0, -1)]


def shallow(deep: float, top: float = 0.3) -> dict[str, float]:
    return {name: (top if int(name.split()[1]) <= 2 else deep) for name in LEVELS5}


def test_a_warning_when_the_deep_half_stands_still():
    warning = depth_warning(shallow(0.01), ADVICE)
    assert warning is not None
    assert warning.startswith(
        "WARNING: the deep stages hardly learn: encoder 1 has changed by 0.300"
    )
    assert "0.010 (median)" in warning and "recipe=deep" in warning
    assert "\n" not in warning


def test_no_warning_when_all_learn_or_nothing_does():
    assert depth_warning(shallow(0.2), ADVICE) is None
    assert depth_warning(shallow(0.03), ADVICE) is None  # a tenth of the most
    assert depth_warning(shallow(0.0001, top=0.019), ADVICE) is None  # too early to tell
    assert depth_warning({}, ADVICE) is None


def test_one_deep_stage_is_not_enough_to_calm():
    values = shallow(0.01)
    values["encoder 5"] = 0.3
    assert depth_warning(values, ADVICE) is not None


def test_the_stem_has_no_level_but_may_be_what_learns():
    values = {"encoder stem": 0.5, **shallow(0.01, top=0.01)}
    assert "encoder stem has changed by 0.500" in depth_warning(values, ADVICE)
