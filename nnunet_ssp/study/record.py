"""The record that a command of a study leaves: that it is done, what ran, how long, where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ssp.files.contents import read_json


def read_record(file: Path) -> dict[str, Any]:
    """Read a record; empty where there is none, or one that a crash or another program has left."""
    try:
        content = read_json(file, dict)
    except (OSError, ValueError):
        return {}
    return content if "key" in content else {}
