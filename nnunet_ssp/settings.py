"""Settings of the trainers: frozen dataclasses, changed by one environment variable.

`nnUNet_ssp_settings="num_epochs=5 mask_ratio=0.6" nnUNetv2_train ...` overrides single settings. A name that only
another trainer knows is ignored with a note, so that one exported variable serves pretraining and fine-tuning. A name
that no trainer knows and a value of the wrong kind are refused, also of an ignored name.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from nnunet_ssp.console import nearest
from nnunet_ssp.files.patterns import compile_pattern
from nnunet_ssp.setting_values import as_word, parse_value

ENVIRONMENT_VARIABLE = "nnUNet_ssp_settings"
_SPACES = "settings are separated by spaces, no commas"


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise a `ValueError` that names setting, value and rule, unless the rule holds.

    >>> require(False, "num_epochs", 0, "be at least 1")
    Traceback (most recent call last):
    ValueError: `num_epochs` (=0) must be at least 1.
    """
    if not holds:
        raise ValueError(f"`{name}` (={value}) must {rule}.")


def require_pattern(pattern: str | None) -> None:
    """Raise a `ValueError` unless `subject_pattern` is none or a regular expression."""
    try:
        compile_pattern(pattern or "")
    except ValueError as error:
        require(False, "subject_pattern", pattern, f"be {error}")


@dataclass(frozen=True)
class Settings:
    """Base of all settings; subclasses check ranges in `__post_init__`.

    Attributes:
        recipes: Named sets of defaults. `recipe=NAME` replaces these defaults before single settings apply. `override`
            does that, not the constructor: a trainer that starts from a recipe has
            `defaults = override(MIMSettings(), "recipe=deep")[0]`.
        former: Values that settings stand for in a checkpoint older than they are, where the default differs.
    """

    recipes: ClassVar[dict[str, dict[str, Any]]] = {}
    former: ClassVar[dict[str, Any]] = {}


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of every trainer."""

    former: ClassVar[dict[str, Any]] = {"fused_norm": "no", "memory_format": "contiguous"}
    # nnU-Net's number.
    num_epochs: int = 1000
    # Highest learning rate, without a warm-up the first; nnU-Net's.
    initial_lr: float = 0.01
    # Fixes the initial weights, and everything that is drawn in pretraining; in fine-tuning with nnUNet_n_proc_DA=0.
    seed: int = 0
    # Epochs without improvement of the validation loss after which a run ends; none: never.
    early_stopping: int | None = None
    # Smallest decrease that counts as improvement (min_delta in the papers' code).
    early_stopping_delta: float = 1e-3
    # auto: on CUDA the half precision that suits the method (bf16, or fp16 for methods that train the encoder alone),
    # in fine-tuning nnU-Net's fp16; on a CPU bf16 where a trial shows a large gain, else fp32.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # On a CPU. auto: InstanceNorm as group norm, faster; yes: with LeakyReLU, at most 0.6 of memory; no: as nnU-Net.
    fused_norm: Literal["auto", "yes", "no"] = "auto"
    # Layout of the maps in the network. auto: channels_last where a trial of a few steps shows a gain of 1.05.
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    # yes: open checkpoints that can run code when they are opened; for your own files only.
    trust: bool = False
    # yes: pretrained weights of other plans are made to fit: channels, stages, kernels, the other kind of encoder.
    adapt: bool = False
    # Least share of the encoder's parameters that adapt=yes must take from the file.
    min_transferred: float = 0.5

    def __post_init__(self) -> None:
        require(self.num_epochs >= 1, "num_epochs", self.num_epochs, "be at least 1")
        require(self.initial_lr > 0, "initial_lr", self.initial_lr, "be positive")
        require(0 <= self.seed < 2**32, "seed", self.seed, "lie in [0, 2**32)")
        patience = self.early_stopping
        require(
            patience is None or patience >= 1, "early_stopping", patience, "be none or at least 1"
        )
        delta = self.early_stopping_delta
        require(delta >= 0, "early_stopping_delta", delta, "not be negative")
        share = self.min_transferred
        require(0 <= share <= 1, "min_transferred", share, "lie in [0, 1]")

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the settings that the others leave without effect."""
        return ()


