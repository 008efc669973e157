"""The messages that `docs/troubleshooting.md` quotes are ones that the code prints."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PYTORCH = "CUDA out of memory"  # written in C++
HOLE = "\0"  # a value in an f-string


def strings(file: Path) -> list[str]:
    """The texts of a file, with f-strings' values left open."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else HOLE for p in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.fixture(scope="module")
def printed() -> str:
    """All texts of this package and of the files of others that print what the page quotes."""
    files = [
        file
        for folder in ("nnunet_ssp", "dataset_conversion")
        for file in (ROOT / folder).rglob("*.py")
    ]
    for name in (
        "nnunetv2.utilities.find_objects",
        "nnunetv2.run.load_pretrained_weights",
        "nnunetv2.run.run_training",
        "torch.jit._script",
        "batchgenerators.dataloading.nondet_multi_threaded_augmenter",
    ):
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        files.append(Path(spec.origin))
    return "\n".join(text for file in files for text in strings(file))


def quoted() -> list[str]:
    rows = re.findall(r"^\| (`.+?) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row.strip("`").strip() for row in rows]


def is_printed(message: str, printed: str) -> bool:
    pattern = "[^\n]*".join(map(re.escape, message.split("...")))
    return re.search(pattern, printed) is not None


@pytest.mark.parametrize("message", quoted())
def test_messages_are_printed(message: str, printed: str) -> None:
    assert message == PYTORCH or is_printed(message, printed), message


def test_the_check_sees_what_is_not_printed(printed: str) -> None:
    assert len(quoted()) > 30
    assert not is_printed("the features have ... evaporated", printed)
