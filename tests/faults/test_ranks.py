"""Several processes of one training, of which one gets a signal or is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

SETTINGS = "num_epochs=1000 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"


def train_on_a_rank(number: int, folder: str, preprocessed: str, fate: int) -> None:
    """Train on a part of the batch with gloo on the CPU; nnU-Net would use a GPU."""
    output = os.open(f"{folder}/rank{number}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["nnUNet_ssp_settings"] = SETTINGS
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=number, world_size=2)
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from torch.nn.parallel import DistributedDataParallel

    nnunet.DDP = lambda module, device_ids: DistributedDataParallel(module)
    MetaLogger.plot_progress_png = lambda *_: None
    plans = json.loads(Path(preprocessed, "tiny.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(preprocessed, "dataset.json").read_text())
    run: Any = recursive_find_trainer_class_by_name("nnUNetTrainerScratch")(
        plans, "2d", 0, dataset, torch.device("cpu")
    )
    run.device, run.grad_scaler = torch.device("cpu"), None
    run.initialize()
    step, calls = run.train_step, iter(range(10_000))

    def meet_fate(batch: Any) -> Any:
        if next(calls) == 5 and number == 1:
            os.kill(os.getpid(), fate)
        return step(batch)

    run.train_step = meet_fate
    run.run_training()


@pytest.mark.parametrize("fate", [signal.SIGTERM, signal.SIGKILL])
def test_what_one_rank_meets_ends_all_in_words(preprocessed, tmp_path, fate):
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path), str(preprocessed), int(fate))
    ranks = [
        context.Process(target=train_on_a_rank, args=(number, *arguments)) for number in (0, 1)
    ]
    for process in ranks:
        process.start()
    ranks[1].join(300)
    ranks[0].join(30)
    said = [(tmp_path / f"rank{number}.txt").read_text() for number in (0, 1)]
    assert all("Traceback" not in text for text in said), said
    (latest,) = (tmp_path / "results").rglob("checkpoint_latest.pth")
    if fate == signal.SIGTERM:
        assert [process.exitcode for process in ranks] == [143, 143], said
        assert f"SIGTERM: {latest} holds the training after epoch" in said[0]
        assert "-num_gpus 2 --c" in said[0]
    else:
        assert [process.exitcode for process in ranks] == [1, -signal.SIGKILL], said
        line = (
            f"Rank 0 ends, as another of the 2 ranks has gone. last good checkpoint {latest.parent}"
        )
        assert line in said[0]
