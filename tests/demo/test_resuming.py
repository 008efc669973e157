from __future__ import annotations

import shlex

import pytest

from nnunet_ssp.demo import command as demo
from nnunet_ssp.demo.report import Layout, Step
from nnunet_ssp.demo.resuming import DoneSteps, continued
from tests.demo.conftest import Commands

STEP = Step("pretrain", ("nnUNetv2_train", "999"))


def test_an_interrupted_demo_goes_on(tmp_path, capsys):
    commands = Commands(tmp_path)

    def until_scratch(step):
        if step.name == "scratch":
            (tmp_path / "nnUNet_results").mkdir(exist_ok=True)
            raise KeyboardInterrupt
        commands(step)

    with pytest.raises(KeyboardInterrupt):
        demo.run(output=tmp_path, device="cpu", execute=until_scratch)
    before = [step.name for step in commands.steps]
    demo.run(output=tmp_path, device="cpu", execute=commands)
    after = [step.name for step in commands.steps][len(before) :]
    assert after == ["scratch", "predict_finetune", "predict_scratch"]
    assert capsys.readouterr().out.count("(done before)") == len(before)
    # A finished demo, and one with other arguments, start over.
    assert not (tmp_path / "steps.json").exists()


def test_done_steps_are_those_of_the_same_call(tmp_path):
    file = tmp_path / "steps.json"
    DoneSteps(file, {"length": 1.0}).add(STEP, 2.5)
    assert DoneSteps(file, {"length": 1.0}).seconds == {"pretrain": 2.5}
    assert DoneSteps(file, {"length": 2.0}).seconds == {}
    file.write_text("not json")
    assert DoneSteps(file, {"length": 1.0}).seconds == {}
    DoneSteps(file, {}).forget()
    assert not file.exists()


def test_a_training_with_a_checkpoint_goes_on_from_it(tmp_path):
    layout = Layout(tmp_path, "Phantom")
    words = (
        "nnUNetv2_train 999 2d 0 -tr nnUNetTrainerFinetune -pretrained_weights x.pth -device cpu"
    )
    step = Step("finetune", tuple(shlex.split(words)), "seed=0")
    assert continued(step, layout) == step
    folder = layout.fold("nnUNetTrainerFinetune")
    folder.mkdir(parents=True)
    (folder / "checkpoint_latest.pth").touch()
    resumed = "nnUNetv2_train 999 2d 0 -tr nnUNetTrainerFinetune -device cpu --c"
    assert continued(step, layout) == Step("finetune", tuple(shlex.split(resumed)), "seed=0")
    other = Step("prepare", ("nnunet-ssp", "prepare", "999"))
    assert continued(other, layout) == other
