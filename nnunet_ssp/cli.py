"""The `nnunet-ssp` command; a subcommand imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import nnunet_ssp
from nnunet_ssp.command_line import CommandParser
from nnunet_ssp.console import IdOrName, decimal, path, run_command, whole
from nnunet_ssp.heartbeat import signs_of_life, work
from nnunet_ssp.training.launched import add_train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; errors that a user can mend print one line, without a traceback.

    Returns:
        The exit status: 0, 1 for an error, 130 when interrupted.
    """
    # timm's, at its import, which is nnU-Net's: users can do nothing about it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.interface` is deprecated", FutureWarning)
    words = sys.argv[1:] if arguments is None else arguments
    parsed = _parser().parse_args(words)
    with signs_of_life(words[0]):
        return run_command(lambda: parsed.run(parsed), words[0])


def _parser() -> argparse.ArgumentParser:
    command = CommandParser(
        prog="nnunet-ssp",
        description="Self-supervised pretraining of nnU-Net's planned 2D network on cine MRI. "
        "Training and prediction are nnU-Net's own commands: nnUNetv2_train, nnUNetv2_predict.",
    )
    parser: argparse.ArgumentParser = command  # a subcommand's parser is one, too
    parser.add_argument("--version", action="version", version=nnunet_ssp.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_env(commands)
    _add_doctor(commands)
    _add_convert(commands)
    _add_folds(commands)
    _add_prepare(commands)
    add_train(commands)
    _add_inspect(commands)
    _add_sharing(commands)
    _add_phantom(commands)
    _add_demo(commands, command)
    _add_predict(commands, command)
    _add_evaluate(commands)
    _add_bench(commands)
    _add_study(commands)
    return parser


def _add_env(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.launch import SHELLS

    parser = commands.add_parser(
        "env", help='print the line that makes nnU-Net find our trainers: eval "$(nnunet-ssp env)"'
    )
    parser.add_argument(
        "--shell",
        choices=SHELLS,
        default=SHELLS[0],
        help="of which shell (default: %(default)s, for bash and zsh, too)",
    )
    parser.set_defaults(run=_env)


def _env(args: argparse.Namespace) -> None:
    from nnunet_ssp.launch import trainers_line

    print(trainers_line(args.shell))


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor", help="check versions, folders, trainers, GPU and disk, and say what to do"
    )

    def run(_: argparse.Namespace) -> int:
        from nnunet_ssp.doctor import examine

        return examine()

    parser.set_defaults(run=run)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.dataset_conversion import CONVERTERS, load_converter

    parser = commands.add_parser("convert", help="convert datasets to nnU-Net's raw format")
    sources = parser.add_subparsers(required=True, metavar="SOURCE", title="sources")
    for name, description in CONVERTERS.items():
        converter = load_converter(name)
        source = sources.add_parser(
            name,
            help=description,
            description=converter.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        converter.add_arguments(source)
        source.set_defaults(run=partial(_convert, name))


def _convert(converter: str, args: argparse.Namespace) -> int:
    from nnunet_ssp.dataset_conversion.command import run

    return run(converter, _without_run(args))


def _add_folds(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.cohort.arguments import add_arguments

    parser = commands.add_parser(
        "folds",
        help="list the folds of a dataset, append others, look for leaks",
        description="Without options: list the folds. New folds are appended, the others keep their numbers.",
    )
    add_arguments(parser)

    def run(args: argparse.Namespace) -> int:
        from nnunet_ssp.cohort.command import folds

        return folds(**_without_run(args))

    parser.set_defaults(run=run)


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prepare", help="nnU-Net's fingerprint, plans and preprocessing, then the slice store"
    )
    parser.add_argument("dataset", help="dataset id or name: 114 or Dataset114_MNMs")
    parser.add_argument(
        "-c",
        dest="configurations",
        metavar="CONFIGURATION",
        nargs="+",
        default=["2d"],
        help="one or more, as in nnU-Net (default: 2d)",
    )
    parser.add_argument("-p", dest="plans_name", metavar="PLANS", help="use these existing plans")
    parser.add_argument(
        "--plans-from",
        metavar="DATASET|ZIP",
        help="take the plans of another dataset (-p says which), or of a zip of export",
    )
    parser.add_argument(
        "-pl",
        dest="planner",
        metavar="PLANNER",
        default="ExperimentPlanner",
        help="nnU-Net's planner, e.g. nnUNetPlannerResEncM, BatchNormPlanner (de Mooij et al.'s network) or timm:MODEL "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=decimal,
        metavar="GB",
        help="as in nnU-Net; 0.1 plans a small patch for runs on a CPU",
    )
    parser.add_argument(
        "--patch",
        nargs=2,
        type=whole,
        metavar=("ROWS", "COLUMNS"),
        help="patch of the 2D plans, in place of the one that fills the memory",
    )
    parser.add_argument(
        "--width",
        type=decimal,
        metavar="FACTOR",
        help="features of the 2D network, as a multiple of the planned; 0.5 is a quarter of the work",
    )
    parser.add_argument(
        "--batch", type=whole, metavar="N", help="batch size of the 2D plans, for fine-tuning"
    )
    parser.add_argument(
        "-overwrite_plans_name",
        metavar="NAME",
        help="name of the plans made; train with -p NAME",
    )
    parser.add_argument(
        "-np", dest="workers", metavar="N", type=whole, help="N processes (default: as many as pay)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace folds that results were trained on"
    )
    parser.add_argument(
        "--any-plane",
        action="store_true",
        help="take 2D plans also across the slices, or with a patch below 32 x 32",
    )

    def run(args: argparse.Namespace) -> None:
        _suit_this_machine()
        from nnunet_ssp.preparation.command import prepare
        from nnunet_ssp.preparation.planning import Size

        given = _without_run(args)
        patch, width, batch = (given.pop(name) for name in ("patch", "width", "batch"))
        prepare(**given, size=Size(None if patch is None else tuple(patch), width, batch))

    parser.set_defaults(run=run)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect", help="show what a checkpoint holds, and whether it fits a dataset's plans"
    )
    parser.add_argument(
        "checkpoint",
        type=path,
        help="checkpoint_final.pth of a pretraining, or any of nnU-Net's; a zip of export; .safetensors",
    )
    parser.add_argument(
        "other",
        nargs="?",
        type=path,
        metavar="OTHER",
        help="compare its tensors with those of this file",
    )
    parser.add_argument(
        "-d", dest="dataset", metavar="DATASET", help="dataset id or name to compare with"
    )
    parser.add_argument(
        "-p",
        dest="plans_name",
        metavar="PLANS",
        help="its plans (default: those of the checkpoint's name, else nnUNetPlans)",
    )
    parser.add_argument(
        "-c",
        dest="configuration",
        metavar="CONFIGURATION",
        default="2d",
        help="configuration of the plans (default: %(default)s)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also open a file that runs code when it is opened: one that you made yourself",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="list what the file reveals about persons and the institution: names, paths, dates",
    )
    parser.add_argument(
        "--strip",
        metavar="OUT",
        type=path,
        help="write a checkpoint without those, which can be used as before",
    )

    def run(args: argparse.Namespace) -> int:
        from nnunet_ssp.training.inspection import inspect

        return inspect(**_without_run(args))

    parser.set_defaults(run=run)


def _add_sharing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.sharing.arguments import add_commands

    add_commands(commands)


def _add_phantom(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "phantom",
        help="write synthetic cine MRI with labels, in the layout of M&Ms",
        description="Write synthetic subjects in the layout of M&Ms, for tests and demos: results on them say "
        "nothing about patients. Files of the same name are overwritten, other files stay.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=path, help="where to write")
    parser.add_argument(
        "--labelled", type=whole, required=True, metavar="N", help="training subjects with masks"
    )
    for name, what in (
        ("unlabelled", "training subjects without masks"),
        ("validation", "validation subjects"),
        ("testing", "test subjects"),
        ("seed", "which population"),
    ):
        parser.add_argument(
            f"--{name}", type=whole, default=0, metavar="N", help=f"{what} (default: %(default)s)"
        )
    parser.add_argument(
        "--matrix",
        type=whole,
        default=96,
        metavar="PIXELS",
        help="side of the largest image, at least 32 (default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=whole,
        default=12,
        metavar="N",
        help="frames of a cycle, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--slices",
        type=whole,
        metavar="N",
        help="slices of a stack, at least 3 (default: 6 to 12, by vendor and heart)",
    )
    parser.add_argument(
        "-d",
        dest="dataset_id",
        metavar="ID",
        action=IdOrName,
        help="dataset for the next command, which is printed (default: the first free id from 114)",
    )
    parser.set_defaults(run=_phantom)


def _phantom(args: argparse.Namespace) -> None:
    from nnunet_ssp.nnunet import dataset_id, free_dataset_id
    from nnunet_ssp.phantom import write_mnms

    words = _without_run(args)
    wanted, name = words.pop("dataset_id"), words.pop("name", None)
    number = free_dataset_id() if wanted is None else dataset_id(wanted)
    dataset = f"Dataset{number:03d}_{name}" if name else str(number)
    try:
        folder = write_mnms(**words)
    except ValueError as error:  # it names its arguments, which here are options
        raise ValueError(re.sub(r"^`(\w+)`", r"`--\1`", str(error))) from None
    print(f"Phantom: {folder}")
    where = f"-i {shlex.quote(str(folder))} -d {dataset}"
    print(f"Next: nnunet-ssp convert mnms {where}")


def _add_demo(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], command: CommandParser
) -> None:
    from nnunet_ssp.demo import command as demo

    parser = commands.add_parser(
        "demo", help="the whole path in minutes: phantom, pretraining, fine-tuning, report"
    )
    demo.add_arguments(parser)
    parser.set_defaults(run=lambda args: demo.run_arguments(args, command.again()))


def _add_predict(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], command: CommandParser
) -> None:
    from nnunet_ssp.predict import arguments

    parser = commands.add_parser(
        "predict",
        help="from new cines to masks, volumes and EF, with doubts flagged",
        description=arguments.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_arguments(parser)

    def run(args: argparse.Namespace) -> int:
        _suit_this_machine()
        print("Loading PyTorch and nnU-Net ...", file=sys.stderr, flush=True)
        with work("loading PyTorch and nnU-Net"):
            from nnunet_ssp.predict.command import predict

        return predict(**_without_run(args), again=command.again())

    parser.set_defaults(run=run)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.evaluation import command

    parser = commands.add_parser(
        "evaluate",
        help="Dice, distances, volumes and EF of predictions, compared, with a report",
        description="Score predictions and compare models. Writes "
        f"{', '.join(command.OUTPUTS[:-1])} and {command.OUTPUTS[-1]}.",
    )
    command.add_arguments(parser)
    parser.set_defaults(run=lambda args: command.evaluate(**_without_run(args)) and None)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.bench import modes

    parser = commands.add_parser(
        "bench", help="speed and memory of every method on a phantom, as a table of ratios"
    )
    modes.add_arguments(parser)

    def run(args: argparse.Namespace) -> None:
        _suit_this_machine()
        modes.run(**_without_run(args))

    parser.set_defaults(run=run)


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nnunet_ssp.study import command

    parser = commands.add_parser(
        "study", help="many trainings as one workflow, with the papers' tables and figures"
    )
    command.add_arguments(parser)
    parser.set_defaults(run=lambda args: command.run(**_without_run(args)))


def _suit_this_machine() -> None:
    """Set the variables that nnU-Net reads when it is imported."""
    from nnunet_ssp.parallel import small_machine_environment

    os.environ.update(small_machine_environment(os.environ))


def _without_run(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name != "run"}


if __name__ == "__main__":
    sys.exit(main())
