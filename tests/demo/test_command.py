from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssp import phantom
from nnunet_ssp.cli import main
from nnunet_ssp.demo import command as demo
from nnunet_ssp.demo import report as demo_report
from nnunet_ssp.demo.progress import ProgressBar
from tests.demo.conftest import Commands


def test_runs_each_command_once_in_order(finished):
    commands, _ = finished
    lines = [step.line for step in commands.steps]
    results = "demo/nnUNet_results/Dataset999_Phantom"
    train = "nnUNetv2_train 999 2d 0 -p demoPlans -tr"
    finetuning = (
        "nnUNet_ssp_settings='num_epochs=10 iterations_per_epoch=35 recipe=few val_iterations_per_epoch=5 "
        "final_validation=no seed=0'"
    )
    predict = "nnUNetv2_predict -d 999 -c 2d -f 0 -p demoPlans -tr"
    flags = "--disable_tta -npp 0 -nps 0 -device cpu"
    images = "demo/nnUNet_raw/Dataset999_Phantom/imagesTs"
    assert lines == [
        "nnunet-ssp phantom demo/phantom --labelled 4 --unlabelled 12 --testing 4 --matrix 96 --frames 10 --seed 0",
        "nnunet-ssp convert mnms -i demo/phantom -d 999 --name Phantom",
        "nnunet-ssp prepare 999 -gpu_memory_target 0.1 -overwrite_plans_name demoPlans",
        "nnUNet_ssp_settings='contrast=0 num_epochs=10 iterations_per_epoch=20 batch_size=12 "
        "val_iterations_per_epoch=5 seed=0' "
        f"{train} nnUNetTrainerDensePretrain -device cpu",
        f"{finetuning} {train} nnUNetTrainerFinetune -pretrained_weights {results}/"
        "nnUNetTrainerDensePretrain__demoPlans__2d/fold_0/checkpoint_final.pth -device cpu",
        f"{finetuning} {train} nnUNetTrainerScratch -device cpu",
        f"{predict} nnUNetTrainerFinetune -i {images} -o demo/predictions/nnUNetTrainerFinetune "
        f"{flags}",
        f"{predict} nnUNetTrainerScratch -i {images} -o demo/predictions/nnUNetTrainerScratch "
        f"{flags}",
    ]


def test_prints_each_command_and_the_result(finished):
    commands, printed = finished
    for step in commands.steps:
        assert f"\n$ {step.line}\n" in printed
    assert 'export nnUNet_raw="$PWD"/demo/nnUNet_raw\n' in printed
    costs = printed.index("The demo takes about")
    assert costs < printed.index("nnunet-ssp phantom")
    assert demo_report.CAVEAT in printed
    assert "below" not in demo_report.CAVEAT  # on the page the table is below it, here above
    assert printed.endswith("Report: demo/report.html\n")


@pytest.mark.parametrize(
    ("length", "at"),
    [
        (1.0, ", less on a GPU"),
        (0.02, " at full length (here the trainings take 0.02 times as many steps), less on a GPU"),
    ],
)
def test_the_time_is_that_of_the_full_length(length: float, at: str):
    begin = f"The demo takes about ten minutes on two CPU cores{at}, and half a gigabyte in demo. "
    assert demo.costs(Path("demo"), length).startswith(begin)


def test_phantom_step_is_a_call_of_our_phantom(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        phantom, "write_mnms", lambda folder, **sizes: seen.update(sizes, f=folder) or folder
    )
    assert main(demo.phantom_step(tmp_path / "it's", 3).command[1:]) == 0
    assert seen.pop("f") == tmp_path / "it's" / "phantom"
    sizes = {"labelled": 4, "unlabelled": 12, "validation": 0, "testing": 4, "seed": 3}
    assert seen == {**sizes, "matrix": 96, "frames": 10, "slices": None}


def test_intermediate_files_go_and_models_stay(finished):
    left = sorted(path.name for path in Path("demo").iterdir())
    kept = ("logs", "nnUNet_results", "predictions", "report.html", "scores.csv")
    assert left == [demo.MARKER, *kept]
    checkpoints = sorted(path.name for path in Path("demo").rglob("*.pth"))
    assert checkpoints == ["checkpoint_final.pth"] * 3


def test_the_scores_are_kept_for_tables_of_ones_own(finished):
    pd = pytest.importorskip("pandas")
    _, printed = finished
    scores = pd.read_csv("demo/scores.csv")
    assert list(scores) == ["model", "subject", "case", "class", "dice"]
    assert scores.groupby("model").size().to_dict() == {"Fine-tuned": 12, "From scratch": 12}
    assert set(scores["class"]) == {"LV", "MYO", "RV"}
    mean = scores.groupby(["model", "class", "subject"])["dice"].mean().groupby("model").mean()
    (line,) = (line for line in printed.splitlines() if line.startswith("Mean "))
    assert [float(word) for word in line.split()[1:]] == pytest.approx(list(mean), abs=6e-4)


def test_keep_keeps_everything(tmp_path):
    demo.run(output=tmp_path, device="cpu", keep=True, execute=Commands(tmp_path))
    assert (tmp_path / "nnUNet_raw").is_dir()
    assert len(list(tmp_path.rglob("*.pth"))) == 9


