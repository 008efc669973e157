from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssp.training.foreign import VERSION_1, name_foreign, pickled_names
from nnunet_ssp.training.inspection import inspect

WEIGHTS = OrderedDict({"conv.weight": torch.zeros(2, 1, 3, 3)})


def version_1() -> dict[str, Any]:
    """Return a checkpoint as nnU-Net version 1 saves it, with the NumPy numbers in it that the safe loader refuses."""
    losses = [np.float32(0.5), np.float64(0.25)]
    return {
        "epoch": 3,
        "state_dict": WEIGHTS,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "lr_scheduler_state_dict": None,
        "plot_stuff": (losses, losses, [], [np.float64(0.9)]),
        "best_stuff": (0.1, 0.2, 0.3),
        "amp_grad_scaler": {},
    }


class Runs:
    """Runs code when it is unpickled: it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 1.6 and later", "before"])
def test_checkpoints_of_others_are_named(tmp_path: Path, zipped: bool):
    file = tmp_path / "model_final_checkpoint.model"
    torch.save(version_1(), file, _use_new_zipfile_serialization=zipped)
    message = "model_final_checkpoint.model is a checkpoint of nnU-Net version 1"
    with pytest.raises(ValueError, match=message):
        inspect(file)


def test_the_record_of_version_1(tmp_path: Path):
    file = tmp_path / "model_best.model.pkl"
    record = {
        "init": (1, 2),
        "name": "nnUNetTrainerV2",
        "class": "<class>",
        "plans": {"a": np.ones(3)},
    }
    file.write_bytes(pickle.dumps(OrderedDict(record)))
    with pytest.raises(
        ValueError, match=r"the record that nnU-Net version 1 wrote beside model_best"
    ):
        inspect(file)


def test_a_pointer_of_git_lfs(tmp_path: Path):
    file = tmp_path / "checkpoint_final.pth"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(
        ValueError, match=r"checkpoint_final.pth is a git-lfs pointer .*git lfs pull"
    ):
        inspect(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(tmp_path: Path, zipped: bool):
    marker = tmp_path / "ran"
    file = tmp_path / "evil.model"
    torch.save(version_1() | {"x": Runs(marker)}, file, _use_new_zipfile_serialization=zipped)
    assert name_foreign(file).startswith("a checkpoint of nnU-Net version 1")
    with pytest.raises(ValueError, match="nnU-Net version 1"):
        inspect(file)
    assert not marker.exists()


@pytest.mark.parametrize(("padding", "read"), [(0, True), (2**21, False)])
def test_a_pickle_that_unpacks_to_much_more_is_not_read(tmp_path: Path, padding: int, read: bool):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"epoch": b"0" * padding}))
    assert ("epoch" in pickled_names(file)) == read


def test_what_is_shared_is_not_searched_for_pickles(tmp_path: Path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("card.json", "{}")
        archive.writestr("x/data.pkl", pickle.dumps(dict.fromkeys(VERSION_1, 0)))
    assert pickled_names(file) >= VERSION_1 and name_foreign(file) == ""


def test_other_files_have_no_name(tmp_path: Path):
    plain = tmp_path / "checkpoint_final.pth"
    torch.save(
        {"network_weights": WEIGHTS, "init_args": {}, "trainer_name": "nnUNetTrainer"}, plain
    )
    assert "network_weights" in pickled_names(plain) and name_foreign(plain) == ""
    content = plain.read_bytes()
    for number, damaged in enumerate((b"", b"\x80", content[: len(content) // 2], b"text\n" * 9)):
        file = tmp_path / f"{number}.pth"
        file.write_bytes(damaged)
        assert name_foreign(file) == ""
