"""Imports point one way, packages are listed, and the thin trainers are thin (design of the package)."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "nnunet_ssp": "nnunet_ssp",
    "trainers": "nnunet_ssp.trainers",
    "dataset_conversion": "nnunet_ssp.dataset_conversion",
}
# From the pure parts up; a room imports from those of the lines before it. A room or module on a line with another is
# its equal: neither imports the other, but for the pairs in SAME_LINE.
RANKS = (
    "heartbeat files console parallel network schedules timm_unet distributed heart phantom setting_values settings "
    "staged_settings signals nnunet guard warm launch recommended command_line",
    "cohort",
    "slices conversion reporting methods.parts",
    "cohort.dataset cohort.command methods preparation",
    "training",
    "evaluation sharing",
    "demo bench study trainers dataset_conversion predict",
    "doctor",
    "cli",
)
SAME_LINE = {
    ("phantom", "heart"),
    ("timm_unet", "console"),
    ("command_line", "console"),
    ("files", "parallel"),
    ("parallel", "heartbeat"),
    ("nnunet", "files"),
    ("nnunet", "console"),
    ("settings", "console"),
    ("settings", "files"),
    ("settings", "setting_values"),
    ("staged_settings", "settings"),
    ("launch", "files"),
    ("launch", "nnunet"),
    ("launch", "parallel"),
    ("launch", "settings"),
    ("launch", "guard"),
    ("launch", "warm"),
    ("warm", "guard"),
    ("bench", "dataset_conversion"),  # reads the phantom with the converter
    ("bench", "predict"),  # measures its network alone
    ("predict", "dataset_conversion"),  # reads what the converter reads
    ("cohort.command", "cohort.dataset"),
    ("sharing", "evaluation"),  # how many subjects an interval takes
}

LINES_OF_A_MODULE = 500
LINES_OF_A_CLASS = 450
LINES_OF_A_FUNCTION = 80
# Modules without a test file of their own: where they are tested instead.
TESTED_ELSEWHERE = {
    "sharing.arguments": "tests/sharing/test_export.py and test_importing.py, through the commands",
    "training.base": "tests/training/test_repeated_runs.py, test_trust.py and test_pretraining.py",
}
# Public names that several modules have: why.
SHARED_NAMES = {
    "add_arguments": "the command line of each command, called as its module's",
    "run": "the body of each command, called as its module's",
    "main": "the entry of each process, called by name",
    "Array": "each module's short name of a NumPy array",
    "T": "each module's type variable",
}


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = file
    return found


MODULES = modules()


def imports(file: Path) -> set[str]:
    """Full names of everything a file imports, at whatever depth."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else module for name in inner}
    return names


def room(module: str) -> str:
    """The name in RANKS that stands for a module: the longest that it begins with; empty for the package itself."""
    parts = module.split(".")[1:]
    listed = {name for line in RANKS for name in line.split()}
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    found = next((name for name in names if name in listed), "")
    assert found or not parts, f"{module} has no place in RANKS: give it one"
    return found


def rank(module: str) -> int:
    """The line of RANKS that a module stands in; -1 for the package itself, which holds the version only."""
    return next((n for n, line in enumerate(RANKS) if room(module) in line.split()), -1)


ours = [name for name in MODULES if name != "nnunet_ssp"]


@pytest.mark.parametrize("module", ours)
def test_imports_point_downwards(module: str) -> None:
    for name in imports(MODULES[module]):
        if name.startswith("nnunet_ssp.") and name in MODULES and room(name) != room(module):
            allowed = rank(name) < rank(module) or (room(module), room(name)) in SAME_LINE
            assert allowed, f"{module} imports {name}"


def test_imports_have_no_cycle() -> None:
    edges = {m: {n for n in imports(MODULES[m]) if n in MODULES and n != m} for m in ours}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in edges.get(module, ()):
                # A package and its own modules import each other by design of the language.
                if not module.startswith(f"{name}.") and name != "nnunet_ssp":
                    visit(name, (*path, module))
            done.add(module)

    for module in ours:
        visit(module, ())


WITHOUT_NNUNET = [
    "files",
    "setting_values",
    "settings",
    "network",
    "schedules",
    "distributed",
    "heart",
    "phantom",
    "cohort",
    "reporting",
    "methods",
    "methods.parts",
]


