"""`nnunet-ssp demo`: the whole path from nothing to a report.

Every step is a command that a user would type. It is printed, then run in a process of its own, and its output goes
to `logs/`. All of nnU-Net's folders lie inside the demo's folder.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssp import __version__
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.console import decimal, path, whole
from nnunet_ssp.demo.progress import WEIGHTS, ProgressBar
from nnunet_ssp.demo.report import (
    CAVEAT,
    DATASET_ID,
    FINETUNER,
    PLANS,
    PRETRAINER,
    SCRATCH,
    DemoData,
    Layout,
    Step,
    class_means,
    demo_page,
    score,
)
from nnunet_ssp.demo.resuming import FILE, DoneSteps, continued
from nnunet_ssp.files import nnunet as nnunet_files
from nnunet_ssp.files.atomic import write_table
from nnunet_ssp.launch import (
    choose_device,
    command_environment,
    environment_lines,
    last_lines,
    run_logged,
)
from nnunet_ssp.recommended import MOVEMENT
from nnunet_ssp.warm import NO_WARM, WARM_HELP, warm_runner

MARKER = ".nnunet-ssp-demo"  # a demo may start over in a folder that holds this file
INTERMEDIATE = ("phantom", "nnUNet_raw", "nnUNet_preprocessed", "imagesVal")
SCORES, COLUMNS = "scores.csv", ("model", "subject", "case", "class", "dice")
CREATED = (*INTERMEDIATE, "nnUNet_results", "predictions", "logs", SCORES, "report.html", FILE)

PLAN_FLAGS = ("-gpu_memory_target", "0.1", "-overwrite_plans_name", PLANS)

# Patches of 96 x 96 pixels that each training sees: about five minutes on two cores in all. Of larger patches a
# training sees as many as take the same time.
PRETRAINING_IMAGES = 2400
FINETUNING_IMAGES = 1400
REFERENCE_PIXELS = 96 * 96
PRETRAINING_BATCH = 12
EPOCHS = 10

TAIL = 25  # lines of a log that are shown when its step failed


@dataclass
class StepTimer:
    """Announces, runs and times steps."""

    execute: Callable[[Step], None]
    progress: ProgressBar
    done: DoneSteps
    layout: Layout
    seconds: dict[Step, float] = field(default_factory=dict)

    def __call__(self, step: Step) -> None:
        """Print the step's command, run it unless an earlier call did, and note its time."""
        if step.name in self.done.seconds:
            self.progress.say(f"\n$ {step.line}\n(done before)")
            self.progress.goes_on()
        else:
            now = continued(step, self.layout)
            if now != step:
                self.progress.goes_on()
            self.progress.say(f"\n$ {now.line}")
            start = time.monotonic()
            self.execute(now)
            self.done.add(step, time.monotonic() - start)
        self.seconds[step] = self.done.seconds[step.name]
        self.progress.finish(step.name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp demo`, the keywords of `run`."""
    parser.add_argument(
        "--data",
        type=path,
        metavar="FOLDER",
        help="a folder in the layout of M&Ms (default: a synthetic phantom is made)",
    )
    parser.add_argument(
        "--output",
        type=path,
        default=Path("demo"),
        metavar="FOLDER",
        help="where everything is written (default: %(default)s); new or empty, or the folder of "
        "an earlier demo: an interrupted one goes on, a finished one starts over",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="default: cuda when there is a GPU"
    )
    parser.add_argument(
        "--length",
        type=decimal,
        default=1.0,
        metavar="FACTOR",
        help="train this many times as long (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="of the phantom, the initial weights and the pretraining's order of the data; that of the fine-tunings "
        "follows it only where nnUNet_n_proc_DA=0 is exported (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="also keep the phantom, its prepared data and the intermediate checkpoints "
        "(with --data they always stay)",
    )
    parser.add_argument(NO_WARM, dest="warm", action="store_false", help=WARM_HELP)


def run_arguments(arguments: argparse.Namespace, again: str) -> int:
    """Run the demo with arguments that were parsed by the parser of `add_arguments`; `again` is the command's text."""
    names = ("data", "output", "device", "length", "seed", "keep", "warm")
    try:
        return run(**{name: getattr(arguments, name) for name in names})
    except KeyboardInterrupt:
        print(f"\nThe demo goes on where it stopped with: {again}", file=sys.stderr)
        raise


def run(
    data: Path | None = None,
    output: Path = Path("demo"),
    device: str | None = None,
    length: float = 1.0,
    seed: int = 0,
    keep: bool = False,
    warm: bool = True,
    execute: Callable[[Step], None] | None = None,
) -> int:
    """Convert, prepare, pretrain, fine-tune, predict and score, then write `report.html` and `scores.csv`.

    Args:
        data: Folder in the layout of M&Ms; None makes a phantom.
        output: Folder for everything that the demo writes.
        device: "cpu", "cuda" or "mps"; None takes the GPU when there is one.
        length: Factor on the number of training steps.
        seed: Seed of the phantom, the initial weights and the pretraining's order of the data; nnU-Net's workers, with
            which the demo fine-tunes, draw without it.
        keep: Keep the phantom, its prepared data and the intermediate checkpoints.
        warm: Start the commands from one process that has imported everything, where that is possible.
        execute: Runs a step; None runs its command in a process.

    Returns:
        0, the exit status.

    Raises:
        FileNotFoundError: `data` does not exist.
        ValueError: An argument breaks its rule, or the data leave nothing to compare on.
        RuntimeError: A step failed; the message shows its command and the end of its log.
    """
    if not 0 < length < math.inf:
        raise ValueError(f"`--length` (={length}) must be above 0.")
    device = choose_device(device)
    call = {"data": None if data is None else str(data.resolve()), "device": device}
    done = DoneSteps(
        output / FILE, {**call, "length": length, "seed": seed, "version": __version__}
    )
    open_folder(output, data, goes_on=bool(done.seconds))
    layout = Layout(output, "Phantom" if data is None else "MNMs")

    environment = demo_environment(output)
    with ExitStack() as stack:
        progress = stack.enter_context(
            ProgressBar(sum(WEIGHTS.values()) - (WEIGHTS["phantom"] if data else 0))
        )
        progress.say(f"{costs(output, length)}\n")
        stack.enter_context(warm_runner(environment, warm and execute is None, progress.say))
        progress.say(f"Device: {device}. What the commands say goes to {output / 'logs'}\n")
        progress.say("\n".join(environment_lines(output)))
        command_runner = CommandRunner(environment, output / "logs", progress)
        do = StepTimer(execute or command_runner, progress, done, layout)
        if data is None:
            do(phantom_step(output, seed))
        if "convert" not in done.seconds:
            # Of a call that ended between the conversion and its note.
            remove(output / "nnUNet_raw")
        do(convert_step(layout, data or output / "phantom"))
        dataset = read_demo_data(layout)
        do(Step("prepare", ("nnunet-ssp", "prepare", DATASET_ID, *PLAN_FLAGS)))
        plan = read_plan(layout.plans)
        trainings = training_steps(layout, device, plan, length, seed)
        for step in (*trainings, *prediction_steps(layout, device, dataset)):
            do(step)
        scores = score(layout, dataset)
        write_table(output / SCORES, COLUMNS, scores[[*COLUMNS]].round(4).to_dict("records"))
        setup = environment_lines(output)
        page = demo_page(layout, dataset, plan, scores, do.seconds, setup, device)
        page.write(output / "report.html")
    done.forget()

    print(f"\n{class_means(scores).round(3).to_string()}\n\n{CAVEAT}")
    if data is None and not keep:
        _remove_intermediate(layout)
        print(
            "The phantom and what was made of it for the trainings are removed; --keep keeps them."
        )
    print(f"Report: {output / 'report.html'}")
    return 0


def _remove_intermediate(layout: Layout) -> None:
    for name in INTERMEDIATE:
        remove(layout.output / name)
    for trainer in (PRETRAINER, FINETUNER, SCRATCH):
        for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
            remove(layout.fold(trainer) / name)


def costs(output: Path, length: float) -> str:
    """Return what is said at the start: about time, disk and network.

    Args:
        output: The demo's folder.
        length: Factor on the number of training steps.
    """
    at = (
        ""
        if length == 1
        else f" at full length (here the trainings take {length:g} times as many steps)"
    )
    return (
        f"The demo takes about ten minutes on two CPU cores{at}, less on a GPU, and half a gigabyte in {output}. It "
        "downloads nothing. If it is interrupted, the same command goes on."
    )


def open_folder(output: Path, data: Path | None = None, goes_on: bool = False) -> None:
    """Make the demo's folder, or remove from an earlier demo's folder what that demo made.

    Args:
        output: The folder.
        data: Folder of the user's data, if any.
        goes_on: Whether to keep what an interrupted demo made.

    Raises:
        FileNotFoundError: `data` is not a folder.
        ValueError: `output` holds something that is not ours, or `data` lies inside it.
    """
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"`--data` (={data}) must be an existing folder.")
    if data is not None and data.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"`--data` (={data}) must not lie in `--output` (={output}).")
    ours = (output / MARKER).exists()
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"`--output` (={output}) must be new, empty, or the folder of an earlier demo."
        )
    for name in CREATED:
        if not goes_on:
            remove(output / name)
    (output / "logs").mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def demo_environment(output: Path) -> dict[str, str]:
    """Make the environment of every step: the user's, with nnU-Net's folders inside the demo's."""
    environment = command_environment(output)
    environment.setdefault("nnUNet_compile", "f")  # compiling takes longer than these trainings
    environment["nnUNet_wandb_enabled"] = "0"  # nothing of a demo leaves the machine
    return environment


def phantom_step(output: Path, seed: int) -> Step:
    """Write synthetic cine: a few labelled subjects, more without labels, and test subjects."""
    subjects = ("--labelled", "4", "--unlabelled", "12", "--testing", "4")
    what = (*subjects, "--matrix", "96", "--frames", "10", "--seed", str(seed))
    return Step("phantom", ("nnunet-ssp", "phantom", str(output / "phantom"), *what))


def convert_step(layout: Layout, data: Path) -> Step:
    """Make nnU-Net's raw dataset."""
    where = ("-i", str(data), "-d", DATASET_ID, "--name", layout.name)
    command = ("nnunet-ssp", "convert", "mnms", *where)
    return Step("convert", command, made=layout.raw / "dataset.json")


def training_steps(
    layout: Layout, device: str, plan: Mapping[str, Any], length: float, seed: int
) -> list[Step]:
    """List pretraining, fine-tuning and its control; the last two have the same plans, steps and schedule.

    Args:
        layout: Where things are.
        device: As in nnU-Net's `-device`.
        plan: nnU-Net's 2d configuration: its `patch_size` (pixels) and `batch_size`.
        length: Factor on the number of steps.
        seed: Seed of all three.
    """
    share = length * REFERENCE_PIXELS / math.prod(plan["patch_size"])

    def iterations(images: int, batch_size: int) -> int:
        return max(1, round(images * share / batch_size / EPOCHS))

    def train(name: str, trainer: str, settings: str, *flags: str) -> Step:
        what = (DATASET_ID, "2d", "0", "-p", PLANS, "-tr", trainer)
        return Step(name, ("nnUNetv2_train", *what, *flags, "-device", device), settings)

    pretraining = (
        f"{MOVEMENT} num_epochs={EPOCHS} "
        f"iterations_per_epoch={iterations(PRETRAINING_IMAGES, PRETRAINING_BATCH)} "
        f"batch_size={PRETRAINING_BATCH} val_iterations_per_epoch=5 seed={seed}"
    )
    finetuning = (
        f"num_epochs={EPOCHS} "
        f"iterations_per_epoch={iterations(FINETUNING_IMAGES, plan['batch_size'])} "
        f"recipe=few val_iterations_per_epoch=5 final_validation=no seed={seed}"
    )
    weights = ("-pretrained_weights", str(layout.checkpoint(PRETRAINER)))
    return [
        train("pretrain", PRETRAINER, pretraining),
        train("finetune", FINETUNER, finetuning, *weights),
        train("scratch", SCRATCH, finetuning),
    ]


def prediction_steps(layout: Layout, device: str, dataset: DemoData) -> list[Step]:
    """List the predictions of both models, without workers and mirroring, which would take four times as long."""
    model = ("-d", DATASET_ID, "-c", "2d", "-f", "0", "-p", PLANS, "-tr")
    flags = ("--disable_tta", "-npp", "0", "-nps", "0", "-device", device)

    def predict(name: str, trainer: str) -> Step:
        folders = ("-i", str(dataset.images), "-o", str(layout.predictions(trainer)))
        return Step(name, ("nnUNetv2_predict", *model, trainer, *folders, *flags))

    return [predict("predict_finetune", FINETUNER), predict("predict_scratch", SCRATCH)]


def read_plan(file: Path) -> dict[str, Any]:
    """Read nnU-Net's 2d configuration."""
    plans = nnunet_files.read_plans(file)
    needed = ("patch_size", "batch_size")
    return nnunet_files.configuration_of(plans, "2d", str(file), needed)


def read_demo_data(layout: Layout) -> DemoData:
    """Read the converted dataset and choose the cases on which both models are compared.

    These are the test subjects or, where the data have none, fold 0's validation subjects. The images of the latter
    are copied to a folder of their own, because `nnUNetv2_predict` takes folders.

    Raises:
        ValueError: Fewer than two training subjects are labelled, so there is no fold 0.
    """
    from nnunet_ssp.cohort.membership import tested_cases
    from nnunet_ssp.cohort.splits import read_splits
    from nnunet_ssp.evaluation.labels import structure_of

    cases = read_cases(layout.raw / "cases.csv")
    splits_file = layout.raw / "splits_final.json"
    splits = read_splits(splits_file) if splits_file.exists() else []
    if not splits:
        raise ValueError(f"{layout.raw} must have at least two labelled training subjects.")
    dataset = nnunet_files.read_dataset(layout.raw / "dataset.json", ("labels", "file_ending"))

    tested = tested_cases(cases)
    what, images = "the test subjects", layout.raw / "imagesTs"
    references = layout.raw / "labelsTs"
    if not tested:
        tested = splits[0]["val"]
        what = "the validation subjects of fold 0 (these data have no test subjects)"
        images, references = layout.output / "imagesVal", layout.raw / "labelsTr"
        images.mkdir(exist_ok=True)
        for case in tested:
            file = f"{case}_0000{dataset['file_ending']}"
            shutil.copy(layout.raw / "imagesTr" / file, images / file)
    return DemoData(
        cases=cases,
        fold=splits[0],
        labels={structure_of(n): value for n, value in dataset["labels"].items() if value != 0},
        ending=dataset["file_ending"],
        tested=tested,
        tested_what=what,
        images=images,
        references=references,
    )


class CommandRunner:
    """Runner of steps, as processes that write to log files.

    Args:
        environment: Environment variables of the commands.
        logs: Folder for one log file per step.
        progress: Shows how far a training has come.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path, progress: ProgressBar) -> None:
        self.environment = environment
        self.logs = logs
        self.progress = progress

    def __call__(self, step: Step) -> None:
        """Run a step to its end.

        Raises:
            FileNotFoundError: The command is not installed.
            RuntimeError: It failed; the message names step, command and log, with its last lines.
        """
        log = self.logs / f"{list(WEIGHTS).index(step.name) + 1}_{step.name}.log"
        settings = {"nnUNet_ssp_settings": step.settings} if step.settings else {}
        with open(log, "wb") as sink:
            status = run_logged(
                step.command,
                sink,
                {**self.environment, **settings},
                lambda: self.progress.show(step.name, trained_part(log), last_said(log)),
            )
        if status == 1 and step.made is not None and step.made.is_file():
            self.progress.say(f"Subjects were refused and left out: see {log}")
        elif status != 0:
            raise RuntimeError(
                f"The step `{step.name}` failed with exit status {status}.\nCommand: {step.line}\n"
                f"Log: {log}, which ends with:\n\n{last_lines(log, TAIL) or '(nothing)'}"
            )


def trained_part(log: Path) -> float:
    """Read from a log the part of a training that is done, 0 to 1; 0 for other steps."""
    # "Epoch 3" opens an epoch; "Epoch time: 12.3 s" closes it.
    begun = re.findall(r"\bEpoch (\d+)\s*$", log.read_text("utf-8", "replace"), re.MULTILINE)
    return min(1.0, int(begun[-1]) / EPOCHS) if begun else 0.0


def last_said(log: Path) -> str:
    """Return the last line of a log that is not empty, as a terminal shows it: bars end in a carriage return."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", last_lines(log, 3))]
    return next((line[:80] for line in reversed(lines) if line), "")
