"""`nnunet-ssp train` under torchrun: two machines, here two torchruns on one, equal one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.study.job import main as job_main
from nnunet_ssp.study.jobs import Job
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.workflow import WORKFLOW, write_workflow
from nnunet_ssp.training import launched
from tests.training.on_ranks import (
    AFTER_ONE_STEP,
    METHODS,
    OPTIMIZERS,
    OTHERS,
    keep_first,
    kept_name,
    name_of,
    settings_of,
)
from tests.warm import ROOT

MINUTE = 60
CONTRASTING, DISTILLING = ("SimCLR", "PCL"), ("DINO", "BYOL")
RECONSTRUCTING = tuple(name for name in METHODS if name not in CONTRASTING + DISTILLING)
GROUPS = {"reconstructing": RECONSTRUCTING, "contrasting": CONTRASTING, "distilling": DISTILLING}
HERE = Path(sys.executable).parent
COMMAND = ("--no-python", HERE / "nnunet-ssp", "train", "901", "2d", "0", "-p", "tiny")
MIM = ("-tr", name_of("MIM"), "-device", "cpu")

Start = Callable[..., list[subprocess.Popen[bytes]]]


@pytest.fixture
def two_nodes(preprocessed: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts one process on each of two machines; what machine N prints is in `nodeN.txt`."""
    running: list[subprocess.Popen[bytes]] = []

    def start(
        *words: object, settings: tuple[str, str] = ("", ""), second: Path = preprocessed
    ) -> list[Any]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        torchrun = [HERE / "torchrun", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
        for number, own in enumerate(settings):
            environment = {
                **os.environ,
                **{"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                "nnUNet_ssp_settings": own,
                "nnUNet_preprocessed": str((preprocessed, second)[number].parent),
            }
            with open(tmp_path / f"node{number}.txt", "wb") as log:
                running.append(
                    subprocess.Popen(
                        [*map(str, torchrun), *map(str, words)],
                        env=environment,
                        cwd=ROOT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        return running

    yield start
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait(MINUTE)


def said(tmp_path: Path) -> str:
    return "\n".join((tmp_path / f"node{number}.txt").read_text() for number in (0, 1))


Tensors = dict[str, torch.Tensor]


def weights(file: Path) -> Tensors:
    """The network, and what the method has beside it: heads, and the teacher where there is one."""
    content = torch.load(file, weights_only=True)
    beside = tensors_in(content["ssp_state"]["method"]) if "ssp_state" in content else {}
    return content["network_weights"] | beside


def tensors_in(state: Any, name: str = "beside") -> Tensors:
    """Floating tensors of nested mappings and lists, by their place."""
    if isinstance(state, torch.Tensor):
        return {name: state} if state.is_floating_point() else {}
    parts = state.items() if isinstance(state, dict) else ()
    parts = enumerate(state) if isinstance(state, list | tuple) else parts
    return {k: t for key, part in parts for k, t in tensors_in(part, f"{name}.{key}").items()}


def apart(own: Tensors, theirs: Tensors) -> float:
    """Distance of two networks, relative to the norm of the second."""
    assert own.keys() == theirs.keys()
    distance = sum(float((own[k].double() - theirs[k].double()).square().sum()) for k in own)
    return (distance / sum(float(t.double().square().sum()) for t in theirs.values())) ** 0.5


def assert_near(found: Path, expected: Path, relative: float) -> None:
    own, theirs = weights(found), weights(expected)
    assert apart(own, theirs) <= relative, (found, apart(own, theirs))
    # The network alone, too: next to a teacher a student's difference must not be lost.
    own, theirs = (
        {k: t for k, t in tensors.items() if not k.startswith("beside")}
        for tensors in (own, theirs)
    )
    assert apart(own, theirs) <= relative, (found, apart(own, theirs))


# Of the weights' norm, twice what two ranks may differ by after a step: the test of equality can fail.
LEAST_MOVED = 2e-6


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("run", [*METHODS, *OPTIMIZERS, *OTHERS])
def test_the_first_step_moves_the_weights(runs, no_pictures, one_thread, monkeypatch, run):
    trainer = runs.make(name_of(run), settings_of(run))
    begins, start = trainer.on_train_start, {}

    def beginning() -> None:
        begins()
        start.update({k: t.clone() for k, t in trainer.method.network.state_dict().items()})

    def ending() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "on_train_start", beginning)
    monkeypatch.setattr(trainer, "on_epoch_end", ending)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    encoder = [key for key in start if key.startswith("encoder.")]
    after = trainer.method.network.state_dict()
    assert apart(*({k: state[k] for k in encoder} for state in (after, start))) > LEAST_MOVED


@pytest.mark.slow
@pytest.mark.heavy
def test_other_optimizers_on_two_machines(two_nodes, runs, tmp_path, no_pictures, one_thread):
    """One step with LARS and one with AdamW.

    The first step of AdamW is the sign of the gradient times the rate. Where a gradient is zero but for rounding its
    sign is chance, so that weights may differ by two whole steps. The moments show that both have the same gradients.
    """
    nodes = two_nodes("-m", "tests.training.on_ranks", *OPTIMIZERS)
    assert [node.wait(15 * MINUTE) for node in nodes] == [0, 0], said(tmp_path)[-4000:]
    (tmp_path / "results").rename(tmp_path / "two")
    for run in OPTIMIZERS:
        trainer = runs.run(name_of(run), settings_of(run))
        final = Path(trainer.output_folder) / "checkpoint_final.pth"
        theirs = tmp_path / "two" / final.relative_to(tmp_path / "results")
        contents = [torch.load(file, weights_only=True) for file in (theirs, final)]
        for curve in ("train_losses", "val_losses"):
            curves = [content["logging"][curve] for content in contents]
            assert len(curves[0]) == 1
            if run.endswith("lars") or curve == "train_losses":
                assert curves[0] == pytest.approx(curves[1], rel=1e-5, abs=1e-6), run
        if run.endswith("lars"):
            assert_near(theirs, final, 1e-6)
            continue
        states = [content["optimizer_state"]["state"] for content in contents]
        for name in ("exp_avg", "exp_avg_sq"):
            moments = [{str(n): one[name] for n, one in state.items()} for state in states]
            assert apart(*moments) <= 1e-4, name


@pytest.mark.slow
@pytest.mark.heavy
def test_other_settings_on_two_machines(two_nodes, runs, tmp_path, no_pictures, one_thread):
    """One step with the methods' own pooling and head norm, with chunks, second frames and augmentation."""
    nodes = two_nodes("-m", "tests.training.on_ranks", *OTHERS)
    assert [node.wait(15 * MINUTE) for node in nodes] == [0, 0], said(tmp_path)[-4000:]
    for run in OTHERS:
        theirs = tmp_path / "results" / kept_name(run)
        alone = runs.run(name_of(run), settings_of(run))
        final = Path(alone.output_folder) / "checkpoint_final.pth"
        logs = [torch.load(file, weights_only=True)["logging"] for file in (theirs, final)]
        for curve in ("train_losses", "val_losses"):
            assert len(logs[0][curve]) == 1
            assert logs[0][curve] == pytest.approx(logs[1][curve], rel=1e-5, abs=1e-6), run
        assert_near(theirs, final, 1e-6)
        shutil.rmtree(final.parent)  # the next run of this method has other settings


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(2700)
@pytest.mark.parametrize("methods", GROUPS.values(), ids=GROUPS)
def test_two_machines_equal_one_process(
    two_nodes, runs, tmp_path, no_pictures, one_thread, monkeypatch, methods
):
    nodes = two_nodes("-m", "tests.training.on_ranks", *methods)
    assert [node.wait(30 * MINUTE) for node in nodes] == [0, 0], said(tmp_path)[-4000:]
    theirs = tmp_path / "two"
    (tmp_path / "results").rename(theirs)
    for method in methods:
        name, settings = name_of(method), settings_of(method)
        trainer = runs.make(name, settings)
        end = trainer.on_epoch_end
        monkeypatch.setattr(
            trainer, "on_epoch_end", lambda t=trainer, end=end: (end(), keep_first(t))
        )
        trainer.run_training()
        folder = Path(trainer.output_folder)
        other = theirs / folder.relative_to(tmp_path / "results")
        assert_near(other / AFTER_ONE_STEP, folder / AFTER_ONE_STEP, 1e-6)
        final, theirs_final = folder / "checkpoint_final.pth", other / "checkpoint_final.pth"
        assert_near(theirs_final, final, 1e-4)
        logs = [torch.load(f, weights_only=True)["logging"] for f in (theirs_final, final)]
        for curve in ("train_losses", "val_losses"):
            assert len(logs[0][curve]) == 20
            assert logs[0][curve] == pytest.approx(logs[1][curve], rel=1e-5, abs=1e-6), method
        # From two ranks to one: the same run, up to rounding.
        alone = tmp_path / "alone" / folder.relative_to(tmp_path / "results")
        shutil.move(folder, alone)
        after_one_step_of(other, folder)
        resumed = runs.make(name, settings, resume=True)
        assert resumed.current_epoch == 1
        resumed.run_training()
        assert_near(final, theirs_final, 1e-4)
        shutil.rmtree(folder)
        after_one_step_of(alone, folder)
    # From one to two.
    nodes = two_nodes("-m", "tests.training.on_ranks", "--c", *methods)
    assert [node.wait(30 * MINUTE) for node in nodes[2:]] == [0, 0], said(tmp_path)[-4000:]
    finals = sorted((tmp_path / "alone").rglob("checkpoint_final.pth"))
    assert len(finals) == len(methods)
    for final in finals:
        gone_on = tmp_path / "results" / final.relative_to(tmp_path / "alone")
        assert_near(gone_on, final, 1e-4)
        curves = [
            torch.load(f, weights_only=True)["logging"]["train_losses"] for f in (gone_on, final)
        ]
        assert len(curves[0]) == 20 and curves[0][0] == curves[1][0]
        assert curves[0] == pytest.approx(curves[1], rel=1e-5, abs=1e-6), final


def after_one_step_of(folder: Path, target: Path) -> None:
    """Make the folder of a run that has ended after one step."""
    shutil.copytree(folder, target)
    (target / "checkpoint_final.pth").unlink()
    (target / AFTER_ONE_STEP).replace(target / "checkpoint_latest.pth")


@pytest.mark.slow
@pytest.mark.heavy
def test_a_run_of_one_process_goes_on_on_two_machines(
    two_nodes, runs, tmp_path, no_pictures, one_thread, monkeypatch
):
    settings = settings_of("MIM")
    trainer = runs.make(name_of("MIM"), settings)
    end = trainer.on_epoch_end
    monkeypatch.setattr(trainer, "on_epoch_end", lambda: (end(), keep_first(trainer)))
    trainer.run_training()
    alone, folder = tmp_path / "alone", Path(trainer.output_folder)
    folder.rename(alone)
    after_one_step_of(alone, folder)
    nodes = two_nodes(*COMMAND, *MIM, "--c", settings=(settings, settings))
    assert [node.wait(5 * MINUTE) for node in nodes] == [0, 0], said(tmp_path)[-4000:]
    assert "Epoch 19" in said(tmp_path) and "Epoch 0\n" not in said(tmp_path)
    assert_near(folder / "checkpoint_final.pth", alone / "checkpoint_final.pth", 1e-4)


SRUN = """#!{python}
import subprocess, sys
words = sys.argv[1:]
machines = int(words[words.index("--ntasks") + 1])
first = next(n for n, word in enumerate(words) if word.endswith("/torchrun"))
running = [subprocess.Popen(words[first:]) for _ in range(machines)]
sys.exit(max(abs(process.wait()) for process in running))
"""


@pytest.mark.slow
@pytest.mark.heavy
def test_a_job_of_a_study_on_two_machines(preprocessed, tmp_path, monkeypatch):
    """With a stand-in for srun, which starts its command once for each machine, here both times on this one."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=os.pathsep)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr("platform.node", lambda: "localhost")
    monkeypatch.chdir(tmp_path)
    folder = f"results/Dataset901_Phantom/{name_of('MIM')}__tiny__2d/fold_0"
    words = ("901", "2d", "0", "-p", "tiny", *MIM)
    job = Job(
        kind="pretrain",
        record="pretraining/MIM/train.json",
        needs=(),
        title="MIM",
        variables={"nnUNet_ssp_settings": "num_epochs=2 iterations_per_epoch=1 batch_size=4"},
        command=("nnUNetv2_train", *words),
        makes=f"{folder}/checkpoint_final.pth",
        log="pretraining/MIM/train.log",
        results="results",
        key="1",
        resumed=("nnUNetv2_train", *words, "--c"),
        latest=f"{folder}/checkpoint_latest.pth",
    )
    write_workflow([job], tmp_path)
    status = job_main([WORKFLOW, job.record, "0", "2", "1", "--", job.line])
    assert status == 0, Path(job.log).read_text()[-4000:]
    assert f"{srun} --nodes 2 " in read_record(Path(job.record))["command"]
    assert Path(job.makes).is_file()


@pytest.mark.slow
@pytest.mark.heavy
def test_a_killed_rank_ends_the_others(two_nodes, tmp_path):
    settings = "num_epochs=1000 iterations_per_epoch=2 batch_size=4"
    nodes = two_nodes(*COMMAND, *MIM, settings=(settings, settings))
    until = time.monotonic() + 5 * MINUTE
    while "Epoch 1\n" not in said(tmp_path):
        assert time.monotonic() < until and nodes[0].poll() is None, said(tmp_path)[-4000:]
        time.sleep(0.5)
    victim = children(nodes[1].pid)[0]
    os.kill(victim, signal.SIGKILL)
    assert nodes[0].wait(MINUTE) != 0 and nodes[1].wait(MINUTE) != 0
    text = said(tmp_path)
    assert re.search(
        r"Rank \d ends, as another of the 2 ranks has gone\. last good checkpoint", text
    )
    assert "torchrun --nnodes 2 --nproc-per-node 1" in text
    assert "--no-python nnunet-ssp train 901 2d 0 -p tiny" in text and "--c" in text


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.mark.slow
@pytest.mark.heavy
def test_machines_with_other_settings_are_refused(two_nodes, tmp_path):
    given = tuple(f"num_epochs=1 batch_size={n}" for n in (4, 6))
    nodes = two_nodes(*COMMAND, *MIM, settings=given)
    assert [node.wait(5 * MINUTE) for node in nodes] == [1, 1]
    message = "rank 1 differs from rank 0, and all ranks must train alike: batch_size: "
    assert message in said(tmp_path)
    assert not list((tmp_path / "results").rglob("*.pth"))


@pytest.mark.slow
@pytest.mark.heavy
def test_machines_with_other_data_are_refused(two_nodes, preprocessed, tmp_path):
    """On the second machine the fold holds out a subject more, which pretraining then leaves out."""
    copy = tmp_path / "copy" / preprocessed.name
    shutil.copytree(preprocessed, copy)
    splits = json.loads((copy / "splits_final.json").read_text())
    splits[0]["val"].append(splits[0]["train"].pop())
    (copy / "splits_final.json").write_text(json.dumps(splits))
    settings = "num_epochs=1 iterations_per_epoch=1 batch_size=4"
    nodes = two_nodes(*COMMAND, *MIM, settings=(settings, settings), second=copy)
    assert [node.wait(5 * MINUTE) for node in nodes] == [1, 1], said(tmp_path)[-4000:]
    assert "rank 1 differs from rank 0, and all ranks must train alike: " in said(tmp_path)
    assert re.search(
        r"cases to train on: \d+ on rank 0, \d+ on rank 1; \w+ differs", said(tmp_path)
    )
    assert not list((tmp_path / "results").rglob("*.pth"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("0", "-tr", "nnUNetTrainerFinetune"), "must be one of our trainers of pretraining"),
        (("x", "-tr", name_of("MIM")), "fold (=x) must be a number, 0 or above, or all"),
        (("9", "-tr", name_of("MIM")), "fold (=9) must be all or one of the 4 folds"),
    ],
)
def test_what_it_does_not_train(preprocessed, capsys, monkeypatch, words, message):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["train", "901", "2d", *words, "-p", "tiny", "-device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_the_folds_that_count_are_those_that_are_trained_on(tmp_path, monkeypatch):
    """As nnU-Net, and nnUNetv2_train with our trainers: a user may have added some."""
    data = SimpleNamespace(prepared=tmp_path, folds=[Fold("first", ("a",), ("b",), "x")])
    monkeypatch.setattr("nnunet_ssp.cohort.dataset.open_dataset", lambda _: data)
    for n in (1, 2):
        with pytest.raises(ValueError, match=rf"\(={n}\) must be all or one of the {n} folds"):
            launched._require_number(f"{n}", "901")
        (tmp_path / "splits_final.json").write_text(
            '[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]'
        )
    launched._require_number("1", "901")


def test_one_process_trains_as_nnunets_command(runs, capsys, monkeypatch, no_pictures, one_thread):
    monkeypatch.setenv("nnUNet_ssp_settings", "num_epochs=1 iterations_per_epoch=1 batch_size=4")
    words = ["train", "Dataset901_Phantom", "2d", "0", "-p", "tiny", *MIM]
    assert main(words) == 0
    line = capsys.readouterr().out.split("Fine-tune with:\n")[1]
    assert line.startswith("nnUNet_ssp_settings='recipe=few num_epochs=75")  # two labelled subjects
    assert " nnUNetv2_train 901 2d 0 -p tiny" in line
