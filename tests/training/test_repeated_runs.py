"""A finished run that is run again: nothing of the first is lost before the second is done, nor taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

SCRATCH, MIM = "nnUNetTrainerScratch", "nnUNetTrainerMIMPretrain"
SETTINGS = {
    SCRATCH: "num_epochs=2 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no",
    MIM: "num_epochs=2 iterations_per_epoch=2 batch_size=4",
}


def files(trainer: Any) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(trainer.output_folder).glob("*.pth")}


@pytest.mark.parametrize("name", [SCRATCH, MIM])
def test_what_goes_on_is_the_new_run(runs, name):
    first = files(runs.run(name, SETTINGS[name]))
    stopped = runs.interrupt(name, SETTINGS[name])
    kept = files(stopped)
    assert kept["replaced_checkpoint_final.pth"] == first["checkpoint_final.pth"]
    assert "checkpoint_final.pth" not in kept
    resumed = runs.make(name, SETTINGS[name], resume=True)
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert sorted(files(resumed)) == ["checkpoint_best.pth", "checkpoint_final.pth"]


@pytest.mark.parametrize("name", [SCRATCH, MIM])
def test_an_unfinished_run_that_is_begun_again_is_kept_until_the_new_one_is_done(runs, log, name):
    stopped = runs.interrupt(name, SETTINGS[name])
    before = files(stopped)
    again = runs.interrupt(name, SETTINGS[name])
    kept = files(again)
    for file in ("checkpoint_latest.pth", "checkpoint_best.pth"):
        assert kept[f"replaced_{file}"] == before[file]
    assert "holds an unfinished training, which --c would have continued" in log(again)
    finished = runs.make(name, SETTINGS[name], resume=True)
    finished.run_training()
    assert not [file for file in files(finished) if file.startswith("replaced_")]


def test_a_run_that_is_refused_leaves_the_finished_one_alone(runs, own_copy):
    first = files(runs.run(MIM, SETTINGS[MIM]))
    (own_copy / "tiny_2d_slices" / "index.json").write_text("{")
    again = runs.make(MIM, SETTINGS[MIM])
    with pytest.raises(ValueError, match=r"index\.json"):
        again.run_training()
    assert files(again) == first