@dataclass(frozen=True)
class PretrainingSettings(TrainingSettings):
    """Settings of every pretraining method; a method's own settings extend these."""

    # De Mooij et al., appendix A: all four methods.
    num_epochs: int = 100
    # none: one pass over all slices, as in the paper.
    iterations_per_epoch: int | None = None
    # Batches of the validation loss, as far as there are slices. none: those of 256 slices.
    val_iterations_per_epoch: int | None = None
    # Slices, over all ranks.
    batch_size: int = 128
    # lars: with momentum, trust coefficient 0.02 and clipped rates, as in solo-learn 1.0.6.
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    # Of SGD and LARS.
    momentum: float = 0.9
    # Of SGD and LARS.
    nesterov: bool = False
    # Of Adam and AdamW.
    beta1: float = 0.9
    # Of Adam and AdamW.
    beta2: float = 0.999
    # Decoupled for adamw, else a part of the gradient.
    weight_decay: float = 1e-4
    # Epochs of a linear rise of the learning rate; auto: 10, a tenth of a run shorter than 100.
    warmup_epochs: int | Literal["auto"] = 0
    # Largest norm of the gradient: nnU-Net's. none: no limit, as in the papers.
    gradient_clip: float | None = 12.0
    # Images that pass through the network at a time. auto: as many as memory allows. none: the whole batch.
    chunk_size: int | Literal["auto"] | None = "auto"
    # Where the slice store lies during training; auto: on the device where it fits.
    data_device: Literal["auto", "device", "host"] = "auto"
    # Regular expression that maps a case's name to its subject, for datasets without cases.csv.
    subject_pattern: str | None = None
    # Share of the training subjects, drawn with the seed. A smaller share is part of a larger one (Dominic et al.).
    data_fraction: float = 1.0
    # Epochs from one snapshot to the next: a light file to fine-tune from, in the folder snapshots. none: no snapshots.
    snapshot_epochs: int | None = None
    # Subjects to train on, as a multiple of those whose labels the fold trains on: 1 is these alone, 2 adds as many
    # others, drawn with the seed (Dominic et al., supersets). none: everyone.
    data_superset: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.iterations_per_epoch
        require(steps is None or steps >= 1, "iterations_per_epoch", steps, "be none or at least 1")
        steps, rule = self.val_iterations_per_epoch, "be none or at least 1"
        require(steps is None or steps >= 1, "val_iterations_per_epoch", steps, rule)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "be at least 1")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "lie in [0, 1)")
        nesterov_works = not self.nesterov or self.momentum > 0
        require(nesterov_works, "momentum", self.momentum, "be positive when nesterov=yes")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "lie in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "not be negative")
        adapts = self.optimizer != "lars" or self.weight_decay > 0
        rule = "be positive for optimizer=lars, which adapts no parameters without weight decay"
        require(adapts, "weight_decay", self.weight_decay, rule)
        warm = self.warmup_epochs
        require(
            warm == "auto" or 0 <= warm <= self.num_epochs,
            "warmup_epochs",
            warm,
            f"be auto or lie in [0, num_epochs={self.num_epochs}]",
        )
        clip = self.gradient_clip
        require(clip is None or clip > 0, "gradient_clip", clip, "be none or positive")
        require_pattern(self.subject_pattern)
        fraction = self.data_fraction
        require(0 < fraction <= 1, "data_fraction", fraction, "lie in (0, 1]")
        every = self.snapshot_epochs
        require(every is None or every >= 1, "snapshot_epochs", every, "be none or at least 1")
        superset = self.data_superset
        require(superset is None or superset >= 1, "data_superset", superset, "be none or >= 1")
        alone = superset is None or fraction == 1
        require(alone, "data_fraction", fraction, "be 1 when data_superset is given")
        chunk = self.chunk_size
        chunk_works = not isinstance(chunk, int) or chunk >= 1
        require(chunk_works, "chunk_size", chunk, "be auto, none or at least 1")

    @property
    def unused(self) -> tuple[str, ...]:
        betas = ("beta1", "beta2")
        return ("momentum", "nesterov") if self.optimizer in ("adam", "adamw") else betas

    @property
    def peak_lr(self) -> float:
        """Highest learning rate of a run."""
        return self.initial_lr

    @property
    def warmup(self) -> float:
        """Number of epochs of the warm-up."""
        return min(10, self.num_epochs / 10) if self.warmup_epochs == "auto" else self.warmup_epochs