def test_own_data_without_test_subjects_are_compared_on_the_validation_subjects(tmp_path):
    (tmp_path / "M and Ms").mkdir()
    commands = Commands(tmp_path / "demo", testing=0)
    demo.run(tmp_path / "M and Ms", tmp_path / "demo", device="cpu", execute=commands)
    convert = commands.steps[0]
    assert convert.name == "convert"
    assert f"-i '{tmp_path}/M and Ms' -d 999 --name MNMs" in convert.line
    fold = json.loads((commands.layout.raw / "splits_final.json").read_text())[0]
    images = sorted(path.name for path in (tmp_path / "demo" / "imagesVal").iterdir())
    assert images == [f"{case}_0000.nii.gz" for case in fold["val"]]
    predict = commands.steps[-1].command
    assert predict[predict.index("-i") + 1] == str(tmp_path / "demo" / "imagesVal")
    html = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "2 frames of 1 subject: the validation subjects of fold 0 (these data have" in html
    assert commands.layout.raw.is_dir()  # own data are kept


def test_data_without_two_labelled_training_subjects_are_refused_before_they_are_prepared(tmp_path):
    commands = Commands(tmp_path, labelled=1)
    with pytest.raises(ValueError, match=r"Phantom must have at least two labelled"):
        demo.run(output=tmp_path, device="cpu", execute=commands)
    assert [step.name for step in commands.steps] == ["phantom", "convert"]


def test_number_of_steps_follows_patch_batch_and_length():
    layout = demo.Layout(Path("demo"), "Phantom")

    def iterations(patch: int, batch: int, length: float) -> list[int]:
        plan = {"patch_size": [patch, patch], "batch_size": batch}
        steps = demo.training_steps(layout, "cpu", plan, length, 0)
        settings = [dict(pair.split("=") for pair in s.settings.split()) for s in steps]
        return [int(s["iterations_per_epoch"]) for s in settings]

    assert iterations(96, 4, 1) == [20, 35, 35]
    assert iterations(192, 4, 4) == [20, 35, 35]
    assert iterations(96, 2, 2) == [40, 140, 140]
    assert iterations(96, 4, 1e-6) == [1, 1, 1]


@pytest.mark.parametrize("length", [0, -1, float("nan"), float("inf")])
def test_length_is_checked(tmp_path, length):
    with pytest.raises(ValueError, match=r"`--length` \(=.*\) must be above 0"):
        demo.run(output=tmp_path, length=length)


def test_arguments_are_the_keywords_of_run(monkeypatch):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    monkeypatch.setattr(demo, "run", lambda **keywords: keywords)
    assert demo.run_arguments(parser.parse_args([]), "") == {
        "data": None,
        "output": Path("demo"),
        "device": None,
        "length": 1.0,
        "seed": 0,
        "keep": False,
        "warm": True,
    }
    line = "--data a --output b --device mps --length 2 --seed 3 --keep --no-warm"
    assert demo.run_arguments(parser.parse_args(line.split()), "") == {
        "data": Path("a"),
        "output": Path("b"),
        "device": "mps",
        "length": 2.0,
        "seed": 3,
        "keep": True,
        "warm": False,
    }


def test_a_second_run_clears_only_what_a_first_one_made(tmp_path):
    output = tmp_path / "demo"
    demo.open_folder(output)
    (output / "nnUNet_raw").mkdir()
    (output / "report.html").touch()
    (output / "notes.txt").touch()
    demo.open_folder(output)
    assert sorted(path.name for path in output.iterdir()) == [demo.MARKER, "logs", "notes.txt"]


def test_other_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError, match=r"`--output` .* must be new, empty, or the folder of an"):
        demo.open_folder(tmp_path)
    assert (tmp_path / "logs").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`--output` .* must be new, empty"):
        demo.open_folder(tmp_path / "file")


def test_data_must_exist_outside_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`--data` \(=.*none\) must be an existing folder"):
        demo.open_folder(tmp_path / "demo", tmp_path / "none")
    demo.open_folder(tmp_path / "demo")
    (tmp_path / "demo" / "phantom").mkdir()
    with pytest.raises(ValueError, match=r"`--data` .* must not lie in `--output`"):
        demo.open_folder(tmp_path / "demo", tmp_path / "demo" / "phantom")
    assert (tmp_path / "demo" / "phantom").is_dir()


def test_links_in_the_folder_are_removed_but_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    demo.open_folder(tmp_path / "demo")
    (tmp_path / "demo" / "phantom").symlink_to(tmp_path / "precious")
    demo.open_folder(tmp_path / "demo")
    assert (tmp_path / "precious").is_dir()
    assert not (tmp_path / "demo" / "phantom").exists()


