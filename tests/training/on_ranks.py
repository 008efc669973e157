"""Trains methods as one of the processes that torchrun starts: `python -m tests.training.on_ranks [--c] NAME ...`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from nnunet_ssp.distributed import joined
from nnunet_ssp.training import launched

# Plain SGD: AdamW would turn the rounding of gradients that are zero in exact arithmetic into whole steps. A small
# rate: with a large one, rounding grows tenfold a step in networks this small, also in one process with other chunks.
# The largest in place of the mean: after instance norm, means differ by little more than rounding.
COMMON = "iterations_per_epoch=1 batch_size=5 precision=fp32 probe=no weight_decay=0.0001"
RATE = "initial_lr=0.0001"
# These take their rate for 256 slices, and DINO's warm-up begins at 0. Of both the student is the network in the file.
DISTILLED = "transfer_from=student pooling=max"
AT_ONCE = f"initial_lr={0.0001 * 256 / 5} warmup_epochs=0"
BYOL_HEADS = "head_width=16 head_out=8 predictor_width=16"
METHODS = {
    "MIM": f"{RATE} coarse_heads=yes",
    "ContextPrediction": RATE,
    "ContextRestoration": RATE,
    "Inpainting": RATE,
    "Dense": f"{RATE} points=12",
    "SimCLR": f"{RATE} head_width=16 pooling=max",
    "PCL": f"{RATE} head_width=16 threshold=0.3 pooling=max head_norm=none",
    "DINO": f"{DISTILLED} {AT_ONCE} head_width=16 head_bottleneck=8 out_dim=32 local_crops=2",
    # Its warm-up begins with 3e-5. With all steps at 1e-4, rounding reached 1e-4 of the loss in 20 steps: batch
    # normalisation over five slices.
    "BYOL": f"{DISTILLED} {RATE} {BYOL_HEADS}",
}
# Other optimisers, for one step: METHOD:OPTIMIZER.
OPTIMIZERS = {"BYOL:lars": f"{DISTILLED} {AT_ONCE} {BYOL_HEADS}", "MIM:adamw": METHODS["MIM"]}
# For one step, too: pooling, head norm and network in the file as they are by default, whose gradients are small next
# to rounding; and what changes how a rank goes through its slices.
OTHERS = {
    "SimCLR:sgd:defaults": f"{RATE} head_width=16",
    "PCL:sgd:defaults": f"{RATE} head_width=16 threshold=0.3",
    "DINO:sgd:defaults": f"{AT_ONCE} head_width=16 head_bottleneck=8 out_dim=32 local_crops=2",
    "BYOL:sgd:defaults": f"{AT_ONCE} {BYOL_HEADS}",
    "MIM:sgd:chunks": f"{RATE} chunk_size=1",
    "SimCLR:sgd:chunks": f"{METHODS['SimCLR']} chunk_size=1 pairs=frame",
    "BYOL:sgd:chunks": f"{DISTILLED} {AT_ONCE} {BYOL_HEADS} chunk_size=1 pairs=frame",
    "ContextPrediction:sgd:augment": f"{RATE} augment=yes loss_region=corrupted",
}
AFTER_ONE_STEP = "after_one_step.pth"


def name_of(run: str) -> str:
    """Name of the trainer of METHOD, METHOD:OPTIMIZER or METHOD:OPTIMIZER:VARIANT."""
    return f"nnUNetTrainer{run.split(':')[0]}Pretrain"


def settings_of(run: str) -> str:
    _, optimizer, *_ = [*run.split(":"), ""]
    steps = 1 if optimizer else 20
    own = (METHODS | OPTIMIZERS | OTHERS)[run]
    return f"num_epochs={steps} optimizer={optimizer or 'sgd'} {COMMON} {own}"


def keep_first(trainer: Any) -> None:
    """Keep what is saved after the first step, unless it is the last one."""
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    if trainer.local_rank == 0 and trainer.current_epoch == 1 < trainer.num_epochs:
        shutil.copy(latest, latest.with_name(AFTER_ONE_STEP))


def keep_variant(run: str) -> None:
    """Keep the end of a run whose folder the next run of its method will take."""
    from nnunet_ssp.distributed import rank

    if run in OTHERS and rank() == 0:
        results = Path(os.environ["nnUNet_results"])
        (final,) = results.glob(f"*/{name_of(run)}__*/fold_0/checkpoint_final.pth")
        final.replace(results / kept_name(run))


def kept_name(run: str) -> str:
    return f"{run.replace(':', '-')}.pth"


def main() -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from nnunet_ssp.training import progress
    from nnunet_ssp.training.pretraining import PretrainingTrainer

    torch.set_num_threads(1)
    for place, name in ((MetaLogger, "plot_progress_png"), (progress, "plot_progress")):
        setattr(place, name, lambda *_: None)
    progress.plot_images = lambda *_: None
    epoch_end = PretrainingTrainer.on_epoch_end

    def ending(trainer: Any) -> None:
        epoch_end(trainer)
        keep_first(trainer)

    PretrainingTrainer.on_epoch_end = ending  # type: ignore[method-assign]
    goes_on = sys.argv[1] == "--c"
    with joined(torch.device("cpu")):
        for method in sys.argv[1 + goes_on :]:
            os.environ["nnUNet_ssp_settings"] = settings_of(method)
            options = ("tiny", None, goes_on, False, torch.device("cpu"))
            launched._train("901", "2d", "0", name_of(method), *options)
            keep_variant(method)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in another way


if __name__ == "__main__":
    main()