@dataclass(frozen=True)
class FinetuningSettings(TrainingSettings):
    """Settings of fine-tuning on nnU-Net's own schedule; the batch size and everything else are the plans'."""

    # De Mooij et al., appendix A; 0.01 from scratch.
    initial_lr: float = 0.005
    # nnU-Net's. none means the same here: pretraining's one pass does not exist.
    iterations_per_epoch: int | None = 250
    # nnU-Net's.
    val_iterations_per_epoch: int = 50
    # yes: predict the whole validation cases at the end, as nnU-Net does.
    final_validation: bool = True
    # Weights to take from the pretrained file: all that were trained, or the encoder's alone.
    transfer: Literal["all", "encoder"] = "all"
    # sgd: nnU-Net's own, with Nesterov's momentum of 0.99. adamw wants a lower initial_lr, such as 0.001.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    # nnU-Net's. Decoupled for adamw, else a part of the gradient.
    weight_decay: float = 3e-5
    # Learning rate of the encoder, as a share of the decoder's.
    encoder_lr_factor: float = 1.0
    # Decay of the loaded weights towards their pretrained values, in place of weight_decay (L2-SP, Li et al. 2018).
    l2_sp: float = 0.0
    # Epochs of a linear rise of the learning rate; nnU-Net's polynomial begins after them.
    warmup_epochs: int = 0
    # few: for few labels and some hundred steps, as measured on ACDC.
    recipe: Literal["nnunet", "few"] = "nnunet"

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "nnunet": {},
        "few": {"optimizer": "adamw", "initial_lr": 0.003},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.iterations_per_epoch
        require(steps is None or steps >= 1, "iterations_per_epoch", steps, "be none or at least 1")
        steps = self.val_iterations_per_epoch
        require(steps >= 1, "val_iterations_per_epoch", steps, "be at least 1")
        for name in ("weight_decay", "l2_sp"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "not be negative")
        require(
            self.encoder_lr_factor > 0, "encoder_lr_factor", self.encoder_lr_factor, "be positive"
        )
        warm, rule = self.warmup_epochs, f"lie in [0, num_epochs={self.num_epochs})"
        require(0 <= warm < self.num_epochs, "warmup_epochs", warm, rule)


@dataclass(frozen=True)
class EncoderSettings(FinetuningSettings):
    """Settings of fine-tuning from the encoder's weights alone; the learning rate is de Mooij et al.'s."""

    transfer: Literal["encoder"] = "encoder"


@dataclass(frozen=True)
class AveragedSettings(FinetuningSettings):
    """Settings of training whose result is the moving average of the weights."""

    # Of the average, per step; Mean Teacher's. Early steps have (1 + step) / (10 + step), as in TensorFlow, so that the
    # average spans at most a ninth of the run.
    average_momentum: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        momentum = self.average_momentum
        require(0 <= momentum < 1, "average_momentum", momentum, "lie in [0, 1)")


@dataclass(frozen=True)
class SemiSettings(AveragedSettings):
    """Settings of training on labelled slices and, with the labels of a momentum teacher, on unlabelled ones."""

    # Unlabelled slices beside every labelled batch, over all ranks; auto: as many as the labelled ones.
    unlabelled_batch_size: int | Literal["auto"] = "auto"
    # Probability that the teacher must give its label; other pixels are ignored (FixMatch; UniMatch on ACDC).
    confidence_threshold: float = 0.95
    # Largest weight of the loss on unlabelled slices; FixMatch's.
    consistency_weight: float = 1.0
    # Epochs over which the weight rises; auto: a quarter of the run (Mean Teacher: 80 of 300).
    rampup_epochs: int | Literal["auto"] = "auto"
    # Probability that a box of another slice is pasted into a student's slice (CutMix; UniMatch on ACDC).
    cutmix: float = 0.5
    # Regular expression that maps a case's name to its subject, for datasets without cases.csv.
    subject_pattern: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.unlabelled_batch_size
        require(size == "auto" or size >= 1, "unlabelled_batch_size", size, "be auto or at least 1")
        for name in ("confidence_threshold", "cutmix"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "lie in [0, 1]")
        weight = self.consistency_weight
        require(weight >= 0, "consistency_weight", weight, "not be negative")
        epochs = self.rampup_epochs
        require(epochs == "auto" or epochs >= 0, "rampup_epochs", epochs, "be auto or not negative")
        require_pattern(self.subject_pattern)

    @property
    def rampup(self) -> float:
        """Number of epochs over which the weight rises."""
        return self.num_epochs / 4 if self.rampup_epochs == "auto" else self.rampup_epochs


# Settings of this module that trainers have. Those of modules that import this one are looked up by name.
SETTINGS: tuple[type[Settings], ...] = (
    PretrainingSettings,
    FinetuningSettings,
    EncoderSettings,
    AveragedSettings,
    SemiSettings,
)
METHODS = "nnunet_ssp.methods"
ELSEWHERE = ("nnunet_ssp.staged_settings", METHODS)
# The length of a run, its data, and how a machine computes it; the others say what is learned.
LENGTH_AND_MACHINE = {
    *(
        "num_epochs",
        "iterations_per_epoch",
        "val_iterations_per_epoch",
        "batch_size",
        "warmup_epochs",
        "seed",
    ),
    *("early_stopping", "early_stopping_delta", "subject_pattern", "snapshot_epochs"),
    *("chunk_size", "data_device", "precision", "fused_norm", "memory_format"),
    *("probe", "trust", "adapt", "min_transferred"),
}

S = TypeVar("S", bound=Settings)


