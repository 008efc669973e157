"""The defaults on which a study relies where its file names no setting.

`defaults.json` records the first default of every setting, by trainer. A later change of a default is seen by
comparison: a study with `defaults: recorded` is told the recorded value, and trains as it did. In any other study the
new value enters the fingerprint, so that runs with the old one do not pass for new. `docs/make_settings.py` appends
settings that are not recorded, and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_ssp.files.contents import read_json

RECORD = Path(__file__).with_name("defaults.json")
Values = dict[str, Any]


@lru_cache
def _record() -> dict[str, Any]:
    return read_json(RECORD, dict)


def recorded_defaults(trainer: str, settings: Mapping[str, Any]) -> Values:
    """Return the recorded values of the settings that a study does not name.

    Args:
        trainer: Full name of the trainer; there is no record of those from elsewhere.
        settings: The named settings; a recipe among them replaces defaults by its own.
    """
    known = _record().get(trainer, {"defaults": {}, "recipes": {}})
    recipe = known["recipes"].get(str(settings.get("recipe")), {})
    values = {**known["defaults"], **recipe}
    return {name: value for name, value in values.items() if name not in settings}


def changed(trainer: str, settings: Mapping[str, Any], resolved: Mapping[str, Any]) -> Values:
    """Return the settings that a study does not name and that have another value than recorded.

    Args:
        trainer: Full name of the trainer.
        settings: The named settings.
        resolved: The value of every setting as it is now.
    """
    before = recorded_defaults(trainer, settings)
    return {
        name: resolved[name]
        for name, value in before.items()
        if name in resolved and resolved[name] != value
    }
