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


# Paths that a command makes, which need not exist, by their names in the parsers
MADE = {"output", "folder", "strip", "pth", "json"}
LONGEST = 4096  # characters of a path


class CommandParser(argparse.ArgumentParser):
    """Names the nearest choice for a wrong one, and paths with blanks that lack their quotes."""

    typed: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line, by default this process's.

        Where several values may follow, parts of one path pass as several paths: they are refused here.
        """
        self.typed = list(sys.argv[1:] if args is None else args)
        parsed = super().parse_args(args, namespace)
        if joined := _split_path(self.typed):
            super().error(f"{joined} lacks its quotes{_quoted(joined)}")
        return parsed

    def again(self) -> str:
        """Return the command that was typed, to be typed again."""
        return shlex.join(["nnunet-ssp", *self.typed])

    def error(self, message: str) -> NoReturn:
        """Print usage, message and hint, and exit with status 2."""
        said = self._unquoted(message) or _meant(message) or self._forgotten(message)
        super().error(message + said)

    def _forgotten(self, message: str) -> str:
        """Return a hint where the only place of `evaluate` was read as its dataset."""
        if not self.prog.endswith(" evaluate") or "required: FOLDER" not in message:
            return ""
        return ". The dataset comes first: nnunet-ssp evaluate DATASET FOLDER"

    def _unquoted(self, message: str) -> str:
        """Return a hint if words that nothing takes are parts of one path."""
        if not message.startswith("unrecognized arguments: "):
            return ""
        untaken = message.split()[2:]
        joined = _split_path(self.typed, untaken) or self._split_new_path(untaken)
        return _quoted(joined) if joined else ""

    def _split_new_path(self, untaken: Sequence[str]) -> str:
        """Return the path that a command is to make, if words that nothing takes are the end of it."""
        parser, place = _parser_of(self, self.typed)
        action = next((a for a in parser._actions if a.dest in MADE and not a.option_strings), None)
        words: list[str] = []
        for word in [*self.typed[place:], "-"]:
            if not word.startswith("-"):
                words.append(word)
                continue
            if action and action.dest in MADE and words[1:] and words[1:] == untaken:
                return " ".join(words)
            action, words = parser._option_string_actions.get(word), []
        return ""


def _parser_of(
    parser: argparse.ArgumentParser, typed: Sequence[str]
) -> tuple[argparse.ArgumentParser, int]:
    """Return the parser of the command that was typed, and the number of words that name it."""
    place = 0
    while place < len(typed):
        choices = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not choices or typed[place] not in choices[0]:
            break
        parser, place = choices[0][typed[place]], place + 1
    return parser, place


def _split_path(typed: Sequence[str], untaken: Sequence[str] = ()) -> str:
    """Return the existing path that consecutive words spell, if nothing takes one of them, or one is no path itself."""
    # Once for each word: a shell may have put hundreds of paths in place of an asterisk.
    there = [_exists(word) for word in typed]
    for first, word in enumerate(typed):
        joined, apart = word, not (there[first] or word.isdecimal())  # a dataset's id is no path
        for last in range(first + 1, len(typed)):
            joined += f" {typed[last]}"
            if typed[last].startswith("-") or len(joined) > LONGEST:
                break
            apart = apart or typed[last] in untaken or not there[last]
            if apart and _exists(joined):
                return joined
    return ""


def _exists(word: str) -> bool:
    """Whether a word, or what follows `NAME=` in it, is a path that exists."""
    name, _, place = word.partition("=")
    places = [word] if " " in name else [word, place]
    return any(place and os.path.exists(os.path.expanduser(place)) for place in places)


def _quoted(path: str) -> str:
    return f". A path with blanks needs quotes: {shlex.quote(path)}"


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
