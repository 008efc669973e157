"""The commands of all converters: the arguments that they share, and the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from nnunet_ssp.console import IdOrName, NewName, path, run_command, whole
from nnunet_ssp.conversion.subjects import TEST_FRAMES
from nnunet_ssp.dataset_conversion import SOURCES, load_converter


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    folder: str,
    name: str,
    test: str,
    metavar: str | tuple[str, ...] = "FOLDER",
    nargs: int | None = None,
) -> None:
    """Add the arguments that all commands have.

    Args:
        parser: The command's parser.
        folder: Help on the input folder.
        name: Default name of the new dataset.
        test: The division that a list of test subjects replaces, in words.
        metavar: Name of the input folder, or of several.
        nargs: Number of input folders, if there are several.
    """
    add_place(parser, folder, name, "Dataset114_MNMs", metavar, nargs)
    parser.add_argument(
        "--test",
        metavar="FILE",
        type=path,
        help=f"names of the test subjects, one a line, instead of {test}",
    )
    parser.add_argument(
        "--test-frames",
        choices=TEST_FRAMES,
        default=TEST_FRAMES[0],
        help="of test subjects: `all` keeps the unlabelled frames, too, in imagesTs, for prediction only [%(default)s]",
    )
    sources = ", ".join(SOURCES)
    parser.add_argument(
        "--add",
        metavar="SOURCE:FOLDER",
        action="append",
        default=[],
        help=f"another source for the same dataset ({sources}); may be repeated; names then begin with the source",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be converted, write nothing"
    )
    parser.add_argument(
        "--keep-ids",
        action="store_true",
        help="keep the names of own cine; by default they become random ones, with the key in nnUNet_raw/.ssp-keys",
    )
    add_running(parser)


def add_place(
    parser: argparse.ArgumentParser,
    folder: str,
    name: str,
    example: str,
    metavar: str | tuple[str, ...] = "FOLDER",
    nargs: int | None = None,
) -> None:
    """Add what is read and which dataset is made; `example` is a full name, for the rest see `add_arguments`."""
    parser.add_argument(
        "-i",
        dest="input_folder",
        metavar=metavar,
        nargs=nargs,
        type=path,
        required=True,
        help=folder,
    )
    parser.add_argument(
        "-d",
        dest="dataset_id",
        metavar="ID",
        action=IdOrName,
        required=True,
        help=f"new dataset's id, or its id and name: {example}",
    )
    parser.add_argument(
        "--name", action=NewName, default=name, help="new dataset's name [%(default)s]"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add what to do with an earlier conversion, and the number of processes."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="convert again under this id; deletes the earlier converted dataset, never your files",
    )
    parser.add_argument(
        "-np",
        dest="workers",
        metavar="N",
        type=whole,
        help="N processes (default: as many as pay)",
    )


def main(
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    convert: Callable[..., object],
) -> int:
    """Run a converter as a script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    arguments = vars(parser.parse_args())
    return run_command(lambda: _status(convert, arguments), "convert")


def run(converter: str, arguments: Mapping[str, Any]) -> int:
    """Convert as a command.

    Args:
        converter: One of `CONVERTERS`.
        arguments: Of its `convert`.

    Returns:
        The exit status: 1 if a subject was, or would be, refused.
    """
    convert = load_converter(converter).convert
    if converter == "images":  # one that is left out is no patient who is missing
        convert(**arguments)
        return 0
    return _status(convert, arguments)


def _status(convert: Callable[..., object], arguments: Mapping[str, Any]) -> int:
    refused: list[int] = []
    convert(**arguments, count_refused=refused.append)
    return int(any(refused))
