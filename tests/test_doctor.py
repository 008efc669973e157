from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.utilities import find_objects

from nnunet_ssp import doctor
from nnunet_ssp.cli import main
from nnunet_ssp.doctor import Diagnosis, examine
from nnunet_ssp.files import compression
from nnunet_ssp.launch import trainer_paths, trainers_folder

# nnU-Net's search imports all its trainers, and one of them what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
WORKERS = (
    "nnUNet_def_n_proc",
    "nnUNet_n_proc_DA",
    "nnUNet_npp",
    "nnUNet_nps",
    "OMP_WAIT_POLICY",
)


@pytest.fixture(autouse=True)
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a machine without faults; return the parent of nnU-Net's folders."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in WORKERS:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50e9))
    gpu = SimpleNamespace(name="GPU of the test", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    return tmp_path


def bad(findings: Callable[[], object]) -> list[Diagnosis]:
    return [finding for finding in findings() if finding[0] != "ok"]  # type: ignore[attr-defined]


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[-1] == "Ready."
    assert [line[:8].strip() for line in lines[:-2]] == ["ok"] * len(lines[:-2])
    for found in (
        f"nnunet-ssp {metadata.version('nnunet-ssp')}",
        f"nnunetv2 {metadata.version('nnunetv2')}",
        "GB free",
        "nnUNetTrainerFinetune",
        "nnUNetTrainerMIMPretrain",
        "nnUNetTrainerScratch",
        "GPU of the test, 24 GB",
    ):
        assert found in output


def test_failures_are_counted_and_come_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.delenv("nnUNet_extTrainer")
    assert examine() == 1
    output = capsys.readouterr().out
    assert "FAILED   nnUNet_raw is not set\n         -> export nnUNet_raw=/where" in output
    assert output.endswith("\n2 failed\n")


def test_warnings_are_no_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examine() == 0
    assert "warning  no CUDA GPU" in capsys.readouterr().out


# -- versions --------------------------------------------------------------------------------------


def versions(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None]) -> list[Diagnosis]:
    real = metadata.version

    def version(package: str) -> str:
        found = changed.get(package, real(package) if package not in changed else None)
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return bad(doctor._versions)


@pytest.mark.parametrize("version", ["2.5.1", "3.0", "2.8rc1"])
def test_a_version_that_does_not_suit(monkeypatch: pytest.MonkeyPatch, version: str):
    [(verdict, found, advice)] = versions(monkeypatch, {"nnunetv2": version})
    assert (verdict, found) == ("FAILED", f"nnunetv2 {version} is not supported")
    assert shlex.split(advice) == ["pip", "install", "nnunetv2<3,>=2.8"]


def test_local_and_development_versions_suit(monkeypatch: pytest.MonkeyPatch):
    assert versions(monkeypatch, {"torch": "2.9.0+cu128", "nnunetv2": "2.9.dev3"}) == []


def test_a_package_is_missing(monkeypatch: pytest.MonkeyPatch):
    [(verdict, found, advice)] = versions(monkeypatch, {"SimpleITK": None})
    assert (verdict, found) == ("FAILED", "SimpleITK is not installed")
    assert advice.startswith("pip install 'SimpleITK")


def test_we_are_not_installed(monkeypatch: pytest.MonkeyPatch):
    [(verdict, found, advice)] = versions(monkeypatch, {"nnunet-ssp": None})
    assert (verdict, found, advice) == (
        "FAILED",
        "nnunet-ssp is not installed",
        "pip install nnunet-ssp",
    )


@pytest.mark.parametrize("there", [True, False])
def test_fast_gzip_is_optional(monkeypatch: pytest.MonkeyPatch, there: bool):
    monkeypatch.setattr(compression, "WITH_ISAL", there)
    monkeypatch.setattr(metadata, "version", lambda _: "1.2.3")
    [(verdict, found, advice)] = doctor._compression()
    if there:
        assert (verdict, found) == ("ok", "isal 1.2.3 reads and writes .nii.gz")
    else:
        assert (verdict, advice) == ("warning", "pip install isal")


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_folder_is_not_there(healthy: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    missing = healthy / "not there"
    monkeypatch.setenv(variable, str(missing))
    [(verdict, found, advice)] = bad(doctor._folders)
    assert (verdict, found) == ("FAILED", f"{variable}={missing} is not a folder")
    assert shlex.split(advice) == ["mkdir", "-p", str(missing)]


@pytest.mark.parametrize(
    ("variable", "verdict"), [*zip(FOLDERS, ["warning", "FAILED", "FAILED"], strict=True)]
)
def test_a_folder_is_not_writable(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, variable: str, verdict: str
):
    locked = healthy / variable
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != locked)
    assert bad(doctor._folders) == [
        (verdict, f"{variable}={locked} is not writable", "choose a folder of your own")
    ]


def test_a_folder_that_nnunet_reads_otherwise(healthy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(healthy))
    monkeypatch.setenv("nnUNet_raw", "~/raw")
    ((verdict, found, advice),) = bad(doctor._folders)
    assert verdict == "FAILED" and "takes ~ for a folder" in found
    assert advice == f"export nnUNet_raw={healthy}/raw"
    monkeypatch.chdir(healthy)
    monkeypatch.setenv("nnUNet_raw", "nnUNet_raw")
    (healthy / "nnUNet_raw").mkdir(exist_ok=True)
    ((verdict, found, advice),) = bad(doctor._folders)
    assert verdict == "warning" and "another folder in each working folder" in found
    assert advice == f"export nnUNet_raw={healthy / 'nnUNet_raw'}"