@pytest.mark.parametrize("module", [m for m in ours if room(m) in WITHOUT_NNUNET])
def test_methods_know_no_nnunet(module: str) -> None:
    assert not [name for name in imports(MODULES[module]) if name.startswith("nnunetv2")]


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module: str) -> None:
    """Nobody knows their way in a file of a thousand lines."""
    text = MODULES[module].read_text()
    assert len(text.splitlines()) < LINES_OF_A_MODULE
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, functions):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert (node.end_lineno or 0) - first + 1 < LINES_OF_A_FUNCTION, node.name
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno + 1 < LINES_OF_A_CLASS, node.name


@pytest.mark.parametrize("module", [m for m in MODULES if MODULES[m].name != "__init__.py"])
def test_every_module_has_its_tests(module: str) -> None:
    """They lie at the mirrored place, but for those of `TESTED_ELSEWHERE`."""
    parts = module.split(".")[1:]
    mirrored = ROOT / "tests" / Path(*parts).with_name(f"test_{parts[-1]}.py")
    if parts[0] == "trainers":  # thin, tested by name in tests/training
        return
    assert mirrored.is_file() or ".".join(parts) in TESTED_ELSEWHERE, mirrored


def is_alias(node: ast.stmt) -> bool:
    """Whether a statement names a type: `Name = ...`, not a constant in capitals."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return bool(names) and all(
        name[0].isupper() and (len(name) == 1 or not name.isupper()) for name in names
    )


def test_one_name_has_one_meaning() -> None:
    """No two modules define a public class, function or type of one name, but for those of `SHARED_NAMES`.

    Converters and trainers are left out: each has the functions of its kind.
    """
    places: dict[str, list[str]] = {}
    for module in ours:
        if not module.startswith(("nnunet_ssp.trainers", "nnunet_ssp.dataset_conversion")):
            for node in ast.parse(MODULES[module].read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    places.setdefault(node.name, []).append(module)
                elif is_alias(node):
                    places.setdefault(ast.unparse(node.targets[0]), []).append(module)
    several = {n: m for n, m in places.items() if len(m) > 1 and not n.startswith("_")}
    assert {n: m for n, m in several.items() if n not in SHARED_NAMES} == {}
    assert SHARED_NAMES.keys() <= several.keys(), "a name that is no longer shared"


def test_packages_are_listed() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert set(listed) == packages


@pytest.mark.parametrize(
    "file", sorted((ROOT / "trainers").glob("nnUNet*.py")), ids=lambda f: f.stem
)
def test_trainers_are_thin(file: Path) -> None:
    classes = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef)]
    assert [c.name for c in classes] == [file.stem]
    assert ast.get_docstring(classes[0])
    allowed = ("nnunet_ssp.training", "nnunet_ssp.methods")
    assert all(name.startswith(allowed) for name in imports(file))
    assert len(file.read_text().splitlines()) <= 20


def at_once(file: Path) -> set[str]:
    """Full names of everything that a file imports when it is imported itself."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in inner}
    return names


def test_trainers_import_nothing_that_nnunet_does_not() -> None:
    """nnU-Net's command is silent while it imports; ours must add little to that."""
    todo = [name for name in MODULES if name.startswith("nnunet_ssp.trainers.")]
    seen, others = set(todo), set()
    while todo:
        for name in at_once(MODULES[todo.pop()]) - seen:
            seen.add(name)
            if name in MODULES:
                todo.append(name)
            else:
                others.add(name.partition(".")[0])
    nnunets = {
        *("nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures"),
        *("torch", "numpy", "scipy"),
    }
    assert len(seen) > 100 and others - {*sys.stdlib_module_names} == nnunets


def test_nothing_imports_the_trainers() -> None:
    for module, file in MODULES.items():
        assert not [n for n in imports(file) if n.startswith("nnunet_ssp.trainers")], module


def test_the_project_stands_alone() -> None:
    """No path outside the checkout is named anywhere but in the CI script."""
    places = [*MODULES.values(), ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for file in places:
        assert not re.search(r"\.\./shared", file.read_text()), file


def test_a_dataset_is_one_word() -> None:
    """As in nnU-Net, in texts, messages and comments alike."""
    places = [*ROOT.glob("*.md"), *MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    places += [*(ROOT / "docs").glob("*.*"), *(ROOT / "examples").glob("*.ipynb")]
    two_words = re.compile(r"\bdata[ -]sets?\b", re.IGNORECASE)
    texts = [file for file in places if file.is_file()]
    assert [file.name for file in texts if two_words.search(file.read_text("utf-8"))] == []
