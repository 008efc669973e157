"""The record that a command of a study leaves: that it is done, what ran, how long, where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_record(file: Path) -> dict[str, Any]:
    """Read a record; empty where there is none, or one that a crash or another program has left."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "key" in content else {}
