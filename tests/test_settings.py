from __future__ import annotations

import re
from dataclasses import asdict, fields

import pytest

from nnunet_ssp.methods import MIMSettings
from nnunet_ssp.settings import (
    ENVIRONMENT_VARIABLE,
    FinetuningSettings,
    SemiSettings,
    TrainingSettings,
    from_environment,
    learned_by,
    override,
    require,
)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("num_epochs=5", "num_epochs", 5),
        ("initial_lr=1e-3", "initial_lr", 0.001),
        ("initial_lr=1", "initial_lr", 1.0),
        ("nesterov=no", "nesterov", False),
        ("nesterov=YES", "nesterov", True),
        ("early_stopping=none", "early_stopping", None),
        ("early_stopping=20", "early_stopping", 20),
        ("iterations_per_epoch=None", "iterations_per_epoch", None),
        ("gradient_clip=none", "gradient_clip", None),
        ("gradient_clip=3", "gradient_clip", 3.0),
        ("precision=bf16", "precision", "bf16"),
        ("mask_patch=auto", "mask_patch", "auto"),
        ("mask_patch=16", "mask_patch", 16),
        ("fill=gaussian_noise", "fill", "gaussian_noise"),
        ("fill=-0.5", "fill", -0.5),
        ("brightness=run", "brightness", "run"),
        (r"subject_pattern=^(\w{1,3})=?", "subject_pattern", r"^(\w{1,3})=?"),
        ("subject_pattern=none", "subject_pattern", None),
    ],
)
def test_values_by_the_type_of_the_setting(text, name, value):
    settings, foreign = override(MIMSettings(), text)
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    assert foreign == []
    others = [f.name for f in fields(settings) if f.name != name]
    assert all(getattr(settings, other) == getattr(MIMSettings(), other) for other in others)


def test_several_words_and_none():
    settings, _ = override(MIMSettings(), "  num_epochs=5\tmask_ratio=0.6\n")
    assert (settings.num_epochs, settings.mask_ratio) == (5, 0.6)
    assert override(MIMSettings(), "") == (MIMSettings(), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_epochs=5.5", "`num_epochs` (=5.5) must be an integer."),
        ("num_epochs=none", "`num_epochs` (=none) must be an integer."),
        ("initial_lr=fast", "`initial_lr` (=fast) must be a number."),
        ("initial_lr=nan", "`initial_lr` (=nan) must be a number."),
        ("gradient_clip=inf", "`gradient_clip` (=inf) must be a number or none."),
        ("nesterov=1", "`nesterov` (=1) must be yes or no."),
        ("early_stopping=soon", "`early_stopping` (=soon) must be an integer or none."),
        ("precision=fp64", "`precision` (=fp64) must be auto or fp32 or bf16 or fp16."),
        ("mask_patch=big", "`mask_patch` (=big) must be an integer or auto."),
        ("fill=zebra", "`fill` (=zebra) must be a number or gaussian_noise or shuffle_pixels"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(MIMSettings(), text)


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match=r"no setting is called maskratio, tau\. Perhaps mask_ratio\? Valid here: "
    ) as e:
        override(MIMSettings(), "maskratio=0.6 num_epochs=2 tau=1")
    listed = str(e.value).split("Valid here: ")[1].rstrip(".").split(", ")
    assert listed == sorted(field.name for field in fields(MIMSettings))


def test_a_name_of_another_trainer_is_ignored_and_reported():
    text = "num_epochs=3 mask_ratio=0.6 val_iterations_per_epoch=7 final_validation=no"
    finetuning, foreign = override(FinetuningSettings(), text)
    assert (finetuning.num_epochs, finetuning.val_iterations_per_epoch) == (3, 7)
    assert foreign == ["mask_ratio"]
    mim, foreign = override(MIMSettings(), text)
    assert (mim.num_epochs, mim.mask_ratio, mim.val_iterations_per_epoch) == (3, 0.6, 7)
    assert foreign == ["final_validation"]


def test_a_foreign_value_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"`mask_ratio` \(=whatever\) must be a number"):
        override(FinetuningSettings(), "mask_ratio=whatever")
    # Some trainers take all, others the encoder alone.
    for text in ("transfer=all", "transfer=encoder"):
        assert override(MIMSettings(), text)[1] == ["transfer"]


