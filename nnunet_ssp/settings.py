"""Settings of the trainers: frozen dataclasses, changed by one environment variable.

``nnUNet_ssp_settings="num_epochs=5 mask_ratio=0.6" nnUNetv2_train ...`` overrides single settings. A name that another
trainer of ours knows is ignored with a note (one exported variable serves pretraining and fine-tuning); a name that
none knows, and a value of the wrong kind, are refused.
"""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nnunet_ssp.files.patterns import compile_pattern

ENVIRONMENT_VARIABLE = "nnUNet_ssp_settings"


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ``ValueError("`name` (=value) must rule.")`` unless ``holds``."""
    if not holds:
        raise ValueError(f"`{name}` (={value}) must {rule}.")


@dataclass(frozen=True)
class Settings:
    """Base of all settings; subclasses check ranges in ``__post_init__``.

    ``recipes`` are named sets of defaults: ``recipe=NAME`` replaces these defaults before single settings apply. That
    is done by `override`, not by the constructor: a trainer that starts from a recipe has
    ``defaults = override(MIMSettings(), "recipe=deep")[0]``.
    """

    recipes: ClassVar[dict[str, dict[str, Any]]] = {}


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """What every trainer of ours has."""

    num_epochs: int = 1000
    initial_lr: float = 0.01
    seed: int = 0
    early_stopping: int | None = (
        None  # epochs without improvement of the validation loss; none: off
    )
    early_stopping_delta: float = (
        1e-3  # smallest decrease that counts (methods: min_delta of the papers' code)
    )
    trust: bool = False  # open checkpoints that run code when they are opened: one's own files

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

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the settings that have no effect beside the others."""
        return ()


@dataclass(frozen=True)
class PretrainingSettings(TrainingSettings):
    """What every pretraining method has; a method's own settings extend these."""

    num_epochs: int = 100  # de Mooij et al., appendix A: all four methods
    iterations_per_epoch: int | None = None  # none: one pass over all slices, as in the paper
    batch_size: int = 128  # slices, over all ranks
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    momentum: float = 0.9  # of SGD and LARS
    nesterov: bool = False  # of SGD and LARS
    beta1: float = 0.9  # of Adam and AdamW
    beta2: float = 0.999  # of Adam and AdamW
    weight_decay: float = 1e-4
    # Linear rise of the learning rate; auto: 10 epochs, a tenth of a run shorter than 100.
    warmup_epochs: int | Literal["auto"] = 0
    # auto: on CUDA the half precision that suits the method (bf16 for MIM, fp16 for the others), else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_clip: float | None = 12.0  # nnU-Net's; the papers clip nothing (none)
    # Images that go through the network at a time; auto: as many as memory allows; none: the whole batch.
    chunk_size: int | Literal["auto"] | None = "auto"
    data_device: Literal["auto", "device", "host"] = (
        "auto"  # where the slice store lives during training
    )
    subject_pattern: str | None = (
        None  # regular expression: case name -> subject, for data sets without cases.csv
    )
    # Share of the training subjects, drawn with the seed; a smaller share is part of a larger one (Dominic et al.).
    data_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.iterations_per_epoch
        require(steps is None or steps >= 1, "iterations_per_epoch", steps, "be none or at least 1")
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
        try:
            compile_pattern(self.subject_pattern or "")
        except ValueError as error:
            require(False, "subject_pattern", self.subject_pattern, f"be {error}")
        fraction = self.data_fraction
        require(0 < fraction <= 1, "data_fraction", fraction, "lie in (0, 1]")
        chunk = self.chunk_size
        chunk_works = not isinstance(chunk, int) or chunk >= 1
        require(chunk_works, "chunk_size", chunk, "be auto, none or at least 1")

    @property
    def unused(self) -> tuple[str, ...]:
        betas = ("beta1", "beta2")
        return ("momentum", "nesterov") if self.optimizer in ("adam", "adamw") else betas

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of a run."""
        return self.initial_lr

    @property
    def warmup(self) -> float:
        """Epochs of the warm-up, as a number."""
        return min(10, self.num_epochs / 10) if self.warmup_epochs == "auto" else self.warmup_epochs


@dataclass(frozen=True)
class FinetuningSettings(TrainingSettings):
    """Stock nnU-Net's schedule; the batch size and everything else are the plan's."""

    initial_lr: float = 0.005  # de Mooij et al., appendix A; from scratch 0.01
    iterations_per_epoch: int | None = (
        250  # nnU-Net's, also for none, which is pretraining's one pass
    )
    val_iterations_per_epoch: int = 50  # nnU-Net's
    final_validation: bool = True  # predict the whole validation cases at the end, as nnU-Net does
    # What is used of the pretrained file: all that was trained, or only the encoder's.
    transfer: Literal["all", "encoder"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.iterations_per_epoch
        require(steps is None or steps >= 1, "iterations_per_epoch", steps, "be none or at least 1")
        steps = self.val_iterations_per_epoch
        require(steps >= 1, "val_iterations_per_epoch", steps, "be at least 1")


@dataclass(frozen=True)
class EncoderSettings(FinetuningSettings):
    """The encoder's weights alone."""

    transfer: Literal["encoder"] = "encoder"