def typed_before(settings: str) -> str:
    """Return what stands before a command in a POSIX shell, so that it has these settings; nothing for none.

    >>> typed_before("recipe=few num_epochs=25")
    "nnUNet_ssp_settings='recipe=few num_epochs=25' "
    """
    return f"{ENVIRONMENT_VARIABLE}={shlex.quote(settings)} " if settings else ""


def from_environment(defaults: S) -> tuple[S, list[str]]:
    """Apply the environment variable to the defaults, see `override`."""
    return override(defaults, os.environ.get(ENVIRONMENT_VARIABLE, ""))


def override(defaults: S, text: str) -> tuple[S, list[str]]:
    """Apply `"name=value name=value"` to the defaults.

    Values are integers, floats, `none`, `yes`, `no` and names, as the type of each setting allows.

    Returns:
        The new settings, and the names and recipes that only other trainers know, which were ignored.

    Raises:
        ValueError: A word without `=`, a name that is given twice or that no trainer knows, a value of the wrong kind
            or out of its range. The message lists the valid names.

    >>> settings, ignored = override(TrainingSettings(), "num_epochs=5 momentum=0.9")
    >>> settings.num_epochs, ignored
    (5, ['momentum'])
    """
    given: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if word.endswith((",", ";")):
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE}: {word!r} must not end with {word[-1]!r}: {_SPACES}."
            )
        if not equals or not name or not value:
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE}: {word!r} must have the form name=value, without blanks around =."
            )
        # A text takes what follows it, too.
        if (joined := re.search(r"[,;](\w+)=", value)) and joined[1] in _all_names():
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {word!r} holds `{joined[1]}`: {_SPACES}.")
        if name in given:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: `{name}` is given twice.")
        given[name] = value

    types_of = setting_types(type(defaults))
    foreign = [name for name in given if name not in types_of]
    known = _all_names() if foreign else set()
    if unknown := [name for name in foreign if name not in known]:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: no setting is called {', '.join(unknown)}.{nearest(unknown[0], types_of, 1)} "
            f"Valid here: {', '.join(sorted(types_of))}."
        )
    if "recipe" in types_of and _is_of_others(given.get("recipe"), defaults):
        foreign.append(f"recipe={given.pop('recipe')}")
    try:
        for name in (name for name in foreign if name in given):
            _check_foreign(name, given[name])
        values = {
            k: parse_value(k, text, types_of[k]) for k, text in given.items() if k in types_of
        }
    except ValueError as error:
        commas = f" {_SPACES.capitalize()}." if {",", ";"} & {*text} else ""
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: {error}{commas} Valid here: {', '.join(sorted(types_of))}."
        ) from None
    recipe = defaults.recipes.get(values.get("recipe", ""), {})
    return replace(defaults, **{**recipe, **values}), foreign


def _check_foreign(name: str, text: str) -> None:
    """Raise a `ValueError` unless some trainer takes this value; it may hold the settings that follow it."""
    own = [types for cls in _all_settings() if name in (types := setting_types(cls))]
    errors = []
    for types in own:
        try:
            parse_value(name, text, types[name])
            return
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _is_of_others(recipe: str | None, settings: Settings) -> bool:
    """Whether a recipe is another trainer's alone: one exported variable serves pretraining and fine-tuning."""
    if not recipe or recipe in get_args(setting_types(type(settings))["recipe"]):
        return False
    return any(recipe in get_args(setting_types(cls).get("recipe")) for cls in _all_settings())


def learned_by(method: str, recorded: Mapping[str, Any]) -> str:
    """Return what a pretraining set otherwise than its method does by default, as it is typed.

    Left out are its length, its data, and how the machine computed it.

    Args:
        method: Name of its method.
        recorded: Its settings.

    Returns:
        Words of the environment variable; empty for the defaults, for an unknown method and for values that are none.
    """
    defaults = next(
        (m.settings_class() for m in import_module(METHODS).METHODS if m.__name__ == method), None
    )
    if defaults is None:
        return ""
    known = setting_types(type(defaults)).keys() & recorded.keys() - LENGTH_AND_MACHINE
    text = ""
    try:
        # A recipe first: it stands for others.
        for name in sorted(known, key=lambda name: (name != "recipe", name)):
            value = as_word(recorded[name])
            if len(value.split()) != 1:
                return ""
            if value != as_word(getattr(override(defaults, text)[0], name)):
                text = f"{text} {name}={value}".lstrip()
        override(defaults, text)
    except ValueError:
        return ""
    return text


def _all_settings() -> tuple[type[Settings], ...]:
    return (*SETTINGS, *(cls for name in ELSEWHERE for cls in import_module(name).SETTINGS))


def _all_names() -> set[str]:
    return {name for cls in _all_settings() for name in setting_types(cls)}


def setting_types(cls: type[Settings]) -> dict[str, Any]:
    """Return the type of each setting, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}
