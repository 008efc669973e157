"""Every text of the sources that holds a command: a line to paste, the beginning of one, or a word in a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("nnunet_ssp", "trainers", "dataset_conversion")
HOLE = "{}"  # a value in an f-string

# A command and what follows it, up to the end of the clause.
_COMMAND = re.compile(
    r"(?:nnunet-ssp (?=[a-z{])|nnUNetv2_(?=[a-z])|pip install |torchrun |nnUNet_ssp_settings=|"
    r"export (?=[A-Za-z_{}]+=)|mkdir )(?:[^\n.,;:()`#]|\.(?=\S)|:(?=[a-z/]))*"
)
_ALONE = re.compile(r"nnunet-ssp|nnUNetv2_[a-z_]+|cp|export ")  # the first of the words of a line
MAKERS = frozenset(
    {
        *("command", "training_command", "prepare_command"),
        *("planning_command", "moving_command", "predicting_command"),
        "validating_command",
    }
)  # return a line


def mentions(source: str) -> Iterator[str]:
    """Yield each command in a module's texts but for its docstrings, with `{}` for values, and each call for a line."""
    tree = ast.parse(source)
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for function, node in _walk(tree, ""):
        if isinstance(node, ast.Call) and _name(node.func) in MAKERS:
            yield f"{function}() asks {_name(node.func)}()"
        elif isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docs:
            text = _text(node)
            if _ALONE.fullmatch(text):
                yield f"{function}() begins with {text.strip()}"
            else:
                yield from (found[0].strip() for found in _COMMAND.finditer(text))


def all_mentions() -> list[str]:
    """Return those of all sources, each with its file before it, none twice."""
    found = (
        f"{file.relative_to(ROOT).as_posix()}: {mention}"
        for room in ROOMS
        for file in sorted((ROOT / room).rglob("*.py"))
        for mention in mentions(file.read_text(encoding="utf-8"))
    )
    return list(dict.fromkeys(found))


def _walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield nodes with the name of the function around them; parts of an f-string only as its values."""
    if isinstance(node, ast.FunctionDef):
        function = node.name
    yield function, node
    if isinstance(node, ast.JoinedStr):
        children = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _walk(child, function)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(p.value) if isinstance(p, ast.Constant) else HOLE for p in node.values)