@dataclass(frozen=True)
class FrozenSettings(FinetuningSettings):
    """Freeze, then fine-tune (Dominic et al.): what was loaded holds still at first."""

    # Epochs of the first stage; auto: until the validation loss stops improving, at most half of the run.
    frozen_epochs: int | Literal["auto"] = "auto"
    frozen_patience: int = 10  # epochs without improvement by early_stopping_delta; theirs
    frozen_lr: float = (
        0.01  # of the first stage: nnU-Net's, for layers that are new; the second has initial_lr
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        epochs = self.frozen_epochs
        require(
            epochs == "auto" or 0 <= epochs < self.num_epochs,
            "frozen_epochs",
            epochs,
            f"be auto or lie in [0, num_epochs={self.num_epochs})",
        )
        patience = self.frozen_patience
        require(patience >= 1, "frozen_patience", patience, "be at least 1")
        require(self.frozen_lr > 0, "frozen_lr", self.frozen_lr, "be positive")

    @property
    def longest_frozen(self) -> int:
        """Epochs after which the first stage ends in any case."""
        epochs = self.frozen_epochs
        return self.num_epochs // 2 if epochs == "auto" else epochs


@dataclass(frozen=True)
class WarmupSettings(FinetuningSettings):
    """Warm up the decoder alone, then everything."""

    initial_lr: float = 1e-3
    # Epochs of the two warm-ups; auto: 50 (12,500 steps) each, a twentieth of a run shorter than 1000.
    warmup_decoder_epochs: int | Literal["auto"] = "auto"
    warmup_all_epochs: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup_decoder_epochs", "warmup_all_epochs"):
            epochs = getattr(self, name)
            rule = "be auto or not negative"
            require(epochs == "auto" or epochs >= 0, name, epochs, rule)
        total = sum(self.warmups)
        rule = f"be below num_epochs={self.num_epochs}"
        require(total < self.num_epochs, "warmup_decoder_epochs + warmup_all_epochs", total, rule)

    @property
    def warmups(self) -> tuple[int, int]:
        """Epochs of the two warm-ups, as numbers."""
        auto = min(50, math.ceil(self.num_epochs / 20), (self.num_epochs - 1) // 2)
        decoder, everything = self.warmup_decoder_epochs, self.warmup_all_epochs
        return (
            auto if decoder == "auto" else decoder,
            auto if everything == "auto" else everything,
        )


S = TypeVar("S", bound=Settings)


def from_environment(defaults: S) -> tuple[S, list[str]]:
    """Settings after the overrides of the environment, and the names in it that belong to other trainers."""
    return override(defaults, os.environ.get(ENVIRONMENT_VARIABLE, ""))


def override(defaults: S, text: str) -> tuple[S, list[str]]:
    """Apply ``"name=value name=value"`` to ``defaults``.

    Values are integers, floats, ``none``, ``yes``/``no`` and names, as the type of each setting allows.

    Returns:
        The new settings, and the names that only other settings classes know, which were left alone.

    Raises:
        ValueError: a word without ``=``, a name given twice or known to no trainer, a value of the wrong kind or
            out of its range; the message lists the valid names.
    """
    given: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if word.endswith((",", ";")):
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE}: {word!r} must not end with {word[-1]!r}: settings are separated by spaces, "
                "no commas."
            )
        if not equals or not name or not value:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {word!r} must have the form name=value.")
        if name in given:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: `{name}` is given twice.")
        given[name] = value

    types_of = _types(type(defaults))
    foreign = [name for name in given if name not in types_of]
    known_elsewhere = {name for other in _subclasses(Settings) for name in _types(other)}
    unknown = [name for name in foreign if name not in known_elsewhere]
    if unknown:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: no setting is called {', '.join(unknown)}. "
            f"Valid here: {', '.join(sorted(types_of))}."
        )
    try:
        values = {k: _parse(k, text, types_of[k]) for k, text in given.items() if k in types_of}
    except ValueError as error:
        commas = " Settings are separated by spaces, no commas." if "," in text else ""
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}: {error}{commas} Valid here: {', '.join(sorted(types_of))}."
        ) from None
    recipe = defaults.recipes.get(values.get("recipe", ""), {})
    return replace(defaults, **{**recipe, **values}), foreign


def as_word(value: object) -> str:
    """A value as it is typed in the environment variable."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def differences(old: dict[str, Any], new: Settings) -> list[str]:
    """Lines ``name: old -> new`` for each setting that differs.

    One that is missing in ``old``, of a version that did not have it, counts as its default; one that there is no more
    as different.
    """
    now = asdict(new)
    before = {**asdict(type(new)()), **old}
    names = [name for name in before if before[name] != now.get(name)]
    return [f"{name}: {before[name]} -> {now.get(name)}" for name in names]


def _types(cls: type[Settings]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _subclasses(cls: type[Settings]) -> Iterator[type[Settings]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    return (
        list(get_args(annotation))
        if get_origin(annotation) in (Union, types.UnionType)
        else [annotation]
    )


# As people write numbers. Python also reads 1_0, inf and the digits of other scripts; more digits have no setting.
_NUMBERS = {
    int: r"[+-]?[0-9]{1,18}",
    float: r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?",
}


def _parse(name: str, text: str, annotation: Any) -> Any:
    alternatives = _alternatives(annotation)
    for kind in alternatives:
        if kind is type(None) and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("yes", "no"):
            return text.lower() == "yes"
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind in _NUMBERS and re.fullmatch(_NUMBERS[kind], text):
            number = kind(text)
            if math.isfinite(number):  # 1e400 is not
                return number
    if str in alternatives:
        return text
    raise ValueError(
        f"`{name}` (={text}) must be {' or '.join(_describe(kind) for kind in alternatives)}."
    )


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {
        int: "an integer",
        float: "a number",
        bool: "yes or no",
        type(None): "none",
        str: "a text",
    }[kind]
