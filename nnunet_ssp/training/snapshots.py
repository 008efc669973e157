"""Snapshots of a pretraining: light files to fine-tune from, one every few epochs, ranked by the linear probe.

A snapshot holds the tensors that fine-tuning takes, and the record of a checkpoint. Those of methods that train the
encoder alone hold no decoder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_ssp.files import checkpoints
from nnunet_ssp.network import is_output_layer

FOLDER = "snapshots"  # beside the checkpoints
BEFORE = f"replaced_{FOLDER}"  # of the earlier training, while one that was started anew runs


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot says of itself.

    Attributes:
        file: The file.
        epochs: Finished epochs.
        of: Planned epochs.
        probe: Dice of the linear probe, NaN where there was none.
    """

    file: Path
    epochs: int
    of: int
    probe: float


def snapshot_file(folder: str | Path, epochs: int) -> Path:
    """Return the snapshot of a training after some epochs.

    Args:
        folder: The training's folder.
        epochs: Number of finished epochs.
    """
    return Path(folder) / FOLDER / f"epoch_{epochs:04d}.pth"


def is_due(every: int | None, epochs: int) -> bool:
    """Whether a snapshot is made after this number of epochs; none is without `snapshot_epochs`.

    >>> [epochs for epochs in range(1, 7) if is_due(3, epochs)], is_due(None, 3)
    ([3, 6], False)
    """
    return every is not None and epochs % every == 0


def light(weights: Mapping[str, Tensor], transfers: str) -> dict[str, Tensor]:
    """Return the tensors that fine-tuning takes from a network's state.

    Args:
        weights: From `transfer.pretrained_weights`.
        transfers: Trained part, `"encoder"` or `"encoder+decoder"`. The whole keeps nnU-Net's second names of tensors,
            so that stock trainers find them.
    """
    whole = transfers == "encoder+decoder"
    return {
        key: tensor
        for key, tensor in weights.items()
        if not is_output_layer(key) and (whole or key.startswith("encoder."))
    }


def content(
    checkpoint: Mapping[str, Any], of: int, probe: float | None, transfers: str
) -> dict[str, Any]:
    """Return the content of a snapshot.

    Args:
        checkpoint: Content of a checkpoint of the same moment.
        of: Planned epochs.
        probe: Dice of the linear probe; None where there is none.
        transfers: See `light`.
    """
    kept = {name: checkpoint[name] for name in ("current_epoch", "init_args", "trainer_name")}
    about = {"epochs": checkpoint["current_epoch"], "of": of, "probe_dice": probe}
    return {
        **kept,
        "network_weights": light(checkpoint["network_weights"], transfers),
        "ssp": {**checkpoint["ssp"], "snapshot": about},
    }


def set_aside(folder: str | Path) -> None:
    """Keep the snapshots of an earlier training in this folder under another name, as its checkpoints."""
    own, before = Path(folder) / FOLDER, Path(folder) / BEFORE
    if own.is_dir():
        shutil.rmtree(before, ignore_errors=True)
        own.rename(before)


def forget_earlier(folder: str | Path) -> None:
    """Delete the snapshots of a training that this folder's has replaced."""
    shutil.rmtree(Path(folder) / BEFORE, ignore_errors=True)


def forget_later(folder: str | Path, epochs: int) -> None:
    """Delete the snapshots that a resumed training will make again.

    Args:
        folder: The training's folder.
        epochs: Epochs that its checkpoint had finished.
    """
    for file in (Path(folder) / FOLDER).glob("epoch_*.pth"):
        if int(file.stem.rpartition("_")[2]) > epochs:
            file.unlink()


def described(file: str | Path, ssp: Mapping[str, Any]) -> Snapshot | None:
    """Return what a checkpoint's record says of it as a snapshot; None if it is none."""
    about = ssp.get("snapshot")
    if about is None:
        return None
    dice = about.get("probe_dice")
    probe = math.nan if dice is None else float(dice)
    return Snapshot(Path(file), about["epochs"], about["of"], probe)


def notes_on(file: str | Path, ssp: Mapping[str, Any]) -> list[str]:
    """Return what to know before one trains from a file: that it is a snapshot, or of a training that was replaced."""
    found = described(file, ssp)
    if found is None:
        return []
    lines = [f"the file is a snapshot after {found.epochs} of {found.of} epochs"]
    if found.file.parent.name == BEFORE:
        lines.append(
            f"its training was started anew since; the new one's snapshots are in "
            f"{found.file.parent.with_name(FOLDER)}, and this file is deleted when that training ends"
        )
    return lines


def hint(file: Path) -> str:
    """Say where a snapshot went that is missing because its training was started anew; empty for other files."""
    if file.parent.name != FOLDER:
        return ""
    earlier = file.parent.with_name(BEFORE) / file.name
    if not earlier.is_file():
        return ""
    return (
        f" Its training was started anew and has not come this far; the earlier one's is {earlier}."
    )


def beside(file: str | Path, trust: bool = False) -> list[Snapshot]:
    """Return the snapshots of the training that a checkpoint or snapshot is of, best linear probe first.

    Without any score they are in the order of the epochs.

    Args:
        file: The checkpoint, or the folder of snapshots.
        trust: Whether to run code that the files ask for, see `checkpoints.load`.
    """
    places = [place for place in (Path(file), Path(file).parent) if place.name in (FOLDER, BEFORE)]
    folder = places[0] if places else Path(file).parent / FOLDER
    found = []
    for path in sorted(folder.glob("epoch_*.pth")):
        ssp = checkpoints.load(path, trust, mmap=True).get("ssp", {})
        if (snapshot := described(path, ssp)) is not None:
            found.append(snapshot)
    return sorted(found, key=lambda s: (math.isnan(s.probe), -s.probe, s.epochs))


def ranking_in_words(ranked: Sequence[Snapshot]) -> list[str]:
    """Return one line for each snapshot, as `beside` orders them."""
    if not ranked:
        return []
    scored = not math.isnan(ranked[0].probe)
    order = "best linear probe first" if scored else "without a linear probe to rank them by"
    lines = [f"snapshots in {ranked[0].file.parent}, {order}:"]
    for number, snapshot in enumerate(ranked, 1):
        score = "" if math.isnan(snapshot.probe) else f": Dice {snapshot.probe:.4f}"
        place = f"{number}. " if score else ""
        lines.append(f"  {place}{snapshot.file.name}, {snapshot.epochs} of {snapshot.of}{score}")
    return lines


def ranks(values: Sequence[float], every: int | None) -> dict[int, int]:
    """Rank the epochs with a snapshot by the probe, the best is 1.

    Args:
        values: The probe's Dice after each epoch, NaN where there is none.
        every: Epochs from one snapshot to the next.

    >>> ranks([0.1, 0.4, float("nan"), 0.6, 0.5, 0.2], 2)
    {4: 1, 2: 2, 6: 3}
    """
    scored = {n: value for n, value in enumerate(values, 1) if is_due(every, n)}
    known = [n for n, value in scored.items() if math.isfinite(value)]
    return {n: rank for rank, n in enumerate(sorted(known, key=lambda n: -scored[n]), 1)}
