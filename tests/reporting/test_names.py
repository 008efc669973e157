from __future__ import annotations

import pytest

from nnunet_ssp.reporting.names import pieces, wrapped


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nnUNetTrainerMIMPretrain", ["nnUNet", "Trainer", "MIMPretrain"]),
        ("nnUNet_results/Dataset120", ["nnUNet_", "results/", "Dataset120"]),
        ("supercalifragilistic", ["supercalifragilistic"]),
        ("0f" * 16, ["0f" * 10, "0f" * 6]),
    ],
)
def test_pieces_are_words(name: str, parts: list[str]):
    assert pieces(name) == parts


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("nnUNetTrainerFinetune", 18, ["nnUNetTrainer", "Finetune"]),
        ("from scratch, averaged", 14, ["from scratch,", "averaged"]),
        ("Model A", 18, ["Model A"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("", 4, [""]),
    ],
)
def test_lines_are_no_wider_than_their_place(text: str, width: int, lines: list[str]):
    assert wrapped(text, width).split("\n") == lines
