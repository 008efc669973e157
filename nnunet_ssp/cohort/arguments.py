"""The arguments of `nnunet-ssp folds`."""

from __future__ import annotations

import argparse

from nnunet_ssp.cohort.folds import UNITS
from nnunet_ssp.console import decimal, path, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp folds`, the keywords of `command.folds`."""
    parser.add_argument("dataset", help="dataset id or name: 114 or Dataset114_MNMs")
    make = parser.add_argument_group("append folds")
    _add_new_folds(make)
    make.add_argument("--dry-run", action="store_true", help="show the result, write nothing")
    make.add_argument(
        "--remove",
        metavar="N",
        nargs="+",
        type=whole,
        default=[],
        help="remove these of the appended folds: the last ones, on which nothing was trained",
    )
    make.add_argument(
        "--overwrite",
        action="store_true",
        help="replace folds of the same name, also when results were trained on them",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the subjects with the published lists; nothing is written",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look for leaks: subjects on two sides, test subjects in the slice store, look-alikes",
    )
    parser.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="with --check of a dataset without cases.csv: finds the subject in a case's name",
    )
    parser.add_argument(
        "--different",
        metavar="SUBJECT",
        nargs=2,
        action="append",
        default=[],
        help="with --check: these two are different people, though their images look alike",
    )


def _add_new_folds(make: argparse._ArgumentGroup) -> None:
    """Add the options that say which folds to append."""
    make.add_argument(
        "--paper", action="store_true", help="those of de Mooij et al. 2024, by their procedure"
    )
    make.add_argument("--few", action="store_true", help="those of the study acdc-few")
    make.add_argument(
        "--from",
        dest="files",
        metavar="FILE",
        nargs="+",
        type=path,
        default=[],
        help="published split files (YAML: test, train, valid), one fold each",
    )
    make.add_argument(
        "--subsets",
        dest="amounts",
        metavar="N",
        nargs="+",
        type=_amount,
        default=[],
        help="nested label subsets of these sizes, or fractions (0.1; all is 1.0), same validation",
    )
    make.add_argument(
        "--seeds", metavar="S", nargs="+", type=whole, help="one subset each (default: 0 1 2)"
    )
    make.add_argument(
        "--unit",
        choices=UNITS,
        help="what --subsets counts (default: subjects); slices come in whole frames",
    )
    make.add_argument(
        "--vendors", metavar="NAME", nargs="+", default=[], help="only frames of these vendors"
    )
    make.add_argument("--phase", choices=["ED", "ES"], help="only frames of this phase")
    make.add_argument(
        "--of",
        dest="base",
        metavar="FOLD",
        help="number or name of the fold that --subsets, --vendors, --phase start from (default: 0)",
    )


def _amount(text: str) -> int | float:
    """Read a number, or a fraction if it is written with a point."""
    try:
        return decimal(text) if "." in text else whole(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor a fraction") from None
