"""YAML files of others, read as plain data or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_yaml(file: str | Path, loader: Any = None) -> Any:
    """Read the plain data of a YAML file, without running anything in it.

    Args:
        file: The file, in UTF-8.
        loader: A subclass of PyYAML's `SafeLoader`, by default `SafeLoader` itself.

    Raises:
        ValueError: It is not UTF-8, not YAML, or not plain data; names file and reason.
    """
    import yaml

    try:
        return yaml.load(Path(file).read_text(encoding="utf-8"), loader or yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a YAML file ({' '.join(str(error).split())}).") from error
    except RecursionError:
        raise ValueError(f"{file}: not a YAML file of ours (it is nested too deeply).") from None
    # PyYAML hands texts to the types that they seem to be, or are said to be, and passes on what those raise.
    # It is "month must be in 1..12" for `2020-13-45`, and an AttributeError for `!!timestamp noon`.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{file}: not a YAML file of ours (a value does not fit its type: {error})."
        ) from error
