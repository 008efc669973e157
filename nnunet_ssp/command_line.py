"""The parser of our command: argparse's, whose errors also say what was probably meant."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from nnunet_ssp.console import nearest

# What users call the sources of `convert`, with ours
SOURCES = {
    "cine": "dicom dcm dicoms nifti nii own hospital custom cmr cardiac sunnybrook ukbb",
    "images": "png jpg jpeg tif tiff imagenet natural",
    "mnms": "mms m&ms mnm mm1",
    "mnms2": "mms2 m&ms2 m&ms-2 mm2",
}


class CommandParser(argparse.ArgumentParser):
    """Names the nearest choice for a wrong one, and paths with blanks that lack their quotes."""

    typed: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line, by default this process's."""
        self.typed = list(sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage, message and hint, and exit with status 2."""
        super().error(message + (_unquoted(message, self.typed) or _meant(message)))


def _unquoted(message: str, typed: Sequence[str]) -> str:
    """Return a hint if words that nothing takes are parts of one existing path."""
    if not message.startswith("unrecognized arguments: "):
        return ""
    for first in range(len(typed)):
        for last in range(first + 2, len(typed) + 1):
            words = typed[first:last]
            if words[-1].startswith("-"):
                break
            joined = " ".join(words)
            if any(word in message.split()[2:] for word in words[1:]) and os.path.exists(
                os.path.expanduser(joined)
            ):
                return f". A path with blanks needs quotes: {shlex.quote(joined)}"
    return ""


def _meant(message: str) -> str:
    """Return a hint on the choice that is nearest to a wrong one."""
    found = re.search(
        r"invalid choice: '(?P<wrong>[^']*)' \(choose from (?P<choices>.*)\)", message
    )
    if not found:
        return ""
    choices = re.findall(r"[\w+&.-]+", found["choices"])
    if {*SOURCES} <= {*choices}:
        for source, names in SOURCES.items():
            if found["wrong"].casefold().rstrip(":") in names.split():  # dicom: as in acdc:FOLDER
                own = ", for DICOM and NIfTI of your own" if source == "cine" else ""
                return f". That is {source}{own}: nnunet-ssp convert {source} -i FOLDER -d ID"
    return f".{near}" if (near := nearest(found["wrong"], choices, 1)) else ""