@pytest.mark.parametrize("word", ["num_epochs", "num_epochs=", "=5"])
def test_a_malformed_word_is_refused(word):
    said = f"'{word}' must have the form name=value, without blanks around =."
    with pytest.raises(ValueError, match=re.escape(said)):
        override(MIMSettings(), f"seed=1 {word}")


@pytest.mark.parametrize(
    "value", ["1_0", "\u0665", "\uff15", "1e1", "0x10", "+", "5.0", "\u00bd", "9" * 30]
)
def test_numbers_are_written_as_people_write_them(value):
    with pytest.raises(ValueError, match=r"`num_epochs` \(=.*\) must be an integer"):
        override(MIMSettings(), f"num_epochs={value}")


@pytest.mark.parametrize(
    "value", ["1e400", "-1e400", "nan", "inf", "-Infinity", "1_0.0", "\u0661.5", ".", "1e", "1e1_0"]
)
def test_numbers_are_finite(value):
    with pytest.raises(ValueError, match=r"`initial_lr` \(=.*\) must be a number"):
        override(MIMSettings(), f"initial_lr={value}")


@pytest.mark.parametrize(("text", "value"), [("1.", 1.0), (".5", 0.5), ("+2E-3", 0.002)])
def test_numbers_in_other_forms(text, value):
    assert override(MIMSettings(), f"initial_lr={text}")[0].initial_lr == value


@pytest.mark.parametrize(
    "text",
    [
        "num_epochs=5, batch_size=8",
        "num_epochs=5,batch_size=8",
        "num_epochs=5; batch_size=8",
        "subject_pattern=(.+)_frame, num_epochs=5",
        # The first is another trainer's
        "contrast=0,num_epochs=5",
        "contrast=0;num_epochs=5",
        "recipe=few,num_epochs=5",
        # The first is a text, which takes all
        "subject_pattern=(.+)_frame,num_epochs=5",
    ],
)
def test_commas_between_settings_are_refused_in_words(text):
    with pytest.raises(ValueError, match=r"ettings are separated by spaces, no commas"):
        override(MIMSettings(), text)


def test_a_comma_within_a_pattern_is_its_own():
    pattern = "(.{1,3})_frame,x="
    assert override(MIMSettings(), f"subject_pattern={pattern}")[0].subject_pattern == pattern