@pytest.mark.parametrize(
    "value",
    [
        *(None, "~/my raw", "/srv/~/my raw", "/srv/backup~/~/raw", "/srv/~/~/raw"),
        *("~nobody-is-called-so/raw", "my raw", "/srv/~"),
    ],
)
def test_the_lines_for_folders_work_as_they_are(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
):
    """Each is run in a shell until there is nothing to say; no folder is called ~."""
    home, work = healthy / "my home", healthy / "my work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("nnUNet_extTrainer")
    monkeypatch.delenv("nnUNet_def_n_proc")
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    monkeypatch.chdir(work)
    if value is None:
        monkeypatch.delenv("nnUNet_raw")
    else:
        monkeypatch.setenv("nnUNet_raw", value)

    def findings() -> list[Diagnosis]:
        return [*bad(doctor._folders), *bad(doctor._hardware), *untold()]

    def untold() -> list[Diagnosis]:
        ours = trainers_folder() in map(Path, trainer_paths())
        return [] if ours else [next(doctor._trainers())]

    done = []
    while found := findings():
        line = found[0][2].partition(", also in")[0].replace("/where/you/keep", str(work))
        assert line not in done and "~" not in shlex.split(line)[-1].split("/"), line
        done.append(line)
        shown = subprocess.run(
            ["bash", "-c", f"{line}\nenv -0"], capture_output=True, text=True, check=True
        ).stdout
        for variable in shown.split("\0"):
            name, _, new = variable.partition("=")
            if name.startswith(("nnUNet_", "OMP_")):
                monkeypatch.setenv(name, new)
    assert len(done) >= 3
    assert not [*healthy.rglob("~*")]


def test_there_is_little_space(healthy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3e9))
    for variable, finding in zip(FOLDERS, bad(doctor._folders), strict=False):
        assert finding == (
            "warning",
            f"{variable}={healthy / variable}, 3 GB free",
            "the M&Ms need about 20 GB there",
        )
    assert len(bad(doctor._folders)) == 2  # results need less


# -- trainers --------------------------------------------------------------------------------------


def test_our_folder_is_not_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/somewhere/else")
    [(verdict, found, advice)] = bad(doctor._trainers)
    assert (verdict, found) == ("FAILED", f"nnUNet_extTrainer does not name {trainers_folder()}")
    assert advice.startswith('eval "$(nnunet-ssp env)"')


def test_another_spelling_of_our_folder_will_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", f"{trainers_folder()}/")
    assert bad(doctor._trainers) == []


def test_a_named_folder_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", f"{trainers_folder()}:/not/there: ")
    assert trainer_paths() == [str(trainers_folder()), "/not/there"]
    assert bad(doctor._trainers) == [
        ("warning", "nnUNet_extTrainer names /not/there, which is not a folder", "remove it")
    ]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("import package_of_nobody", "ModuleNotFoundError: No module named 'package_of_nobody'"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
    ],
)
def test_somebody_elses_broken_trainer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, error: str
):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "abroken_trainer.py").write_text(content)
    monkeypatch.setenv("nnUNet_extTrainer", f"{foreign}:{trainers_folder()}")
    [(verdict, found, advice)] = bad(doctor._trainers)
    assert verdict == "FAILED"
    assert re.fullmatch(rf"nnU-Net does not find nnUNetTrainer\w+: {re.escape(error)}", found)
    assert advice.startswith(
        f"repair or remove {foreign}/abroken_trainer.py, where the search ended"
    )
    monkeypatch.setenv("nnUNet_extTrainer", f"{trainers_folder()}:{foreign}")
    assert bad(doctor._trainers) == []


def test_nnunets_own_trainers_are_broken(monkeypatch: pytest.MonkeyPatch):
    def fail(_: str) -> None:
        raise ImportError("no such symbol")

    monkeypatch.setattr(find_objects, "recursive_find_trainer_class_by_name", fail)
    [(verdict, found, advice)] = bad(doctor._trainers)
    assert (verdict, advice) == ("FAILED", "pip install --force-reinstall nnunetv2")
    assert found.endswith("ImportError: no such symbol")


# -- hardware --------------------------------------------------------------------------------------


def test_few_cores_and_nothing_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "available_cores", lambda: 4)
    assert bad(doctor._hardware) == []  # the fixture has set all
    for name in WORKERS:
        monkeypatch.delenv(name)
    [(verdict, found, advice)] = bad(doctor._hardware)
    assert verdict == "warning" and found.startswith("4 cores")
    assert advice == (
        "export nnUNet_def_n_proc=4 nnUNet_n_proc_DA=4 nnUNet_npp=1 nnUNet_nps=1 OMP_WAIT_POLICY=PASSIVE"
    )
    monkeypatch.setattr(doctor, "available_cores", lambda: 16)
    assert bad(doctor._hardware) == []


def test_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    [(verdict, found, advice)] = bad(doctor._hardware)
    assert verdict == "warning" and found.startswith("no CUDA GPU")
    assert "-device cpu" in advice and "-gpu_memory_target 0.1" in advice


def test_the_search_for_trainers_says_how_far_it_is():
    said: list[str] = []
    [(verdict, *_)] = doctor._trainers(said.append)
    names = list(trainers_folder().glob("nnUNetTrainer*.py"))
    assert verdict == "ok"
    assert said == [
        f"         {n} of {len(names)} trainers found so far ..." for n in range(len(names))
    ]
