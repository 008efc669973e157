"""From the text of a study's file to its content: strict YAML, parts for every combination, and sizes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from itertools import product
from typing import Any

import yaml

from nnunet_ssp.console import nearest

AS_IT_IS = "default"  # size that replaces nothing


class StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses a name given twice; PyYAML takes the last one.

    Numbers are decimal: PyYAML reads 1_0 as 10, 1:30 as 90, 010 as 8 and 0b11 as 3.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        merge = "tag:yaml.org,2002:merge"  # `<<`, whose names those beside it may replace
        names = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != merge]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_DECIMAL = {
    "int": r"[+-]?(0|[1-9][0-9]{0,99})",
    "float": r"[+-]?([0-9]{1,99}\.?[0-9]{0,99}|\.[0-9]{1,99})([eE][+-]?[0-9]{1,2})?",
}


def _number(loader: StrictLoader, node: Any) -> int | float:
    text, kind = node.value, node.tag.rpartition(":")[2]
    if not re.fullmatch(_DECIMAL[kind], str(text)):
        rule = "a number must be decimal, as 10 or 0.5; a text is put in quotes"
        raise yaml.constructor.ConstructorError(None, None, f"{text}: {rule}", node.start_mark)
    return int(text) if kind == "int" else float(text)


for _kind in _DECIMAL:
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def expanded(parts: Mapping[Hashable, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield parts as they are, and one with `for` once for every combination of its values, filled in for `{name}`."""
    seen = set()
    for key, part in parts.items():
        values: Mapping[str, list[Any]] = {}
        if isinstance(part, dict) and "for" in part:
            part = dict(part)
            values = part.pop("for")
            if not isinstance(values, dict) or not all(
                isinstance(v, list) for v in values.values()
            ):
                raise ValueError(f"{where}.{key}.for must be names with lists, as `patch: [8, 16]`")
        for combination in product(*values.values()):
            filling = dict(zip(values, combination, strict=True))
            if isinstance(key, bool):  # `yes` and `no`
                raise ValueError(f"{where}.{key}: the name must be put in quotes")
            name = str(_filled(str(key), filling))
            if name in seen:
                raise ValueError(
                    f"{where}.{name} is there twice: its name must hold every name of `for`"
                )
            seen.add(name)
            yield name, _filled(part, filling)


def _filled(content: Any, values: Mapping[str, Any]) -> Any:
    """Put values in place of `{name}`, wherever it stands; a value that stands alone keeps its type."""
    if isinstance(content, dict):
        return {key: _filled(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [_filled(value, values) for value in content]
    if not isinstance(content, str):
        return content
    for name, value in values.items():
        if content == f"{{{name}}}":
            return value
        content = content.replace(f"{{{name}}}", str(value))
    return content


def at_size(content: Mapping[str, Any], size: str | None) -> tuple[dict[str, Any], str | None]:
    """Choose one of the sizes in which a study can be run.

    Args:
        content: Content of a study's file. `by_size` holds parts that replace its own, by the name of the size.
        size: Name of the size; None takes the first.

    Returns:
        The content without `by_size`, and the name of the size; None if the study has but one, or for `default`, which
        leaves the file as it is.

    Raises:
        ValueError: There is no such size.
    """
    content = dict(content)
    sizes = content.pop("by_size", {})
    if not isinstance(sizes, dict) or not all(
        isinstance(name, str) and isinstance(part, dict) for name, part in sizes.items()
    ):
        raise ValueError("by_size must hold the parts of each size, as `cpu: {plans: small}`")
    if size is None and not sizes:
        return content, None
    chosen = next(iter(sizes)) if size is None else size
    if chosen == AS_IT_IS and AS_IT_IS in sizes:
        return content, None
    if chosen not in sizes:
        raise ValueError(
            f"`--size` (={chosen}) must be one of its sizes: {', '.join(sizes) or 'it has none'}."
            f"{nearest(str(chosen), sizes)}"
        )
    return _merged(content, sizes[chosen]), chosen


def _merged(content: Mapping[Any, Any], part: Mapping[Any, Any]) -> dict[Any, Any]:
    """Replace parts of a mapping; mappings in it are merged likewise."""
    merged = dict(content)
    for name, value in part.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
