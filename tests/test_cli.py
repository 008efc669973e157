from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nnunet_ssp
from nnunet_ssp import cli, doctor, phantom
from nnunet_ssp.cli import main
from nnunet_ssp.demo import command as demo
from nnunet_ssp.launch import device_flag, trainers_folder
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation import command as preparation
from nnunet_ssp.preparation.planning import Size
from nnunet_ssp.training import inspection

COMMAND = str(Path(sys.executable).with_name("nnunet-ssp"))
HEAVY = ("torch", "nnunetv2", "matplotlib", "pandas", "nibabel", "SimpleITK", "skimage", "scipy")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA", "nnUNet_npp", "nnUNet_nps"):
        monkeypatch.setenv(name, "1")  # also has what `prepare` sets taken back after the test
    return tmp_path


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "",
        "env",
        "doctor",
        "convert",
        "convert mnms",
        "convert mnms2",
        "convert mnms+mnms2",
        "convert acdc",
        "folds",
        "prepare",
        "train",
        "inspect",
        "phantom",
        "demo",
        "evaluate",
        "bench",
    ],
)
def test_help(words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        main([*words.split(), "--help"])
    assert ending.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: nnunet-ssp {words}".rstrip())
    assert "None" not in output


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        main(["--version"])
    assert ending.value.code == 0
    assert capsys.readouterr().out == f"{nnunet_ssp.__version__}\n"


@pytest.mark.parametrize(
    "words", ["", "paint", "convert", "convert mnms", "prepare", "inspect", "phantom", "evaluate 1"]
)
def test_wrong_usage(words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        main(words.split())
    assert ending.value.code == 2
    assert "usage: nnunet-ssp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--help", "env", "convert mnms --help", "prepare --help", "phantom --help", "evaluate --help"],
)
def test_nothing_heavy_is_imported_to_help(words: str):
    script = (
        "import sys\n"
        "from nnunet_ssp.cli import main\n"
        "try:\n"
        f"    main({words.split()!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('HEAVY', *sorted(sys.modules.keys() & {set(HEAVY)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY"


# -- errors ----------------------------------------------------------------------------------------


def failing(error: BaseException) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError, RuntimeError, FileNotFoundError, FileExistsError])
def test_an_error_is_one_line(
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(inspection, "inspect", failing(error("x.pth: the rule.")))
    assert main(["inspect", "x.pth"]) == 1
    assert capsys.readouterr() == ("", "error: x.pth: the rule.\n")


def test_the_traceback_is_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NNUNET_SSP_TRACEBACK", "1")
    monkeypatch.setattr(inspection, "inspect", failing(ValueError("the rule")))
    with pytest.raises(ValueError, match="the rule"):
        main(["inspect", "x.pth"])


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "inspect", failing(KeyError("x")))
    with pytest.raises(KeyError):
        main(["inspect", "x.pth"])


def test_an_interruption_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(inspection, "inspect", failing(KeyboardInterrupt()))
    assert main(["inspect", "x.pth"]) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prepare 333", "no dataset 333 here"),
        ("prepare heart", "`dataset` (=heart) must be a number (114) or a full name"),
        ("prepare 1 -np 0", "`workers` (=0) must be at least 1."),
        ("convert mnms -i nowhere -d 1", "nowhere: no such folder."),
        ("inspect nowhere.pth", "Checkpoint nowhere.pth does not exist."),
        ("evaluate 333 nowhere", "no dataset 333 here"),
        ("phantom here --labelled 0", "`--labelled` (=0) must be at least 1."),
        ("phantom here --labelled 1 --matrix 16", "`--matrix` (=16) must be at least 32."),
        ("demo --data nowhere", "`--data` (=nowhere) must be an existing folder."),
    ],
)
def test_what_users_get_wrong(
    folders: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "words",
    [
        *("prepare {}", "folds {}", "folds {} --check", "evaluate {} nowhere"),
        *("study acdc-few -d {} --dry-run", "train {} 2d 0 -tr nnUNetTrainerMIMPretrain"),
        "predict -i . -o out -d {}",
    ],
)
@pytest.mark.parametrize("wrong", ["Cine", "Dataset120", "12"])
def test_every_command_lists_the_datasets_there_are(
    folders: Path, words: str, wrong: str, capsys: pytest.CaptureFixture[str]
):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        for name in ("Dataset114_MNMs", "Dataset120_Cine"):
            (Path(os.environ[variable]) / name).mkdir(parents=True, exist_ok=True)
            (Path(os.environ[variable]) / name / "dataset.json").write_text("{}")
    assert main(words.format(wrong).split()) == 1
    assert "Dataset120_Cine, Dataset114_MNMs" in capsys.readouterr().err


def test_variables_that_are_not_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert main(["prepare", "1"]) == 1
    assert "error: The environment variable nnUNet_raw is not set" in capsys.readouterr().err