def test_environment_keeps_the_users_folders_out_and_his_numbers_in(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/home/user/raw")
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    monkeypatch.setenv("nnUNet_extTrainer", "/home/user/trainers")
    monkeypatch.setenv("nnUNet_ssp_settings", "num_epochs=1")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    environment = demo.demo_environment(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert environment[name] == str(tmp_path / name)
    trainers, users = environment["nnUNet_extTrainer"].split(":")
    assert (Path(trainers) / "__init__.py").is_file()
    assert users == "/home/user/trainers"
    assert environment["nnUNet_n_proc_DA"] == "5"
    assert environment["nnUNet_wandb_enabled"] == "0"
    assert "nnUNet_ssp_settings" not in environment


def test_the_help_tells_what_the_seed_decides(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setenv("COLUMNS", "500")
    assert int(demo.demo_environment(tmp_path)["nnUNet_n_proc_DA"]) > 0, "workers draw unseeded"
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "that of the fine-tunings follows it only where nnUNet_n_proc_DA=0 is exported" in said
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert demo.demo_environment(tmp_path)["nnUNet_n_proc_DA"] == "0"


@pytest.fixture
def runner(tmp_path):
    with ProgressBar(100) as progress:
        yield demo.CommandRunner({"GREETING": "hello", "PYTHONUNBUFFERED": "1"}, tmp_path, progress)


def test_step_runs_with_its_settings_and_writes_its_log(runner, tmp_path):
    code = "import os; print(os.environ['GREETING'], os.environ['nnUNet_ssp_settings'])"
    runner(demo.Step("pretrain", ("python", "-c", code), settings="seed=1"))
    assert (tmp_path / "4_pretrain.log").read_text() == "hello seed=1\n"


def test_failed_step_shows_its_command_and_the_end_of_its_log(runner, tmp_path):
    code = "print('\\n'.join(map(str, range(50)))); raise SystemExit('out of luck')"
    with pytest.raises(RuntimeError) as caught:
        runner(demo.Step("prepare", ("python", "-c", code), settings="seed=1"))
    message = str(caught.value)
    assert message.startswith("The step `prepare` failed with exit status 1.\nCommand: nnUNet_ssp_")
    assert shlex.quote(code) in message
    assert f"Log: {tmp_path / '3_prepare.log'}, which ends with:" in message
    assert "\n49\n" in message
    assert "out of luck" in message
    assert "\n5\n" not in message


def test_a_conversion_that_refuses_subjects_goes_on(runner, tmp_path, capsys):
    made = tmp_path / "dataset.json"
    step = demo.Step("convert", ("python", "-c", "raise SystemExit(1)"), made=made)
    with pytest.raises(RuntimeError, match="`convert` failed with exit status 1"):
        runner(step)
    made.touch()
    runner(step)
    log = tmp_path / "2_convert.log"
    assert f"Subjects were refused and left out: see {log}" in capsys.readouterr().out


def test_failed_step_ends_the_demo(tmp_path):
    def fail(step: demo.Step) -> None:
        raise RuntimeError(f"The step `{step.name}` failed")

    with pytest.raises(RuntimeError, match="`phantom` failed"):
        demo.run(output=tmp_path, device="cpu", execute=fail)
    assert not (tmp_path / "report.html").exists()


def test_progress_of_a_training_is_read_from_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("Using splits\n")
    assert demo.trained_part(log) == 0
    log.write_text("t: \nt: Epoch 0\nt: Epoch time: 2.1 s\n\nt: Epoch 4 \nt: train_loss 0.1\n")
    assert demo.trained_part(log) == pytest.approx(4 / demo.EPOCHS)


def test_import_is_light():
    code = "import sys, nnunet_ssp.demo.command; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pandas", "matplotlib", "SimpleITK", "tqdm"} & set(modules)


def test_the_last_line_of_a_log_is_that_of_a_terminal(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"Planning\n\rpreparing:  10%\rpreparing:  50%\n\n")
    assert demo.last_said(log) == "preparing:  50%"


def test_the_last_line_of_a_command_is_shown_while_it_runs(tmp_path, monkeypatch):
    shown = []
    progress = type("Bar", (), {"show": lambda self, *what: shown.append(what)})()

    def run_logged(command, sink, environment, watch):
        sink.write(b"Writing subject 3\n")
        sink.flush()
        watch()
        return 0

    monkeypatch.setattr(demo, "run_logged", run_logged)
    demo.CommandRunner({}, tmp_path, progress)(demo_report.Step("phantom", ("nnunet-ssp",)))
    assert shown == [("phantom", 0.0, "Writing subject 3")]


@pytest.mark.parametrize(
    "words",
    ["", "--data 'my data' --output 'my demo' --device cpu --length 0.5 --seed 3 --keep --no-warm"],
)
def test_an_interrupted_demo_names_the_command_that_goes_on(monkeypatch, capsys, words: str):
    calls = []

    def stopped(
        data=None, output=Path("demo"), device=None, length=1.0, seed=0, keep=False, warm=True
    ):
        calls.append((data, output, device, length, seed, keep, warm))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", stopped)
    assert main(["demo", *shlex.split(words)]) == 130
    said = capsys.readouterr().err
    line = said.partition("The demo goes on where it stopped with: ")[2].splitlines()[0]
    assert line == f"nnunet-ssp demo {words}".rstrip()
    assert main(shlex.split(line)[1:]) == 130
    assert calls[0] == calls[1]
