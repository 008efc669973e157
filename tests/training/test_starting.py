"""Trainings from an earlier one's weights, with nnU-Net's own loading: chains, and files of other plans."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.cohort.privacy import findings, hashed_subject, stripped
from nnunet_ssp.files.saving import save
from nnunet_ssp.network import in_encoder, is_output_layer
from nnunet_ssp.training.inspection import inspect
from tests.saved import final, load

MIM, SIMCLR = "nnUNetTrainerMIMPretrain", "nnUNetTrainerSimCLRPretrain"
FINETUNE = "nnUNetTrainerFinetune"
PRETRAIN = "num_epochs=1 iterations_per_epoch=2 batch_size=4"
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def file_of(trainer: Any) -> Path:
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if not is_output_layer(key)}


# -- chains ----------------------------------------------------------------------------------------


def test_generalist_specialist_and_fine_tuning(runs, pretrained, log, tmp_path, capsys):
    """MIM on fold 0, then SimCLR on fold 1, then labels: each begins where the last one ended."""
    specialist = runs.make(SIMCLR, f"{PRETRAIN} probe=no", fold=1, weights=pretrained)
    first = load(pretrained)["network_weights"]
    start = {k: v.clone() for k, v in specialist.method.network.state_dict().items()}
    for key in (k for k in body(start) if in_encoder(k)):
        assert torch.equal(start[key], first[key]), key
    deep = "decoder.stages.0.convs.0.conv.weight"
    assert not torch.equal(start[deep], first[deep])
    assert specialist.stage_change.measure()["encoder 1"] == pytest.approx(0, abs=1e-6)
    assert (
        "Optimizer and learning rate begin anew; the heads of SimCLR are new (the file is of MIM)"
        in log(specialist)
    )
    assert "WARNING: pretraining has seen 1 subject of this fold's validation set" in log(
        specialist
    )
    specialist.run_training()
    record = final(specialist)["ssp"]
    assert [link["method"] for link in record["chain"]] == ["MIM"]
    assert record["weights_from"] == pretrained.name
    everybody = {*record["subjects"], *record["chain"][0]["subjects"]}
    assert len(everybody) > len(record["subjects"]) == record["counts"]["subjects"]

    tuned = runs.run(FINETUNE, SHORT, fold=1, weights=file_of(specialist))
    assert "Trainings behind these weights:\n  1. MIM: " in log(tuned)
    content = final(tuned)
    assert [link["method"] for link in content["ssp"]["chain"]] == ["MIM", "SimCLR"]
    assert everybody <= set(content["ssp"]["subjects"])
    # The generalist alone has seen the validation subject of fold 1.
    assert len(tuned.seen_in_validation) == 1

    assert inspect(file_of(tuned)) == 0
    said = capsys.readouterr().out
    assert "chain of 3 trainings, this one the last:\n  1. MIM: " in said
    assert f"  {len(everybody | set(content['ssp']['subjects']))} subjects seen in all" in said
    assert said.count("cite: ") == 2
    assert {f.what for f in findings(content) if not f.remains} <= {"dataset", "dates", "path"}
    save(tmp_path / "bare.pth", stripped(content))
    assert load(tmp_path / "bare.pth")["ssp"]["chain"] == content["ssp"]["chain"]


def test_a_test_subject_of_an_earlier_link(runs, pretrained, own_copy):
    specialist = runs.run(SIMCLR, f"{PRETRAIN} probe=no data_fraction=0.2", weights=pretrained)
    content = load(file_of(specialist))
    only_first = set(load(pretrained)["ssp"]["subjects"]) - set(content["ssp"]["subjects"])
    cases = read_cases(own_copy / "cases.csv").values()
    seen = next(c.subject_key for c in cases if hashed_subject(c.subject_key) in only_first)
    write_cases(
        own_copy / "cases.csv",
        [replace(c, split="test") if c.subject_key == seen else c for c in cases],
    )
    for trainer in (FINETUNE, MIM):
        with pytest.raises(
            ValueError,
            match=rf"seen test subject {seen.partition('-')[2]} in link 1 of 2, MIM: every",
        ):
            runs.make(trainer, weights=file_of(specialist))


def test_the_same_method_goes_on_with_its_heads(runs, pretrained, log):
    again = runs.make(MIM, PRETRAIN, weights=pretrained)
    heads = load(pretrained)["ssp_state"]["method"]["heads"]
    own = again.method.network.decoder.seg_layers.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in heads.items())
    assert "Optimizer and learning rate begin anew; the heads of MIM go on." in log(again)
    assert again.current_epoch == 0
    # What nnU-Net's loader saw is gone when training starts.
    assert not list(again.network.parameters()) and again.network_module is again.method
    again.run_training()
    assert again.network is again.method
    assert again.logger.get_value("lrs", 0) == again.settings.initial_lr


def test_what_fits_is_taken_as_it_is_whatever_its_channels_are_called(
    runs, pretrained, own_copy, tmp_path, log
):
    content = load(pretrained)
    weights = content["network_weights"]
    for name in (k for k in weights if "encoder.stages.0.0.convs.0" in k and weights[k].ndim == 4):
        weights[name] = torch.cat([weights[name] * part for part in (0.75, 0.25)], 1)
    content["init_args"]["dataset_json"]["channel_names"] = {"0": "T1", "1": "T2"}
    torch.save(content, tmp_path / "two.pth")
    dataset_json = json.loads((own_copy / "dataset.json").read_text())
    dataset_json["channel_names"] = {"0": "T2", "1": "T1"}
    (own_copy / "dataset.json").write_text(json.dumps(dataset_json))
    made = runs.make(MIM, PRETRAIN, weights=tmp_path / "two.pth")
    key = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(made.method.network.state_dict()[key], weights[key])
    assert "note: channels: pretrained with T1, T2, here T2, T1; " in log(made)


def test_an_interrupted_link_goes_on_exactly(runs, pretrained):
    settings = PRETRAIN.replace("num_epochs=1", "num_epochs=2")
    whole = runs.run(MIM, settings, weights=pretrained)
    expected = final(whole)
    shutil.rmtree(whole.output_folder)
    begun = runs.interrupt(MIM, settings, weights=pretrained)
    resumed = runs.make(MIM, resume=True)
    for part, tensors in begun.stage_change.start.items():
        assert all(map(torch.equal, resumed.stage_change.start[part], tensors)), part
    resumed.run_training()
    found = final(resumed)
    assert found["ssp"] == expected["ssp"]
    for key, tensor in body(expected["network_weights"]).items():
        assert torch.equal(found["network_weights"][key], tensor), key


def test_a_link_without_a_checkpoint_does_not_begin_from_scratch(runs, pretrained):
    folder = Path(runs.run(MIM, PRETRAIN, weights=pretrained).output_folder)
    for file in folder.glob("checkpoint_*.pth"):
        file.unlink()
    again = runs.make(MIM, PRETRAIN, resume=True)
    words = r"began from checkpoint_final\.pth: .* -pretrained_weights FOLDER/checkpoint_final\.pth"
    with pytest.raises(ValueError, match=words):
        again.run_training()


def test_other_weights_do_not_overwrite_a_finished_link(runs, pretrained):
    runs.run(MIM, PRETRAIN, weights=pretrained)
    with pytest.raises(FileExistsError, match=r"weights from: checkpoint_final\.pth -> scratch"):
        runs.run(MIM, PRETRAIN)


# -- files of other plans --------------------------------------------------------------------------


def test_the_refusal_names_the_setting(runs, pretrained):
    with pytest.raises(
        ValueError,
        match=r"architecture: .*\. The setting adapt=yes takes what can be made to fit\. Its plans are tiny of ",
    ):
        runs.make(FINETUNE, weights=pretrained, plans="tinyres")


@pytest.mark.parametrize("trainer", [FINETUNE, MIM])
def test_plain_weights_in_a_residual_encoder(runs, pretrained, log, trainer):
    settings = SHORT if trainer == FINETUNE else PRETRAIN
    settings += " adapt=yes min_transferred=0.4"
    made = runs.make(trainer, settings, weights=pretrained, plans="tinyres")
    said = log(made)
    assert "\n  encoder.stem.convs.0.conv.weight  4x1x3x3  moved: from encoder.stages.0.0" in said
    own = (made.network_module if trainer == FINETUNE else made.method.network).state_dict()
    theirs = load(pretrained)["network_weights"]
    pairs = {
        "encoder.stem.convs.0.conv.weight": "encoder.stages.0.0.convs.0.conv.weight",
        "decoder.encoder.stages.1.blocks.0.conv1.conv.weight": "encoder.stages.1.0.convs.0.conv.weight",
        "decoder.stages.0.convs.0.conv.weight": "decoder.stages.0.convs.0.conv.weight",
    }
    assert all(torch.equal(own[ours], theirs[key]) for ours, key in pairs.items())
    made.run_training()
    record = final(made)["ssp"]
    assert record["weights_from"] == pretrained.name and record["settings"]["adapt"]


def test_too_little_is_refused_with_the_table(runs, pretrained):
    """Of two blocks in a stage one has no counterpart."""
    message = (
        r"With adapt=yes 45% of the encoder's parameters come from the file, min_transferred=0\.5 asks for more:\n"
        r"(.*\n)*  encoder\.stages\.1\.blocks\.0\.skip\.1\.conv\.weight  8x4x1x1  fresh: the file has none"
    )
    with pytest.raises(ValueError, match=message):
        runs.make(FINETUNE, "adapt=yes", weights=pretrained, plans="tinyres")


def test_a_file_without_any_matching_tensor(runs, pretrained, tmp_path):
    content = load(pretrained)
    content["network_weights"] = {"layer1.conv1.weight": torch.ones(3, 3, 7, 7)}
    torch.save(content, tmp_path / "other.pth")
    for trainer in (FINETUNE, MIM):
        with pytest.raises(ValueError, match="0% of the encoder's parameters come from the file"):
            runs.make(trainer, "adapt=yes min_transferred=0", weights=tmp_path / "other.pth")


def test_other_channels_and_spacing(runs, pretrained, tmp_path, log):
    """Colours are summed; another spacing is said, and no longer refused."""
    content = load(pretrained)
    weights = content["network_weights"]
    key = "encoder.stages.0.0.convs.0.conv.weight"
    summed = weights[key]
    for name in (k for k in weights if "encoder.stages.0.0.convs.0" in k and weights[k].ndim == 4):
        weights[name] = torch.cat([weights[name] * part for part in (0.5, 0.25, 0.25)], 1)
    configuration = content["init_args"]["plans"]["configurations"]["2d"]
    configuration["spacing"] = [1.0, 1.0]
    content["init_args"]["dataset_json"]["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    torch.save(content, tmp_path / "colours.pth")
    with pytest.raises(ValueError, match="adapt=yes"):
        runs.make(FINETUNE, weights=tmp_path / "colours.pth")
    made = runs.make(FINETUNE, f"{SHORT} adapt=yes", weights=tmp_path / "colours.pth")
    assert torch.equal(made.network_module.state_dict()[key], summed)
    said = log(made)
    assert (
        "adapt=yes: channels: pretrained with 3 input channels, these plans have 1; spacing: "
        in said
    )
    assert f"{key}  4x1x3x3  adapted: 3 input channels summed" in said
    assert "100% of the encoder's parameters come from the file" in said


def test_frozen_fine_tuning_holds_what_was_taken(runs, pretrained):
    settings = "adapt=yes min_transferred=0.4"
    made = runs.make("nnUNetTrainerFinetuneFrozen", settings, weights=pretrained, plans="tinyres")
    assert "encoder.stem.convs.0.conv.weight" in made.held
    assert "encoder.stages.1.blocks.0.skip.1.conv.weight" not in made.held


def test_a_later_validation_loads_the_run_itself(runs, pretrained):
    """`--val` with `-pretrained_weights` still on the line: nnU-Net loads the run's checkpoint, and we fill nothing."""
    settings = f"{SHORT} adapt=yes min_transferred=0.4"
    trained = runs.run(FINETUNE, settings, weights=pretrained, plans="tinyres")
    again = runs.make(FINETUNE, settings, weights=pretrained, plans="tinyres", validate=True)
    ours, theirs = again.network_module.state_dict(), load(file_of(trained))["network_weights"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_another_dimension_is_refused_in_words(runs, pretrained, tmp_path):
    content = load(pretrained)
    weights = content["network_weights"]
    content["network_weights"] = {
        k: t[:, :, None] if t.ndim == 4 else t for k, t in weights.items()
    }
    torch.save(content, tmp_path / "volume.pth")
    for trainer in (FINETUNE, MIM):
        with pytest.raises(ValueError, match="dimension: pretrained in 3D, these plans are 2D"):
            runs.make(trainer, weights=tmp_path / "volume.pth")
    made = runs.make(FINETUNE, "adapt=yes", weights=tmp_path / "volume.pth")
    for key, tensor in body(weights).items():
        assert torch.equal(made.network_module.state_dict()[key], tensor)


def test_lost_values_are_refused_with_any_setting(runs, pretrained, tmp_path):
    content = load(pretrained)
    content["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"][:] = torch.nan
    torch.save(content, tmp_path / "lost.pth")
    with pytest.raises(ValueError, match=r"values: .* that training diverged\.$"):
        runs.make(FINETUNE, "adapt=yes", weights=tmp_path / "lost.pth")
