"""`nnunet-ssp predict` beside `nnUNetv2_predict`: the commands as users run them, start-up included."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_ssp.bench.place import PLANS, STOCK, Bench, both_clocks, in_turns, ratio
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.files.nnunet import read_dataset, read_plans
from nnunet_ssp.launch import last_lines, run_logged
from nnunet_ssp.nnunet import nnunet_folder, quiet
from nnunet_ssp.phantom import PhantomSubject, make_subject

FRAME_TIME = 0.04  # s
ROUNDS_OF_FORWARD = 3
Seconds = NDArray[np.float64]  # of `clocks`


def predicting_over_stock(bench: Bench) -> dict[str, Any]:
    """Compare the frames per second of both commands on one study, from their start to their end.

    Both get a model of the planned network with random weights, its mirroring, and the same frames: nnU-Net as
    `convert` writes them, `predict` as one 4D file. On the CPU each ratio is the smaller of two, by core-seconds and by
    the wall clock, see `rows.speed`.

    Returns:
        `predict_over_nnunet` and `predict_over_nnunet_outside`, the same without the network's forward passes (None
        where these take all of the time), `predict_host_memory_ratio` (None without Linux's table), and what they are
        of: `predict_frames`, `predict_slices`, `predict_parameters`, `predict_frames_per_s`, `predict_forward_share`.
    """
    frames, slices = bench.workload.study
    study = make_subject(0, matrix=bench.workload.side, frames=frames, slices=slices)
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-predict-") as base:
        runs = TimedRuns(bench, Path(base), study)
        works = {"nnunet": runs.theirs, "ours": runs.ours}
        took = in_turns(works, bench.device, bench.workload.seconds, clock=clocks)
        forward, parameters = forward_seconds(runs.model, bench.device, study, Path(base))
    theirs, ours = (np.array(took[name]) for name in works)
    if bench.device.type == "cuda":  # a core that waits for the GPU counts as busy, or not
        theirs, ours, forward = theirs[:, 1:], ours[:, 1:], forward[1:]
    return {
        **_smaller("predict_over_nnunet", theirs, ours),
        **_smaller("predict_over_nnunet_outside", theirs - forward, ours - forward),
        "predict_host_memory_ratio": runs.memory_ratio(),
        "predict_frames": frames,
        "predict_slices": slices,
        "predict_parameters": parameters,
        "predict_frames_per_s": frames / float(np.median(ours[:, -1])),
        "predict_forward_share": float(forward[-1] / np.median(ours[:, -1])),
    }


def clocks(device: torch.device) -> Seconds:
    """Read the core-seconds of the processes that this one started and that have ended, and the wall clock."""
    used = os.times()
    return np.array([used.children_user + used.children_system, time.perf_counter()])


def _smaller(name: str, slow: Seconds, fast: Seconds) -> dict[str, Any]:
    """Return the `ratio` by the clock by which it is smaller; None under `name` where it is none by any clock."""
    if (fast <= 0).any() or (slow <= 0).any():
        return {name: None}
    by_clock = [ratio(name, a.tolist(), b.tolist()) for a, b in zip(slow.T, fast.T, strict=True)]
    return min(by_clock, key=lambda found: found[name])


class TimedRuns:
    """Both commands on one study, and the most memory that each took.

    Args:
        bench: Where it is measured.
        base: Empty folder for inputs and outputs.
        study: The frames.

    Attributes:
        model: Folder of the model, where `nnUNetv2_train` would have left it.
        peaks: Bytes of each run, by command.
    """

    def __init__(self, bench: Bench, base: Path, study: PhantomSubject) -> None:
        self.base = base
        self.model = write_model(bench)
        self.peaks: dict[str, list[int]] = {"nnunet": [], "ours": []}
        self.arguments = ["-d", bench.folder.name, "-tr", STOCK, "-p", PLANS, "-c", "2d"]
        self.arguments += ["-f", "all", "-device", bench.device.type]
        for folder in ("frames", "study"):
            (base / folder).mkdir()
        for t in range(study.image.shape[3]):
            file = base / "frames" / f"study_frame{t:02d}_0000.nii.gz"
            write_nifti(file, study.image[..., t], study.affine)
        write_nifti(base / "study" / "study.nii.gz", study.image, study.affine, FRAME_TIME)

    def theirs(self) -> None:
        """Run `nnUNetv2_predict`."""
        self._run("nnunet", ["nnUNetv2_predict"], "frames")

    def ours(self) -> None:
        """Run `nnunet-ssp predict`."""
        self._run("ours", ["nnunet-ssp", "predict"], "study")

    def _run(self, name: str, command: Sequence[str], images: str) -> None:
        peak = 0

        def look() -> None:
            nonlocal peak
            peak = max(peak, memory_of_children())

        log = self.base / "log.txt"
        # `predict` would not do again what is done
        with tempfile.TemporaryDirectory(dir=self.base) as out, open(log, "wb") as stream:
            words = [*command, "-i", str(self.base / images), "-o", out, *self.arguments]
            status = run_logged(words, stream, os.environ, look)
        if status:
            raise RuntimeError(f"{command[0]} failed (status {status}):\n{last_lines(log, 20)}")
        self.peaks[name].append(peak)

    def memory_ratio(self) -> float | None:
        """Return the memory of our command over that of nnU-Net's, as medians; None where it is not known."""
        ours, theirs = (float(np.median(self.peaks[name])) for name in ("ours", "nnunet"))
        return ours / theirs if ours and theirs else None


def write_model(bench: Bench) -> Path:
    """Write a model with the trainer's first weights into nnUNet_results."""
    trainer = bench.trainer(STOCK)
    with quiet():
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # tells the axes to mirror
    folder = nnunet_folder("nnUNet_results") / bench.folder.name / f"{STOCK}__{PLANS}__2d"
    (folder / "fold_all").mkdir(parents=True, exist_ok=True)
    plans = read_plans(bench.folder / f"{PLANS}.json")
    dataset = read_dataset(bench.folder / "dataset.json")
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    content = {
        "network_weights": trainer.network.state_dict(),
        "init_args": {"configuration": "2d", "plans": plans, "dataset_json": dataset},
        "trainer_name": STOCK,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }
    torch.save(content, folder / "fold_all" / "checkpoint_final.pth")
    return folder


def forward_seconds(
    model: Path, device: torch.device, study: PhantomSubject, scratch: Path
) -> tuple[Seconds, int]:
    """Measure the forward passes alone of one prediction of a study.

    Returns:
        The seconds, of this process's cores and of the wall clock, and the parameters of the network.
    """
    from nnunet_ssp.predict.model import check_model
    from nnunet_ssp.predict.network import Segmenter

    segmenter = Segmenter(check_model(model, ["all"]), device.type, True, scratch)
    network = segmenter.predictor.network
    rounds = []
    with _clock_on(network, device) as spent:
        for _ in range(ROUNDS_OF_FORWARD + 1):
            spent[:] = 0
            with quiet():
                for _ in segmenter.segment(study.image, study.affine):
                    pass
            rounds.append(spent.copy())
    return np.median(rounds[1:], axis=0), sum(p.numel() for p in network.parameters())


@contextmanager
def _clock_on(network: torch.nn.Module, device: torch.device) -> Iterator[Seconds]:
    """Yield the seconds that a network has spent so far, of both clocks."""
    spent, began = np.zeros(2), np.zeros(2)

    def before(*_: Any) -> None:
        began[:] = both_clocks(device)

    def after(*_: Any) -> None:
        spent[:] += both_clocks(device) - began

    hooks = [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def memory_of_children() -> int:
    """Return the bytes that all processes below this one hold, shared memory in parts; 0 without Linux's table."""
    parent_of, total = dict(parents()), 0
    below = new = {os.getpid()}
    while new:
        new = {pid for pid, parent in parent_of.items() if parent in new}
        below = below | new
    for pid in below - {os.getpid()}:
        with suppress(OSError):  # it has ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def parents() -> Iterator[tuple[int, int]]:
    """Yield each process and its parent."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may hold anything
            yield int(file.parent.name), int(file.read_text().rpartition(")")[2].split()[1])
