"""Settings that a checkpoint holds, beside those of the run that goes on from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from nnunet_ssp.setting_values import as_word, parse_value
from nnunet_ssp.settings import S, Settings, override, setting_types


def from_checkpoint(defaults: S, text: str, record: dict[str, Any], but: Collection[str]) -> S:
    """Apply the environment variable's text to the settings of a checkpoint.

    Args:
        defaults: Settings of the trainer.
        text: Names and values, see `override`.
        record: Settings in the checkpoint; those that it lacks have their value in `former`, or the default.
        but: Names that the checkpoint does not decide.

    Raises:
        ValueError: A value breaks its rule.

    >>> from nnunet_ssp.settings import TrainingSettings
    >>> from_checkpoint(TrainingSettings(), "seed=3", {"num_epochs": 7, "seed": 1}, ()).num_epochs
    7
    """
    types_of = setting_types(type(defaults))
    kept = {name: getattr(defaults, name) for name in but if name in types_of}
    values = {
        name: parse_value(name, as_word(value), types_of[name])
        for name, value in {**defaults.former, **record}.items()
        if name in types_of and name not in but
    }
    # The defaults of a recipe that the checkpoint began with are among its settings.
    words = [word for word in text.split() if word != f"recipe={record.get('recipe')}"]
    return override(replace(type(defaults)(), **kept, **values), " ".join(words))[0]


def differences(old: dict[str, Any], new: Settings) -> list[str]:
    """Return a line `name: old -> new` for each setting that differs.

    A setting that `old` lacks, because its version did not have it, counts as its value in `former`, or as its default.
    A setting that exists no more counts as different.
    """
    now = asdict(new)
    before = {**asdict(type(new)()), **new.former, **old}
    names = [name for name in before if before[name] != now.get(name)]
    return [f"{name}: {as_word(before[name])} -> {as_word(now.get(name))}" for name in names]
