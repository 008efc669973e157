"""Which mode of `nnunet-ssp bench` runs with which arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.bench import command, gpu, modes, steps
from nnunet_ssp.cli import main


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    for module in (command, steps, gpu):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "run", lambda *given, name=name: seen.append((name, *given)))
    return seen


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ([], ("command", None, None, None)),
        (["--device", "cpu", "--methods", "MIM"], ("command", ["MIM"], "cpu", None)),
        (["--steps", "--json", "a.json"], ("steps", None, Path("a.json"))),
        (["--gpu"], ("gpu", None, None, None, 8.0, None)),
        (["--gpu", "--minutes", "2.5", "--acdc", "F"], ("gpu", None, None, None, 2.5, Path("F"))),
    ],
)
def test_each_mode(calls, words, call):
    main(["bench", *words])
    assert calls == [call]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"minutes": 5.0}, "`--minutes` must come with --gpu"),
        ({"acdc": Path("F"), "steps_alone": True}, "`--acdc` must come with --gpu"),
        ({"steps_alone": True, "device": "cuda"}, r"`--device` \(=cuda\) must be cpu with --steps"),
    ],
)
def test_what_does_not_belong_together(calls, given, words):
    with pytest.raises(ValueError, match=words):
        modes.run(**given)
    assert not calls
