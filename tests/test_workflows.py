"""The workflows on GitHub: files that its parser takes, and commands of the Makefile. And the Dockerfile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("no workflows in this checkout", allow_module_level=True)
every_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)


def read(file: Path) -> dict[str, Any]:
    """Content of a workflow; YAML 1.1 takes its key `on` for true."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


@every_workflow
def test_its_form(file: Path) -> None:
    content = read(file)
    assert {"name", "on", "permissions", "env", "jobs"} == content.keys()
    for name, job in content["jobs"].items():
        assert job["runs-on"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), (name, step)


@every_workflow
def test_what_it_names_exists(file: Path) -> None:
    targets = re.findall(r"^([\w$(){}/.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = [target.replace("$(VENV)", ".venv") for target in targets]
    for name, job in read(file)["jobs"].items():
        lists = job.get("strategy", {}).get("matrix", {}).get("include", [])
        for step in job["steps"]:
            for target in re.findall(r"^make (\S+)$", step.get("run", ""), re.MULTILINE):
                assert target in targets, (name, target)
            for key in re.findall(r"matrix\.([\w-]+)", str(step)):
                assert any(key in row for row in lists), (name, key)


def test_the_oldest_releases_are_those_that_we_allow() -> None:
    """The lower bounds of pyproject.toml, to the last digit: `==2.8.*` would install the newest of them."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (row,) = (
        row
        for file in WORKFLOWS
        for row in read(file)["jobs"].get("test", {"strategy": {"matrix": {"include": []}}})[
            "strategy"
        ]["matrix"]["include"]
        if row["needs"] == "oldest"
    )
    assert f'requires-python = ">={row["python"]}"' in project
    pinned = dict(word.split("==") for word in row["install"].split())
    assert pinned.keys() == {"nnunetv2", "torch"}
    for name, version in pinned.items():
        bound = re.search(rf'"{name}>=([\d.]+)', project)
        assert bound is not None and version == f"{bound[1]}.0", name


def test_a_release_is_tried_as_a_stranger_does() -> None:
    (steps,) = (
        read(f)["jobs"]["release"]["steps"] for f in WORKFLOWS if "release" in read(f)["jobs"]
    )
    commands = re.findall(r"fresh/bin/nnunet-ssp (\w+)", steps[-1]["run"])
    assert commands == ["env", "doctor", "phantom", "convert"]


def test_the_slow_tests_run_on_a_schedule_and_by_hand() -> None:
    content = read(ROOT / ".github" / "workflows" / "tests.yml")
    assert {"schedule", "workflow_dispatch"} <= content["on"].keys()
    (job,) = (
        job
        for job in content["jobs"].values()
        if any(step.get("run") == "make test-slow" for step in job["steps"])
    )
    for event in ("schedule", "workflow_dispatch"):
        assert f"github.event_name == '{event}'" in job["if"]


@every_workflow
def test_it_follows_githubs_schema(file: Path) -> None:
    """The schema comes with the package: nothing is downloaded."""
    pytest.importorskip("check_jsonschema")
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    done = subprocess.run([*check, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    with pytest.raises(AssertionError, match="runs-on"):
        test_it_follows_githubs_schema(wrong)


def test_the_dockerfile_has_no_complaint() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_workflow
def test_the_linter_has_no_complaint(file: Path) -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([actionlint, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_workflow
def test_it_says_that_it_has_not_run_yet(file: Path) -> None:
    """To be removed with the comment, once it has."""
    assert file.read_text().startswith("# Untested: ")
