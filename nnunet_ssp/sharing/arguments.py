"""The arguments of `nnunet-ssp export` and `nnunet-ssp import`."""

from __future__ import annotations

import argparse

from nnunet_ssp.console import decimal, path
from nnunet_ssp.settings import TrainingSettings

EXPORT = """Pack a pretraining for others: one zip with weights, plans and a card.

    nnunet-ssp export fold_0/checkpoint_final.pth -o heart-mim

The zip holds no pickle, no path and no name of a subject; hashes of subjects go along, by which others find out that
the weights have seen one of their test subjects. Nothing is uploaded.
"""
IMPORT = """Check a pretraining that somebody shared, and get it ready for a dataset of your own.

    nnunet-ssp import heart-mim.zip -d 114

Nothing in the file is run. Its plans become plans of the dataset, so that images get the spacing and normalisation that
the weights know. The commands to go on with are printed.
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    raw = argparse.RawDescriptionHelpFormatter
    export = commands.add_parser(
        "export",
        help="pack a pretraining for others: weights, plans and a card, without names",
        description=EXPORT,
        formatter_class=raw,
    )
    _add_export_arguments(export)
    export.set_defaults(run=_export)
    importing = commands.add_parser(
        "import",
        help="check a pretraining that somebody shared, and use its plans for a dataset",
        description=IMPORT,
        formatter_class=raw,
    )
    _add_import_arguments(importing)
    importing.set_defaults(run=_import)


def _export(args: argparse.Namespace) -> None:
    from nnunet_ssp.sharing.export import export_checkpoint

    export_checkpoint(**{name: value for name, value in vars(args).items() if name != "run"})


def _import(args: argparse.Namespace) -> None:
    from nnunet_ssp.sharing.importing import import_bundle

    import_bundle(args.file, args.dataset, args.plans_name, args.pth, args.adapt, args.least)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=path, help="checkpoint_final.pth of a pretraining"
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="NAME",
        type=path,
        required=True,
        help="what to write: NAME.zip, or with --hub the folder NAME",
    )
    parser.add_argument("--half", action="store_true", help="store float16: half the size, rounded")
    parser.add_argument(
        "--subjects", action="store_true", help="list the subjects by name in the card"
    )
    parser.add_argument(
        "--data-licence",
        metavar="TEXT",
        nargs="+",
        default=[],
        help="licences of the data, for the card, as 'M&Ms: CC BY-NC-SA 4.0'",
    )
    parser.add_argument(
        "--hub",
        action="store_true",
        help="write the folder that Hugging Face's hub expects, with README.md",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also open a file that runs code when it is opened: one that you made yourself",
    )


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="ZIP", type=path, help="the zip, or the folder from a hub")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "-p",
        dest="plans_name",
        metavar="PLANS",
        help="name for the plans in that dataset (default: that of the file)",
    )
    parser.add_argument(
        "--pth",
        metavar="FILE",
        type=path,
        help="also write a checkpoint, which nnU-Net's own trainers take as -pretrained_weights",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="fit the weights to the dataset where they do not: other channels, or with -p its own plans; as adapt=yes "
        "in training",
    )
    parser.add_argument(
        "--min-transferred",
        dest="least",
        metavar="SHARE",
        type=decimal,
        help="least share of the encoder's parameters that --adapt must take from the file, as min_transferred in "
        f"training (default: {TrainingSettings.min_transferred:g})",
    )
