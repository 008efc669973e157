"""Where names that are wider than their place may break: behind signs and before capitals, never within a word."""

from __future__ import annotations

import re
import textwrap

LONG = 20  # letters of the longest word


def pieces(name: str) -> list[str]:
    """Split a name where it may break, which no number does.

    >>> pieces("nnUNetTrainerScratch"), pieces("Mustermann_5")
    (['nnUNet', 'Trainer', 'Scratch'], ['Mustermann_', '5'])
    >>> pieces("0.657–0.762"), pieces("frame12.nii.gz")
    (['0.657–0.762'], ['frame12.', 'nii.', 'gz'])
    """
    found: list[str] = []
    for piece in re.split(
        r"(?<=[_/=+.-])(?!(?<=\d\.)\d)(?=[^\W_])|(?<=nnUNet)(?=[A-Z])|(?<=[a-z]{3})(?=[A-Z])", name
    ):
        # A longer one is no word, but letters and digits such as a hash.
        found += [piece] if len(piece) <= LONG else textwrap.wrap(piece, LONG)
    return found


def wrapped(text: str, width: int) -> str:
    r"""Break a text into lines, names where `pieces` lets them; a word wider than the lines breaks anywhere.

    >>> wrapped("nnUNetTrainerScratch of A", 15)
    'nnUNetTrainer\nScratch of A'
    """
    lines = [""]
    for word in text.split():
        begins = True
        for piece in pieces(word):
            gap = " " if begins and lines[-1] else ""
            if lines[-1] and len(lines[-1]) + len(gap) + len(piece) > width:
                lines.append("")
                gap = ""
            lines[-1] += gap + piece
            begins = False
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width))
