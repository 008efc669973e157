"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[1] / "nnunet_ssp"


def with_examples() -> list[str]:
    """Names of the package's modules that have an example; none of them is imported for that."""
    files = sorted(file for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text())
    names = (file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files)
    return [".".join(part for part in name if part != "__init__") for name in names]


def examples_of(module: ModuleType) -> doctest.TestResults:
    """Run a module's examples; what is wrong with them is printed."""
    return doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("name", with_examples())
def test_examples_are_true(name: str, one_thread: None) -> None:
    found = examples_of(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_a_wrong_example_is_found() -> None:
    module = ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n>>> 1 + 1\n2\n"
    assert examples_of(module) == (1, 2)


@pytest.mark.parametrize("name", ["losses", "views", "masking", "squares"])
def test_every_public_function_has_an_example(name: str) -> None:
    module = importlib.import_module(f"nnunet_ssp.methods.parts.{name}")
    functions = [
        f for n, f in vars(module).items()
        if callable(f) and not isinstance(f, type) and getattr(f, "__module__", "") == module.__name__
        and not n.startswith("_")
    ]  # fmt: skip
    assert len(functions) > 3
    assert [f.__name__ for f in functions if ">>> " not in (f.__doc__ or "")] == []
