"""The record of an import: what it holds, what is printed from it, and what damages do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.launch import device_flag
from nnunet_ssp.preparation.imported import (
    RECORD,
    Imported,
    next_lines,
    record_import,
    recorded_import,
)

TRAINER = "nnUNetTrainerMIMPretrain"


@pytest.fixture
def shared(tmp_path: Path) -> Imported:
    file = tmp_path / "my data" / "heart.zip"
    file.parent.mkdir()
    file.touch()
    return Imported(str(file), "2d", TRAINER, "adapt=yes", "mask_ratio=0.5")


def test_each_plans_know_their_own_file(tmp_path: Path, shared: Imported):
    other = Imported("/data/b.zip", "2d")
    record_import(tmp_path, "a", shared)
    record_import(tmp_path, "b", other)
    assert (recorded_import(tmp_path, "a"), recorded_import(tmp_path, "b")) == (shared, other)
    assert recorded_import(tmp_path, "nnUNetPlans") is None
    record_import(tmp_path, "b", shared)
    assert recorded_import(tmp_path, "b") == shared


def test_plans_that_were_made_anew_came_with_nothing(tmp_path: Path, shared: Imported):
    record_import(tmp_path, "a", None)
    assert not (tmp_path / RECORD).exists()
    for name in ("a", "b"):
        record_import(tmp_path, name, shared)
    record_import(tmp_path, "a", None)
    assert recorded_import(tmp_path, "a") is None
    assert recorded_import(tmp_path, "b") == shared


def test_the_lines_start_from_the_weights(shared: Imported):
    tune, further = next_lines(shared, 908, 0, "my plans", True, "recipe=few")
    end = f"-pretrained_weights {shlex.quote(shared.file)}{device_flag()}"
    assert tune == (
        "Next, to fine-tune from heart.zip: nnUNet_ssp_settings='recipe=few adapt=yes' "
        f"nnUNetv2_train 908 2d 0 -p 'my plans' -tr nnUNetTrainerFinetune {end}"
    )
    assert further == (
        "Or, to pretrain heart.zip further: nnUNet_ssp_settings='mask_ratio=0.5 adapt=yes' "
        f"nnUNetv2_train 908 2d 0 -p 'my plans' -tr {TRAINER} {end}"
    )
    assert next_lines(shared, 908, "all", "a", False, "") == [
        "Next, to pretrain heart.zip further: nnUNet_ssp_settings='mask_ratio=0.5 adapt=yes' "
        f"nnUNetv2_train 908 2d all -p a -tr {TRAINER} {end}"
    ]


def test_a_file_that_is_gone_is_no_next_step(shared: Imported):
    Path(shared.file).unlink()
    (line,) = next_lines(shared, 908, 0, "a", True, "")
    assert line.startswith(f"note: plans a came with {shared.file}, which is gone")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"imported": 3},
        {"imported": {"a": None}},
        {"imported": {"a": {"file": 3}}},
        {"imported": {"a": {"file": "x", "configuration": ["2d"], "trainer": "", "settings": ""}}},
    ],
)
def test_a_damaged_record_is_none(tmp_path: Path, shared: Imported, content: object):
    write_json(tmp_path / RECORD, content)
    assert recorded_import(tmp_path, "a") is None
    record_import(tmp_path, "a", shared)
    assert recorded_import(tmp_path, "a") == shared
