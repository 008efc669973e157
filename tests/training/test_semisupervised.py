"""Fine-tuning with unlabelled slices: who is drawn, what the student learns from, and how runs go on."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.cohort import membership
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import hashed_subjects
from nnunet_ssp.slices.store import store_folder
from nnunet_ssp.training.pseudo_labels import pseudo_labels
from nnunet_ssp.training.unlabelled import paste
from tests.ranks import on_ranks
from tests.saved import final

FINETUNE, SCRATCH = "nnUNetTrainerFinetuneSemi", "nnUNetTrainerScratchSemi"
CONTROL = "nnUNetTrainerScratchAveraged"
STEPS = "iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
# A teacher that has learnt nothing yet is sure of nothing.
SURE = "confidence_threshold=0.3 rampup_epochs=0"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key, tensor in one.items() if not torch.equal(tensor, other[key])}


def labelled_batches(trainer: Any) -> list[Tensor]:
    """The labelled data of each step, once it has run."""
    seen: list[Tensor] = []
    step = trainer.train_step

    def look(batch: Any) -> Any:
        seen.append(batch["data"].clone())
        return step(batch)

    trainer.train_step = look
    return seen


def started(runs: Any, trainer: str, settings: str, **options: Any) -> Any:
    """A trainer that is ready for its first step."""
    run = runs.make(trainer, settings, **options)
    run.on_train_start()
    run.on_train_epoch_start()
    run.guard.begin()
    return run


# -- what is learnt --------------------------------------------------------------------------------


def test_without_weight_it_is_the_control(runs):
    """Bit for bit: unlabelled draws disturb no random number of a labelled batch."""
    control = runs.make(CONTROL, f"{STEPS} num_epochs=2")
    expected = labelled_batches(control)
    control.run_training()
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=2 consistency_weight=0 {SURE}")
    for entry in ("network_weights", "ssp_trained_weights"):
        assert not changed(final(run)[entry], final(control)[entry])
    assert final(run)["logging"]["train_losses"] == final(control)["logging"]["train_losses"]
    assert final(run)["logging"]["confident_pixels"][0] > 0

    shutil.rmtree(run.output_folder)
    run = runs.make(SCRATCH, f"{STEPS} num_epochs=2 {SURE}")
    found = labelled_batches(run)
    run.run_training()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert changed(final(run)["network_weights"], final(control)["network_weights"])


def test_the_loss_in_closed_form_and_its_gradient_through_the_student_alone(runs):
    run = started(runs, SCRATCH, f"{STEPS} {SURE} consistency_weight=0.7 cutmix=1")
    with torch.no_grad():  # a teacher of its own
        for parameter in run.exported().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch, unlabelled = next(run.dataloader_train), next(run.batches.training(0))
    weak, strong, inside = run.two_views.make(unlabelled)
    boxes = unlabelled.drawn["boxes"]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    target, counts = pseudo_labels(run.exported()(weak), inside, 0.3, regions=False)
    assert counts.any()
    labelled = run.loss(run.network(batch["data"]), batch["target"])
    added = run._unlabelled_loss(run.network(paste(boxes, strong))[0], paste(boxes, target))
    added = added * counts.sum() / inside.sum()
    (labelled + 0.7 * added).backward()
    expected = {n: p.grad.clone() for n, p in run.network.named_parameters() if p.grad is not None}

    gradients: dict[str, Tensor] = {}
    run.optimizer.step = lambda: gradients.update(
        {n: p.grad.clone() for n, p in run.network.named_parameters() if p.grad is not None}
    )
    norm = torch.nn.utils.get_total_norm([g for g in expected.values()])
    output = run.train_step(batch)
    assert float(output["loss"]) == pytest.approx((labelled + 0.7 * added).item(), abs=1e-6)
    assert float(output["unlabelled"]) == pytest.approx(added.item(), abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        clipped = expected[name] * min(1.0, 12 / (float(norm) + 1e-6))
        assert torch.allclose(gradient, clipped, atol=1e-5), name
    assert all(p.grad is None for p in run.exported().parameters())


def test_the_weight_rises_over_the_ramp(runs):
    run = runs.make(SCRATCH, f"{STEPS} num_epochs=4 consistency_weight=2 rampup_epochs=2")
    found = []
    for run._last_step in range(6):
        found.append(run.weight())
    expected = [2 * math.exp(-5 * (1 - step / 4) ** 2) for step in range(4)]
    assert found == pytest.approx([*expected, 2, 2])
    auto = runs.make(SCRATCH, "num_epochs=8 iterations_per_epoch=3")
    auto._last_step = 6
    assert auto.weight() == 1, "after a quarter of the run"
    auto._last_step = 5
    assert auto.weight() < 1


def test_the_epochs_line_and_the_curves(runs, log):
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=1 {SURE}")
    logging = final(run)["logging"]
    (loss,), (share,) = logging["unlabelled_losses"], logging["confident_pixels"]
    assert math.isfinite(loss) and 0 < share <= 1
    said = log(run)
    assert (
        f"unlabelled loss {loss:.4f} with weight 1.000, the teacher is sure of {share:.1%}" in said
    )
    assert "slices; 2 slices beside each labelled batch. The teacher is that average." in said


# -- who is drawn ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [0, "all"])
def test_no_validation_and_no_test_subject_is_drawn(runs, preprocessed, fold):
    run = started(runs, SCRATCH, STEPS, fold=fold)
    cases = read_cases(preprocessed / "cases.csv")
    train, val = run.do_split()
    drawn = set(run.batches.store.names)
    subjects = {cases[name].subject_key for name in drawn}
    out = set() if fold == "all" else {cases[name].subject_key for name in val}
    tested = membership.test_subjects(cases)
    assert tested and not subjects & tested
    assert not subjects & out
    assert not drawn & set(train), "labelled slices come in nnU-Net's own batches"
    everybody = {case.subject_key for case in cases.values()} - tested - out
    assert subjects == everybody
    record = run.record()
    assert set(record["subjects"]) == set(hashed_subjects(everybody))
    assert record["unlabelled"]["frames"] == len(drawn)
    assert set(run.batches.cases_of(0)) <= drawn
    run._end_workers()


def test_a_lost_step_names_unlabelled_cases(runs):
    run = started(runs, SCRATCH, STEPS)
    names = run.batch_cases(3, {"keys": ["labelled"]})()
    assert names == ["labelled", *run.batches.cases_of(3)] and len(names) > 1
    run._end_workers()


# -- interruptions ---------------------------------------------------------------------------------


def test_interrupted_runs_continue_exactly(runs, pretrained, monkeypatch):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{STEPS} num_epochs=3 {SURE}"
    expected = final(whole := runs.run(FINETUNE, settings, weights=pretrained))
    shutil.rmtree(whole.output_folder)
    runs.interrupt(FINETUNE, settings, weights=pretrained)
    found = final(runs.run(FINETUNE, settings, resume=True))
    for entry in ("network_weights", "ssp_trained_weights"):
        assert not changed(found[entry], expected[entry]), entry
    for curve in ("train_losses", "val_losses", "unlabelled_losses", "confident_pixels"):
        assert found["logging"][curve] == expected["logging"][curve], curve
    momenta = [c["optimizer_state"]["state"] for c in (found, expected)]
    for key, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][key]["momentum_buffer"])
    assert found["ssp"] == expected["ssp"]


def test_other_unlabelled_data_are_refused_on_resume(runs, own_copy):
    stopped = runs.interrupt(SCRATCH, f"{STEPS} num_epochs=2")
    index = store_folder(own_copy, "tiny_2d") / "index.json"
    content = json.loads(index.read_text())
    del content["cases"][stopped.batches.store.names[0]]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="--c must go on with the same data: the checkpoint saw"):
        runs.run(SCRATCH, f"{STEPS} num_epochs=2", resume=True)


# -- what is refused -------------------------------------------------------------------------------


def test_a_dataset_without_unlabelled_frames(runs, own_copy):
    index = store_folder(own_copy, "tiny_2d") / "index.json"
    content = json.loads(index.read_text())
    labelled = {n for n, case in read_cases(own_copy / "cases.csv").items() if case.labelled}
    content["cases"] = {n: entry for n, entry in content["cases"].items() if n in labelled}
    index.write_text(json.dumps(content))
    run = runs.make(SCRATCH, STEPS)
    rule = "fold 0 leaves no unlabelled frames.*Use -tr nnUNetTrainerScratchAveraged"
    with pytest.raises(ValueError, match=rule):
        run.run_training()
    assert not Path(run.output_folder).exists()


def test_no_slice_store(runs, own_copy):
    shutil.rmtree(store_folder(own_copy, "tiny_2d"))
    with pytest.raises(FileNotFoundError, match=r"index.json is missing: run nnunet-ssp prepare"):
        runs.run(SCRATCH, STEPS)


def test_a_store_of_other_plans(runs, own_copy):
    index = store_folder(own_copy, "tiny_2d") / "index.json"
    content = json.loads(index.read_text())
    content["preprocessing"]["spacing"] = [9.0, 9.0]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"was made by other plans \(spacing differ\)"):
        runs.run(SCRATCH, STEPS)


def test_a_batch_larger_than_the_data(runs):
    with pytest.raises(ValueError, match=r"`unlabelled_batch_size` \(=999\) must lie between"):
        runs.run(SCRATCH, f"{STEPS} unlabelled_batch_size=999")


def test_a_configuration_that_is_not_2d(runs, own_copy):
    plans = json.loads((own_copy / "tiny.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = [8, 48, 48]
    (own_copy / "tiny.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"configuration \(=2d\) must be 2D and no cascade"):
        runs.run(SCRATCH, STEPS)


def test_a_dataset_without_cases_csv(runs, own_copy, log):
    """The pattern tells whose frames a case shows; without one the log doubts."""
    (own_copy / "cases.csv").unlink()
    run = started(runs, SCRATCH, f"{STEPS} subject_pattern=(.+)_frame")
    _, val = run.do_split()
    out = {name.partition("_frame")[0] for name in val}
    assert out and not out & {n.partition("_frame")[0] for n in run.batches.store.names}
    run._end_workers()
    doubtful = started(runs, SCRATCH, STEPS)
    assert "subject_pattern" in log(doubtful).replace("subject_pattern = none", "")
    doubtful._end_workers()


# -- other kinds of labels, prediction -------------------------------------------------------------


@pytest.fixture
def with_regions(own_copy: Path) -> Callable[[], None]:
    def make() -> None:
        file = own_copy / "dataset.json"
        content = json.loads(file.read_text())
        content["labels"] = {"background": 0, "heart": [1, 2, 3], "left": [1, 2], "LV": 1}
        content["regions_class_order"] = [3, 2, 1]
        file.write_text(json.dumps(content))

    return make


def test_regions(runs, with_regions):
    with_regions()
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=1 {SURE}")
    assert run.label_manager.has_regions
    logging = final(run)["logging"]
    assert math.isfinite(logging["unlabelled_losses"][0]) and logging["confident_pixels"][0] > 0


def test_prediction_and_validation_are_nnunets_own(runs, pretrained, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    run = runs.run(FINETUNE, f"{STEPS} num_epochs=1", weights=pretrained)
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.output_folder_base, (0,))
    own = run.exported().state_dict()
    assert not changed(dict(predictor.network.state_dict()), dict(own))
    found = predictor.predict_logits_from_preprocessed_data(torch.randn(1, 2, 40, 44))
    assert found.shape == (4, 2, 40, 44) and found.isfinite().all()


# -- several processes -----------------------------------------------------------------------------


def train_on_a_rank(folder: str) -> dict[str, Any]:
    """Run the trainer on a part of the batches; nnU-Net's own way would put it on a GPU."""
    os.environ["nnUNet_ssp_settings"] = f"{STEPS} num_epochs=1 {SURE} unlabelled_batch_size=4"
    nnunet.DDP = lambda module, device_ids: DistributedDataParallel(module)
    MetaLogger.plot_progress_png = lambda *_: None
    plans = json.loads(Path(folder, "tiny.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(folder, "dataset.json").read_text())
    run: Any = recursive_find_trainer_class_by_name(SCRATCH)(
        plans, "2d", 0, dataset, torch.device("cpu")
    )
    run.device, run.grad_scaler = torch.device("cpu"), None
    sys.argv = ["nnUNetv2_train"]
    shares: list[Tensor] = []
    gradients: list[dict[str, Tensor]] = []
    run.initialize()
    hook = run._with_unlabelled

    def look(*called: Any) -> Any:
        if run._views is not None:
            shares.append(run._views[0].clone())
        return hook(*called)

    run.loss._forward_hooks.clear()
    run.loss.register_forward_hook(look)
    run.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            {n: p.grad.clone() for n, p in run.network_module.named_parameters()}
        )
    )
    run.run_training()
    logging = run.logger.local_logger.my_fantastic_logging
    return {
        "shares": shares,
        "gradients": gradients,
        "weights": {k: t.clone() for k, t in run.network_module.state_dict().items()},
        "average": {k: t.clone() for k, t in run.exported().state_dict().items()},
        "curves": [logging["unlabelled_losses"], logging["confident_pixels"]],
    }


def test_two_processes(runs, preprocessed, tmp_path):
    one, two = on_ranks(train_on_a_rank, 2, tmp_path, str(preprocessed))
    assert len(one["shares"]) == 2 and one["shares"][0].shape == (2, 1, 48, 48)
    assert not torch.equal(one["shares"][0], two["shares"][0]), "each has its part of the batch"
    for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
        assert not changed(mine, theirs), "gradients of both losses are averaged"
    assert not changed(one["weights"], two["weights"])
    assert not changed(one["average"], two["average"])
    assert one["curves"] == two["curves"]

    # The same unlabelled slices as in one process.
    run = started(runs, SCRATCH, f"{STEPS} num_epochs=1 {SURE} unlabelled_batch_size=4")
    weak, _, _ = run.two_views.make(next(run.unlabelled))
    shares = torch.cat([one["shares"][0], two["shares"][0]])
    assert torch.allclose(weak, shares, atol=1e-4)  # sampled from canvases of other sizes
    run._end_workers()