# -- env -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "{ours}"),
        ("", "{ours}"),
        ("/my own/trainers", "{ours}:/my own/trainers"),
        ("/a:/b", "{ours}:/a:/b"),
        ("/a:{ours}:/b", "{ours}:/a:/b"),
        ("{ours}/:", "{ours}"),
        ("/it's:/$HOME", "{ours}:/it's:/$HOME"),
    ],
)
def test_env_keeps_what_is_there(before: str | None, after: str):
    environment = {name: v for name, v in os.environ.items() if name != "nnUNet_extTrainer"}
    ours = str(trainers_folder())
    if before is not None:
        environment["nnUNet_extTrainer"] = before.format(ours=ours)
    script = f'eval "$({shlex.quote(COMMAND)} env)"; eval "$({shlex.quote(COMMAND)} env)"; '
    script += 'printf "%s" "$nnUNet_extTrainer"'
    command = ["bash", "-ec", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (after.format(ours=ours), "")


def test_env_names_the_folder_of_the_trainers():
    assert (trainers_folder() / "nnUNetTrainerMIMPretrain.py").is_file()


# -- what the commands hand on ---------------------------------------------------------------------


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Record the arguments of the function that a command runs."""
    arguments: dict[str, object] = {}
    for module, name in [(preparation, "prepare"), (inspection, "inspect"), (demo, "run")]:
        monkeypatch.setattr(module, name, lambda **keywords: arguments.update(keywords))
    return arguments


def test_prepare_hands_on_everything(folders: Path, handed_on: dict[str, object]):
    words = "prepare 114 -c 2d 3d_fullres -p P -pl L -gpu_memory_target 0.1 -np 3 --overwrite --any-plane"
    size = ["--patch", "96", "64", "--width", "0.5", "--batch", "12"]
    assert main([*words.split(), "-overwrite_plans_name", "N", *size]) == 0
    assert handed_on == {
        "dataset": "114",
        "configurations": ["2d", "3d_fullres"],
        "plans_name": "P",
        "plans_from": None,
        "planner": "L",
        "gpu_memory_target": 0.1,
        "overwrite_plans_name": "N",
        "workers": 3,
        "overwrite": True,
        "any_plane": True,
        "size": Size((96, 64), 0.5, 12),
    }


def test_the_defaults_of_prepare_are_those_of_its_function(
    folders: Path, handed_on: dict[str, object]
):
    assert main(["prepare", "Dataset114_MNMs"]) == 0
    assert handed_on == {
        "dataset": "Dataset114_MNMs",
        "configurations": ["2d"],
        "plans_name": None,
        "plans_from": None,
        "planner": "ExperimentPlanner",
        "gpu_memory_target": None,
        "overwrite_plans_name": None,
        "workers": None,
        "overwrite": False,
        "any_plane": False,
        "size": Size(),
    }


def test_prepare_starts_few_workers(
    folders: Path, handed_on: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("nnUNet_n_proc_DA")
    monkeypatch.setenv("nnUNet_def_n_proc", "5")
    main(["prepare", "1"])
    assert int(os.environ["nnUNet_n_proc_DA"]) <= 12  # nnU-Net's spelling
    assert os.environ["nnUNet_def_n_proc"] == "5"  # the user's choice


def test_inspect_hands_on_everything(handed_on: dict[str, object]):
    assert main(["inspect", "x.pth", "-d", "114", "-p", "P", "-c", "2d_small"]) == 0
    assert handed_on == {
        "checkpoint": Path("x.pth"),
        "other": None,
        "dataset": "114",
        "plans_name": "P",
        "configuration": "2d_small",
        "trust": False,
        "private": False,
        "strip": None,
    }
    assert main(["inspect", "x.pth", "--trust", "--private", "--strip", "y.pth"]) == 0
    assert [handed_on[name] for name in ("trust", "private", "strip")] == [
        True,
        True,
        Path("y.pth"),
    ]


def test_the_defaults_of_phantom_are_those_of_its_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = []
    defaults = write_mnms.__kwdefaults__
    monkeypatch.setattr(
        phantom, "write_mnms", lambda folder, **sizes: calls.append(sizes) or folder
    )
    assert main(["phantom", "my phantom", "--labelled", "2"]) == 0
    assert calls == [{"labelled": 2, **defaults}]
    assert capsys.readouterr().out.endswith("convert mnms -i 'my phantom' -d 114\n")
    assert main(["phantom", "my phantom", "--labelled", "2", "-d", "120"]) == 0
    assert capsys.readouterr().out.endswith("convert mnms -i 'my phantom' -d 120\n")


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_of_doctor_is_that_of_the_command(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "examine", lambda: status)
    assert main(["doctor"]) == status


# -- the real functions ----------------------------------------------------------------------------


def test_a_phantom_is_that_of_its_function(tmp_path: Path):
    sizes = {"labelled": 1, "unlabelled": 1, "matrix": 32, "frames": 2, "slices": 3, "seed": 4}
    words = [word for name, number in sizes.items() for word in (f"--{name}", str(number))]
    assert main(["phantom", str(tmp_path / "a"), *words]) == 0
    write_mnms(tmp_path / "b", **sizes)
    ours, theirs = (
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*.csv")
        }
        | {
            file.relative_to(tmp_path / name): gzip.decompress(file.read_bytes())
            for file in (tmp_path / name).rglob("*.nii.gz")
        }
        for name in "ab"
    )
    assert ours == theirs and len(ours) == 4


def test_from_a_folder_to_a_prepared_dataset(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "M and Ms"
    write_mnms(source, labelled=1, unlabelled=2, matrix=48, frames=3, slices=3)
    for folder in (source / "Training" / "Labeled").iterdir():
        for file in folder.glob("*_gt.nii.gz"):
            file.unlink()  # a labelled dataset would need nnU-Net's slow fingerprint
    assert main(["convert", "mnms", "-i", str(source), "-d", "7", "--name", "A", "-np", "1"]) == 0
    assert "Next: nnunet-ssp prepare 7" in capsys.readouterr().out
    assert main(["convert", "mnms", "-i", str(source), "-d", "7", "--name", "A"]) == 1
    assert "error: " in (error := capsys.readouterr().err) and "--overwrite" in error
    assert main(["prepare", "7", "-np", "1", "-overwrite_plans_name", "mine"]) == 0
    output = capsys.readouterr().out
    assert "Slice store: 9 frames (0 labelled), 27 slices in" in output
    assert output.endswith(
        "Next: nnUNet_ssp_settings='contrast=0 iterations_per_epoch=50 num_epochs=42' "
        "nnUNetv2_train 7 2d all -p mine "
        f"-tr nnUNetTrainerDensePretrain{device_flag()}\n"
    )
    (folders / "nnUNet_raw" / "Dataset007_A" / "dataset.json").unlink()
    assert main(["prepare", "7"]) == 1
    assert "run nnunet-ssp convert again" in capsys.readouterr().err


def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", cli.__name__, "env"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"export nnUNet_extTrainer=")


@pytest.mark.parametrize(
    "words",
    [
        *("folds 114 --subsets {}", "folds 114 --subsets 1 --seeds {}", "prepare 114 -np {}"),
        *("prepare 114 -gpu_memory_target {}", "evaluate 114 x -np {}", "study x --jobs {}"),
        *("demo --length {}", "convert mnms -i x -d {}", "convert mnms -i x -d 7 -np {}"),
    ],
)
@pytest.mark.parametrize("number", ["\u0662", "0_2", "1_0", "x"])
def test_numbers_are_in_plain_digits(words: str, number: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words.format(number).split())
    assert number in capsys.readouterr().err


def test_one_warning_of_what_nnunet_imports_is_silent(capsys):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main(["env"]) == 0
        warnings.warn("`torch.jit.interface` is deprecated. Please use", FutureWarning, 1)
        warnings.warn("`torch.jit.script` is deprecated. Please use", FutureWarning, 1)
    assert [str(warning.message)[:18] for warning in seen] == ["`torch.jit.script`"]


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in {*action.choices.values()}:
                yield from arguments_of(command)


def test_every_path_is_read_with_its_home():
    """A shell leaves `~` as it is in quotes and after `=`."""
    found = list(arguments_of(cli._parser()))
    assert {"inputs", "checkpoint", "postprocessing", "pth"} <= {action.dest for action in found}
    assert [action.dest for action in found if action.type is Path] == []


@pytest.mark.parametrize(
    "line",
    [
        "folds {}",
        "prepare {}",
        "predict -i FOLDER -d {} -o out",
        "evaluate {} FOLDER",
        "study demooij -d {} --dry-run",
    ],
)
def test_a_dataset_goes_by_its_full_name(line: str, tmp_path: Path, monkeypatch, capsys):
    """Of the same number, and of another name: what is refused is the name."""
    monkeypatch.chdir(tmp_path)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        for name in ("Dataset131_Bar", "Dataset132_Other"):
            (tmp_path / variable / name).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "LV": 1}}
    for name in ("Dataset131_Bar", "Dataset132_Other"):
        content = json.dumps({**about, "file_ending": ".nii.gz", "numTraining": 0})
        (tmp_path / "nnUNet_raw" / name / "dataset.json").write_text(content)
    (tmp_path / "FOLDER").mkdir()
    assert main(line.format("Dataset131_Foo").split()) == 1
    assert "Dataset131_Foo" in capsys.readouterr().err
