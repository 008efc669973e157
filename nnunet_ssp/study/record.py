"""Record of a finished command of a study: what ran, how long, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ssp.files.contents import read_json


def read_record(file: Path) -> dict[str, Any]:
    """Read a record; empty if it is missing, or was left by a crash or another program."""
    try:
        content = read_json(file, dict)
    except (OSError, ValueError):
        return {}
    return content if "key" in content else {}
