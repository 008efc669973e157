"""Checkpoints from anybody: opening one runs nothing, and any other file is refused in words."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.demo.report import read_curves
from nnunet_ssp.files import checkpoints
from nnunet_ssp.training.transfer import read
from tests.faults.malice import (
    PLACES,
    WRITERS,
    Copy,
    Evaluate,
    Shell,
    claims_memory,
    content_with,
    write_modern,
)


def good() -> dict[str, Any]:
    """A small checkpoint with every part, as our trainers write it."""
    return {
        "network_weights": OrderedDict({"encoder.w": torch.ones(2, 2), "decoder.w": torch.ones(2)}),
        "init_args": {
            "plans": {
                "dataset_name": "Dataset001_A",
                "plans_name": "P",
                "configurations": {"2d": {"spacing": [1, 1]}},
            },
            "configuration": "2d",
        },
        "logging": {"mean_fg_dice": [0.5]},
        "current_epoch": 3,
        "_best_ema": 0.5,
        "optimizer_state": {"state": {0: {}}, "param_groups": []},
        "ssp": {
            "trainer": "T",
            "method": "MIM",
            "weights_from": "scratch",
            "counts": {"subjects": 1, "frames": 2, "slices": 3},
            "settings": {"seed": 0},
            "subjects": ["a"],
            "papers": ["P"],
        },
    }


READERS: dict[str, Callable[[Path], Any]] = {
    "read": read,
    "demo": read_curves,
    "load": checkpoints.load,
}


def refused(file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which `inspect` refuses a file, as all readers do."""
    assert main(["inspect", str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    for reader in READERS.values():
        with pytest.raises((ValueError, OSError)) as caught:
            reader(file)
        assert f"error: {caught.value}\n" == said.err
    return said.err


ARMED = [
    *((writer, Copy, place) for writer in WRITERS for place in ("whole", "weights")),
    *(("modern", kind, place) for kind in (Copy, Evaluate, Shell) for place in PLACES),
]


@pytest.mark.parametrize(
    ("writer", "kind", "place"), ARMED, ids=[f"{w}-{k.__name__}-{p}" for w, k, p in ARMED]
)
def test_nothing_runs_when_a_checkpoint_is_opened(tmp_path, capsys, writer, kind, place):
    file, marker = tmp_path / "a.pth", tmp_path / "marker"
    WRITERS[writer](file, content_with(kind(marker), place, good()))
    said = refused(file, capsys)
    assert "a.pth is not " in said
    if writer != "old pickle":  # of which PyTorch understands some words only
        assert "opened, because it " in said and "--trust" in said and "trust=yes" in said
    assert not marker.exists()
    if writer in ("modern", "legacy"):  # the others are refused before any name is read
        assert f"it needs {kind.needs}" in said or f".{kind.needs}, which is no part" in said
    if writer in (
        "modern",
        "legacy",
        "newer zip",
    ):  # the file is armed: this is what did not happen
        torch.load(file, weights_only=False)
        assert marker.exists()


def test_one_s_own_file_is_opened_with_trust(tmp_path, capsys):
    file, marker = tmp_path / "a.pth", tmp_path / "marker"
    write_modern(file, content_with(Copy(marker), "logging", good()))
    content = good()
    content["logging"] = {"mean_fg_dice": [Copy(marker)]}
    write_modern(file, content)
    assert main(["inspect", str(file)]) == 1
    assert not marker.exists()
    assert main(["inspect", str(file), "--trust"]) == 0
    assert marker.exists()
    assert "method: MIM" in capsys.readouterr().out


def rename(file: Path, old: bytes, new: bytes) -> None:
    """Replace a name in the pickle of a checkpoint."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            assert not name.endswith("data.pkl") or old in part
            archive.writestr(name, part.replace(old, new) if name.endswith("data.pkl") else part)


@pytest.mark.parametrize("module", checkpoints.SCALAR)
def test_the_numbers_of_nnunets_logs_are_read(tmp_path, module):
    """Stock checkpoints of nnU-Net 2.8.1 hold NumPy's numbers, under the names of NumPy 1 or 2."""
    file = tmp_path / "a.pth"
    content = good()
    numbers = [np.float32(0.25), np.float64(0.1), np.int64(3), np.bool_(True)]
    content |= {"_best_ema": np.float32(0.5), "logging": {"mean_fg_dice": numbers}}
    content["init_args"]["device"] = torch.device("cuda", 0)
    write_modern(file, content)
    here = type(np.float64(0)).__reduce__(np.float64(0))[0].__module__
    rename(file, f"c{here}\n".encode(), f"c{module}\n".encode())
    loaded = checkpoints.load(file)
    assert loaded["logging"]["mean_fg_dice"] == numbers
    assert [type(n) for n in loaded["logging"]["mean_fg_dice"]] == [type(n) for n in numbers]
    assert loaded["_best_ema"] == 0.5
    assert read(file).ssp["method"] == "MIM"


@pytest.mark.parametrize("value", [np.ones(2), np.str_("a"), np.array([{}]), np.datetime64(1, "s")])
def test_no_other_type_of_numpy_is_let_in(tmp_path, capsys, value):
    file = tmp_path / "a.pth"
    write_modern(file, good() | {"logging": {"x": [value]}})
    assert "a.pth is not " in refused(file, capsys)


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


def endless() -> list[Any]:
    nested: list[Any] = []
    nested.append(nested)
    return nested


SPARSE = torch.ones(2, 2).to_sparse()
WRONG = {
    "weights list": (("network_weights",), [1], r"`network_weights` \(=\[1\]\) must be tensors"),
    "weights empty": (("network_weights",), {}, "must be tensors by name"),
    "weights names": (("network_weights",), {1: torch.ones(1)}, "must be tensors by name"),
    "weights text": (("network_weights", "encoder.w"), "x", "must be tensors by name"),
    "weights nested": (
        ("network_weights", "encoder.w"),
        [torch.ones(1)],
        "must be tensors by name",
    ),
    "weights sparse": (("network_weights", "encoder.w"), SPARSE, "must be tensors by name"),
    "weights meta": (("network_weights", "e"), torch.ones(2, device="meta"), "must be tensors"),
    "weights huge": (("network_weights", "e"), claims_memory(10**13), "must be tensors by name"),
    "epochs text": (
        ("current_epoch",),
        "three",
        r"`current_epoch` \(=three\) must be a whole number",
    ),
    "epochs negative": (("current_epoch",), -1, r"`current_epoch` \(=-1\) must be a whole number"),
    "logging list": (("logging",), [1], r"`logging` \(=\[1\]\) must be names with lists"),
    "logging text": (("logging", "mean_fg_dice"), "abc", "must be names with lists"),
    "logging deep": (("logging", "mean_fg_dice"), deep(150), "nest too deeply"),
    "best text": (("_best_ema",), "x", r"`_best_ema` \(=x\) must be a number"),
    "optimizer": (("optimizer_state",), 7, r"`optimizer_state` \(=7\) must be names"),
    "init_args": (("init_args",), [], r"`init_args` \(=\[\]\) must be names with values"),
    "plans": (("init_args", "plans"), "P", r"`init_args`: `plans` \(=P\) must be names"),
    "plans deep": (("init_args", "plans", "x"), deep(150), "nest too deeply"),
    "plans endless": (("init_args", "plans", "x"), endless(), "nest too deeply"),
    "configuration": (("init_args", "configuration"), 2, r"`configuration` \(=2\) must be text"),
    "configurations": (
        ("init_args", "plans", "configurations"),
        {"2d": 1},
        r"`init_args.plans`: `configurations` .* must be names with configurations",
    ),
    "ssp number": (("ssp",), 5, r"`ssp` \(=5\) must be names with values"),
    "ssp keys": (("ssp",), {1: 2}, r"`ssp` .* must be names with values"),
    "counts": (("ssp", "counts"), 3, r"`ssp`: `counts` \(=3\) must be numbers of subjects"),
    "counts text": (("ssp", "counts", "slices"), "x", "`counts` .* must be numbers of subjects"),
    "settings": (("ssp", "settings"), [1], r"`ssp`: `settings` \(=\[1\]\) must be names"),
    "pattern": (
        ("ssp", "settings", "subject_pattern"),
        3,
        r"`subject_pattern` \(=3\) must be a regular expression",
    ),
    "subjects": (("ssp", "subjects"), [[1]], r"`subjects` \(=\[\[1\]\]\) must be a list of text"),
    "papers": (("ssp", "papers"), "x", r"`papers` \(=x\) must be a list of text"),
    "method": (("ssp", "method"), {}, r"`method` \(=\{\}\) must be text"),
    "versions": (("ssp", "versions"), None, r"`versions` \(=None\) must be names"),
    "pretraining": (("ssp", "pretraining"), 1, r"`pretraining` \(=1\) must be names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_of_another_type_are_refused_in_words(tmp_path, capsys, name):
    place, value, message = WRONG[name]
    content = good()
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    write_modern(tmp_path / "a.pth", content)
    said = refused(tmp_path / "a.pth", capsys)
    assert "a.pth" in said
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.pth")


def whole(tmp_path: Path) -> bytes:
    write_modern(tmp_path / "whole.pth", good())
    return (tmp_path / "whole.pth").read_bytes()


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"This is no checkpoint.\n" * 50,
    "html": lambda _: b"<!doctype html><html>404</html>",
    "half": lambda whole: whole[: len(whole) // 2],
    "almost whole": lambda whole: whole[:-30],
    "zip's head": lambda whole: whole[:4],
    "turned": lambda whole: whole[::-1],
    "other zip": lambda _: b"PK\x05\x06" + bytes(18),
    "list": lambda _: pickle.dumps([1, 2], protocol=2),
    "half a pickle": lambda _: pickle.dumps({"network_weights": {}}, protocol=2)[:-5],
    "stops at once": lambda _: b"\x80\x02.",
    "marks without end": lambda _: b"\x80\x02" + b"(" * 100_000,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_checkpoint_is_refused_in_words(tmp_path, capsys, name):
    file = tmp_path / "a.pth"
    file.write_bytes(CONTENTS[name](whole(tmp_path)))
    assert "a.pth is not " in refused(file, capsys)


def test_a_folder_and_a_missing_file_are_refused_in_words(tmp_path, capsys):
    assert "is not a readable checkpoint (it is not a file)" in refused(tmp_path, capsys)
    (tmp_path / "fold_0").mkdir()
    for name in ("checkpoint_best.pth", "checkpoint_final.pth"):
        (tmp_path / "fold_0" / name).touch()
        one = tmp_path / "fold_0" / name
        assert f"(it is not a file): give {one}" in refused(tmp_path, capsys)
    assert f"give {one}, or another of the 2 in it." in refused(tmp_path, capsys)
    assert "none.pth does not exist" in refused(tmp_path / "none.pth", capsys)


def test_a_missing_checkpoint_is_near_to_one_in_the_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    missing = tmp_path / "Dataset120_Cine/nnUNetTrainerMIMPretrain__small__2d/fold_0"
    assert refused(missing / "checkpoint_final.pth", capsys).endswith("does not exist.\n")
    there = []
    for name in ("MIMPretrain__small__2d", "Finetune__nnUNetPlans__2d"):
        there.append(tmp_path / f"Dataset120_Cine/nnUNetTrainer{name}/fold_1/checkpoint_final.pth")
        there[-1].parent.mkdir(parents=True)
        there[-1].touch()
    for typed in (
        missing / "checkpoint_final.pth",
        Path("/other/machine", *missing.parts[-3:], "checkpoint_best.pth"),
    ):
        assert f"does not exist. Perhaps {there[0]}" in refused(typed, capsys)
    assert refused(tmp_path / "x" / "y.png", capsys).endswith("does not exist.\n")
    said = refused(Path("checkpoint_final.pth"), capsys)
    assert f"In nnUNet_results are: {there[1]}, {there[0]}." in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inspect_says_that_weights_are_not_finite(tmp_path, capsys, value):
    content = good()
    content["network_weights"]["decoder.w"][1] = value
    write_modern(tmp_path / "a.pth", content)
    assert main(["inspect", str(tmp_path / "a.pth")]) == 1
    said = capsys.readouterr().out
    assert "UNUSABLE: 1 of 2 tensors hold NaN or infinity, the first is decoder.w" in said
    with pytest.raises(ValueError, match=r"a\.pth: 1 of 2 tensors hold NaN or infinity"):
        checkpoints.refuse_non_finite("a.pth", content["network_weights"])


def test_numbers_are_looked_at_on_one_core(monkeypatch):
    """Beside a thread that takes checksums, several would wait for each other."""
    weights, asked = good()["network_weights"], []
    monkeypatch.setattr(checkpoints, "_is_lost", lambda tensor: asked.append(threads()) or False)
    threads = torch.get_num_threads
    before = threads()
    torch.set_num_threads(2)
    try:
        assert checkpoints.non_finite(weights) == []
        assert asked == [1] * len(weights) and threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_text_of_a_file_cannot_command_the_terminal(tmp_path, capsys):
    content = good()
    content["ssp"]["papers"] = ["\x1b[2Jfalse\r\nverdict: fits"]
    write_modern(tmp_path / "a.pth", content)
    assert main(["inspect", str(tmp_path / "a.pth")]) == 0
    assert r"cite: \x1b[2Jfalse\r\nverdict: fits" in capsys.readouterr().out