@pytest.mark.parametrize("pattern", ["(", "*", "a{2,1}", "(?P<1>x)", "[", "(" * 200, "(a+)+$"])
def test_a_pattern_that_is_none_is_refused_whatever_the_dataset_has(pattern):
    rule = r"`subject_pattern` \(=.*\) must be a regular expression"
    with pytest.raises(ValueError, match=rule):
        override(MIMSettings(), f"subject_pattern={pattern}")


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="`seed` is given twice"):
        override(MIMSettings(), "seed=1 num_epochs=2 seed=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_epochs=0", "`num_epochs` (=0) must be at least 1."),
        ("initial_lr=0", "`initial_lr` (=0.0) must be positive."),
        ("seed=-1", "`seed` (=-1) must lie in [0, 2**32)."),
        ("seed=4294967296", "`seed` (=4294967296) must lie in [0, 2**32)."),
        ("early_stopping=0", "`early_stopping` (=0) must be none or at least 1."),
        ("early_stopping_delta=-1", "`early_stopping_delta` (=-1.0) must not be negative."),
        ("iterations_per_epoch=0", "`iterations_per_epoch` (=0) must be none or at least 1."),
        (
            "val_iterations_per_epoch=0",
            "`val_iterations_per_epoch` (=0) must be none or at least 1.",
        ),
        ("batch_size=0", "`batch_size` (=0) must be at least 1."),
        ("momentum=1", "`momentum` (=1.0) must lie in [0, 1)."),
        ("momentum=-0.1", "`momentum` (=-0.1) must lie in [0, 1)."),
        ("momentum=0", "`momentum` (=0.0) must be positive when nesterov=yes."),
        ("weight_decay=-1", "`weight_decay` (=-1.0) must not be negative."),
        (
            "optimizer=lars weight_decay=0",
            "`weight_decay` (=0.0) must be positive for optimizer=lars, "
            "which adapts no parameters without weight decay.",
        ),
        ("warmup_epochs=-1", "`warmup_epochs` (=-1) must be auto or lie in [0, num_epochs=100]."),
        (
            "warmup_epochs=6 num_epochs=5",
            "`warmup_epochs` (=6) must be auto or lie in [0, num_epochs=5].",
        ),
        ("gradient_clip=0", "`gradient_clip` (=0.0) must be none or positive."),
        ("chunk_size=0", "`chunk_size` (=0) must be auto, none or at least 1."),
        ("mask_ratio=0", "`mask_ratio` (=0.0) must lie in (0, 1)."),
        ("mask_ratio=1", "`mask_ratio` (=1.0) must lie in (0, 1)."),
        ("mask_patch=0", "`mask_patch` (=0) must be auto or at least 1."),
        ("skip_dropout=1.1", "`skip_dropout` (=1.1) must lie in [0, 1]."),
        (
            "fill=replace_patches batch_size=1",
            "`batch_size` (=1) must be at least 2 for fill=replace_patches.",
        ),
    ],
)
def test_ranges_of_pretraining(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        override(MIMSettings(), text)


def test_ranges_of_finetuning():
    with pytest.raises(
        ValueError, match=r"^`val_iterations_per_epoch` \(=0\) must be at least 1\.$"
    ):
        override(FinetuningSettings(), "val_iterations_per_epoch=0")
    with pytest.raises(
        ValueError, match=r"^`iterations_per_epoch` \(=0\) must be none or at least"
    ):
        override(FinetuningSettings(), "iterations_per_epoch=0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer=lars", "`optimizer` (=lars) must be sgd or adamw."),
        ("weight_decay=-1", "`weight_decay` (=-1.0) must not be negative."),
        ("l2_sp=-0.1", "`l2_sp` (=-0.1) must not be negative."),
        ("encoder_lr_factor=0", "`encoder_lr_factor` (=0.0) must be positive."),
        ("warmup_epochs=-1", "`warmup_epochs` (=-1) must lie in [0, num_epochs=1000)."),
        ("warmup_epochs=3 num_epochs=3", "`warmup_epochs` (=3) must lie in [0, num_epochs=3)."),
    ],
)
def test_ranges_of_finetunings_optimiser(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(FinetuningSettings(), text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("average_momentum=1", "`average_momentum` (=1.0) must lie in [0, 1)."),
        ("unlabelled_batch_size=0", "`unlabelled_batch_size` (=0) must be auto or at least 1."),
        ("confidence_threshold=1.1", "`confidence_threshold` (=1.1) must lie in [0, 1]."),
        ("cutmix=-0.1", "`cutmix` (=-0.1) must lie in [0, 1]."),
        ("consistency_weight=-1", "`consistency_weight` (=-1.0) must not be negative."),
        ("rampup_epochs=-1", "`rampup_epochs` (=-1) must be auto or not negative."),
        ("subject_pattern=(", "`subject_pattern` (=() must be "),
    ],
)
def test_ranges_of_learning_from_unlabelled_slices(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(SemiSettings(), text)


def test_the_ramp_is_a_quarter_of_the_run_or_what_is_asked_for():
    assert override(SemiSettings(), "num_epochs=10")[0].rampup == 2.5
    assert override(SemiSettings(), "num_epochs=10 rampup_epochs=0")[0].rampup == 0


def test_one_variable_serves_pretraining_and_finetuning():
    settings, _ = override(FinetuningSettings(), "iterations_per_epoch=none mask_ratio=0.5")
    assert settings.iterations_per_epoch is None


def test_bounds_themselves_are_allowed():
    override(MIMSettings(), "seed=4294967295 warmup_epochs=100 momentum=0 nesterov=no")
    override(MIMSettings(), "skip_dropout=1 weight_decay=0 early_stopping_delta=0 mask_patch=1")


def test_a_recipe_replaces_defaults_and_single_settings_win_in_any_order():
    deep, _ = override(MIMSettings(), "recipe=deep")
    assert (deep.optimizer, deep.initial_lr, deep.weight_decay) == ("adamw", 1e-3, 0.01)
    assert deep.coarse_heads and deep.recipe == "deep"
    for text in ("recipe=deep initial_lr=0.5", "initial_lr=0.5 recipe=deep"):
        settings, _ = override(MIMSettings(), text)
        assert (settings.initial_lr, settings.optimizer) == (0.5, "adamw")
    assert override(MIMSettings(), "recipe=paper")[0] == MIMSettings()


def test_a_recipe_of_other_trainers_is_ignored_and_named():
    # so that one exported variable serves pretraining and fine-tuning
    assert override(FinetuningSettings(), "recipe=deep seed=3") == (
        FinetuningSettings(seed=3),
        ["recipe=deep"],
    )
    assert override(MIMSettings(), "recipe=few") == (MIMSettings(), ["recipe=few"])
    # Also a default's name, which replaces nothing.
    name = "recipe=instancenorm"
    assert override(FinetuningSettings(), name) == (FinetuningSettings(), [name])
    with pytest.raises(ValueError, match=r"`recipe` \(=fwe\) must be nnunet or few"):
        override(FinetuningSettings(), "recipe=fwe")


def test_settings_of_another_optimiser_are_named():
    assert MIMSettings().unused == ("beta1", "beta2")
    assert override(MIMSettings(), "recipe=deep")[0].unused == ("momentum", "nesterov")
    assert FinetuningSettings().unused == ()


def test_the_papers_values_are_the_defaults():
    mim = MIMSettings()  # de Mooij et al., appendix A
    assert (mim.num_epochs, mim.batch_size, mim.initial_lr) == (100, 128, 0.01)
    assert (mim.optimizer, mim.momentum, mim.nesterov) == ("sgd", 0.99, True)
    assert (mim.weight_decay, mim.warmup_epochs) == (3e-5, 0)
    assert (mim.mask_ratio, mim.mask_patch, mim.fill) == (0.75, "auto", 0.0)
    assert FinetuningSettings().initial_lr == 0.005


def test_the_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert from_environment(TrainingSettings()) == (TrainingSettings(), [])
    monkeypatch.setenv("nnUNet_ssp_settings", "seed=3 mask_ratio=0.6")
    assert from_environment(TrainingSettings()) == (TrainingSettings(seed=3), ["mask_ratio"])


def test_require():
    require(True, "a", 1, "never be seen")
    with pytest.raises(ValueError, match=r"^`a` \(=1\) must be two\.$"):
        require(False, "a", 1, "be two")


def test_what_a_pretraining_learned_by_is_typed_again():
    recorded = asdict(override(MIMSettings(), "recipe=deep mask_ratio=0.5 num_epochs=3 seed=4")[0])
    assert learned_by("MIM", recorded) == "recipe=deep mask_ratio=0.5"
    assert override(MIMSettings(), learned_by("MIM", recorded))[0].optimizer == "adamw"
    assert learned_by("MIM", asdict(MIMSettings())) == learned_by("Other", recorded) == ""
    assert learned_by("Dense", {"contrast": 0.0, "unknown": 5}) == "contrast=0.0"
    for damaged in ({"contrast": "x"}, {"contrast": [1]}, {"contrast": "0 seed=3"}):
        assert learned_by("Dense", damaged) == ""
