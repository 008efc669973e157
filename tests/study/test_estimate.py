from __future__ import annotations

from dataclasses import replace

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.launch import trainers_folder
from nnunet_ssp.study.estimate import SHIPPED, SHIPPED_CPU, hours, read_speeds
from nnunet_ssp.study.spec import Sizes
from tests.study.conftest import BATCH, SLICES_OF_A_CASE, SUBJECTS
from tests.study.test_runs import planned

SIZES = Sizes(pretraining_slices=100, labelled_slices={}, batch_size=4, patch_size=(64, 64))


def test_hours(tmp_path, data):
    file = tmp_path / "bench.json"
    speeds = {
        "setting": {"name": "a card", "date": "2026-01-01", "side": 64},
        "methods": {"MIM": {"end_to_end_images_per_s": 10.0}},
        "finetuning_images_per_s": 5.0,
    }
    write_json(file, speeds)
    settings = {
        "pretraining": {"num_epochs": 3, "batch_size": 16},
        "finetuning": {"num_epochs": 2, "iterations_per_epoch": 50},
    }
    study, pretrainings, trainings = planned(tmp_path, data, settings=settings)
    # All frames but those of the two validation subjects; half as many pixels as the bench's.
    n = data.pretraining_slices("5-fold-0")
    assert n == (SUBJECTS + 2 - 2) * 2 * SLICES_OF_A_CASE
    pretraining, finetuning = hours(study, (pretrainings, trainings), data, read_speeds(file)) or (
        0,
        0,
    )
    assert pretraining == pytest.approx(3 * (n // 16 * 16) / 10 / 2 / 3600)
    assert finetuning == pytest.approx(4 * 2 * 50 * BATCH / 5 / 2 / 3600)
    models = {"semi": {"trainer": "ScratchSemi"}}
    semi = planned(tmp_path, data, settings=settings, models=models)
    _, doubled = hours(semi[0], semi[1:], data, read_speeds(file)) or (0, 0)
    images = BATCH * (1 + 4 / 3)  # as many unlabelled ones, which the teacher sees, too
    assert doubled == pytest.approx(2 * 2 * 50 * images / 5 / 2 / 3600)
    assert hours(study, (pretrainings, trainings), None, read_speeds(file)) is None
    speeds["methods"] = {"PCL": {"end_to_end_images_per_s": 10.0}}
    write_json(file, speeds)
    with pytest.raises(ValueError, match="must hold the speed of MIM"):
        hours(study, (pretrainings, trainings), data, read_speeds(file))
    del speeds["finetuning_images_per_s"]
    write_json(file, speeds)
    with pytest.raises(ValueError, match="must be what nnunet-ssp bench --json writes"):
        read_speeds(file)


def test_wide_networks_take_longer(tmp_path, data):
    study, *runs = planned(tmp_path, data, settings={"pretraining": {"num_epochs": 3}})
    speeds = replace(read_speeds(SHIPPED), width=None)
    plain = hours(study, tuple(runs), data, speeds)
    narrow = {"architecture": {"arch_kwargs": {"features_per_stage": [16, 32, 64]}}}
    narrower = replace(data, configuration={**data.configuration, **narrow})
    quarter = hours(study, tuple(runs), narrower, replace(speeds, width=1.0))
    assert quarter == pytest.approx([part / 4 for part in plain or ()])
    sized = study.model_copy(update={"prepare": "--width 0.5", "sizes": SIZES})
    assert hours(sized, tuple(runs), None, replace(speeds, width=0.5)) == pytest.approx(
        hours(sized, tuple(runs), None, speeds)
    )


@pytest.mark.parametrize("table", [SHIPPED, SHIPPED_CPU])
def test_the_shipped_tables_have_every_method(table):
    speeds = read_speeds(table)
    trainers = {file.stem for file in trainers_folder().glob("nnUNetTrainer*Pretrain.py")}
    assert {f"nnUNetTrainer{name}Pretrain" for name in speeds.methods} == trainers
    assert "estimated" in speeds.device and speeds.source
