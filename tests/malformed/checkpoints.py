"""Checkpoints, as `inspect`, `-pretrained_weights` and `--c` read them."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.malformed import datasets
from tests.malformed.entry import ANY_FILE, Damage, Entry, cut, flip, folder


class Marker:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('escaped', 'w').write('code was run')",))


class Stranger:
    """A class that the reader does not know."""


def content(
    change: Callable[[dict[str, Any]], Any] = lambda c: None, zipped: bool = True
) -> Damage:
    """A checkpoint with another content; `change` edits it, or returns what replaces it."""

    def damage(file: Path) -> None:
        held = datasets.checkpoint()
        if file.is_file():
            held = torch.load(file, weights_only=False)
        new = change(held)
        torch.save(held if new is None else new, file, _use_new_zipfile_serialization=zipped)

    return damage


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = path

    def change(held: Any) -> None:
        for key in keys:
            held = held[key]
        held[last] = value

    return change


def weight(make: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """Another value of the first convolution."""

    def change(held: dict[str, Any]) -> None:
        weights = held["network_weights"]
        name = next(key for key in weights if weights[key].ndim == 4)
        weights[name] = make(weights[name])

    return change


def not_finite(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return make


def raw_pickle(value: object) -> Damage:
    return lambda file: file.write_bytes(pickle.dumps(value)) and None


def code_in_zip(file: Path) -> None:
    """A whole checkpoint whose pickle calls a function first."""
    content()(file)
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, part in parts.items():
            new.writestr(name, pickle.dumps(Marker()) if name.endswith("data.pkl") else part)


def scripted(file: Path) -> None:
    """A TorchScript archive, as `torch.jit.save` writes it."""
    with zipfile.ZipFile(file, "w") as new:
        new.writestr("x/data.pkl", b"\x80\x02}q\x00.")
        new.writestr("x/constants.pkl", b"\x80\x02).")
        new.writestr("x/version", b"3\n")
        new.writestr("x/code/__torch__.py", "class M: pass\n")


def huge(file: Path) -> None:
    """A safetensors file that declares more than it holds."""
    head = json.dumps(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head)


NO_CHECKPOINT = (
    "(not a (readable )?checkpoint|not an nnU-Net checkpoint|not opened|cannot be read|damaged"
    "|git-lfs|empty)"
)
REFUSED: dict[str, tuple[Damage, str]] = {
    **{name: (damage, NO_CHECKPOINT) for name, damage in ANY_FILE.items()},
    "cut at 10 %": (lambda f: (content()(f), cut(0.1)(f))[0], NO_CHECKPOINT),
    "cut at 99 %": (lambda f: (content()(f), cut(0.99)(f))[0], NO_CHECKPOINT),
    "old form, cut": (lambda f: (content(zipped=False)(f), cut(0.6)(f))[0], NO_CHECKPOINT),
    "one byte of the pickle wrong": (lambda f: (content()(f), flip(0.01)(f))[0], NO_CHECKPOINT),
    "a folder": (lambda f: (f.touch(), folder(f))[0], "does not exist|folder|not a file"),
    "code": (content(lambda held: {**held, "x": Marker()}), "trust"),
    "code in the old form": (content(lambda held: {**held, "x": Marker()}, zipped=False), "trust"),
    "code in the pickle of a whole file": (code_in_zip, "trust|" + NO_CHECKPOINT),
    "code as a plain pickle": (raw_pickle(Marker()), "trust|" + NO_CHECKPOINT),
    "a class that is not known": (
        content(lambda held: {**held, "x": Stranger()}),
        "trust.*Stranger|Stranger.*trust",
    ),
    "an array of objects": (content(put("x", np.array([Stranger()], dtype=object))), "trust"),
    "a subject pattern that is none": (
        content(lambda held: held["ssp"]["settings"].update(subject_pattern="(")),
        "ssp.settings.*subject_pattern.*regular expression",
    ),
    "a subject pattern that never ends": (
        content(lambda held: held["ssp"]["settings"].update(subject_pattern="(.+)+$|(a|a)*$")),
        "ssp.settings.*subject_pattern.*repetitions",
    ),
    "TorchScript": (scripted, NO_CHECKPOINT + "|TorchScript"),
    "safetensors of 4 TB": (huge, NO_CHECKPOINT + "|safetensors"),
    "a list": (content(lambda held: [1, 2]), NO_CHECKPOINT),
    "a tensor": (content(lambda held: torch.zeros(3)), NO_CHECKPOINT),
    "no weights": (content(lambda held: held.pop("network_weights") and None), "network_weights"),
    "weights in a list": (content(put("network_weights", [1, 2])), "network_weights"),
    "no weight": (content(put("network_weights", {})), "network_weights"),
    "weights of numbers": (content(put("network_weights", {"a": 1})), "network_weights.*a"),
    "numbers for names of weights": (
        content(put("network_weights", {1: torch.zeros(1)})),
        "network_weights",
    ),
    "weights on no device": (
        content(weight(lambda t: t.to("meta"))),
        "network_weights|meta|" + NO_CHECKPOINT,
    ),
    "NaN": (content(weight(not_finite(float("nan")))), "NaN|finite"),
    "infinity": (content(weight(not_finite(float("inf")))), "infinit|finite"),
    "a record in a list": (content(put("ssp", ["MIM"])), "ssp"),
    "counts in words": (content(put("ssp", "counts", "many")), "counts"),
    "settings in a list": (content(put("ssp", "settings", [1])), "settings"),
    "subjects of numbers": (content(put("ssp", "subjects", 7)), "subjects"),
    "arguments in a list": (content(put("init_args", [1])), "init_args"),
    "plans in a text": (content(put("init_args", "plans", "nnUNetPlans")), "plans"),
    "a configuration of a number": (content(put("init_args", "configuration", 2)), "configuration"),
    "plans that inherit from themselves": (
        content(put("init_args", "plans", "configurations", {"2d": {"inherits_from": "2d"}})),
        "inherit",
    ),
    "a version-1 nnU-Net file": (
        content(lambda held: {"epoch": 3, "state_dict": held["network_weights"], "plot_stuff": ()}),
        "network_weights|version 1|nnU-Net v1|nnU-Net 1",
    ),
}


def of_inspect(spoil: Damage) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        datasets.prepared(root)
        spoil(root / "spoilt.pth")
        return ["inspect", str(root / "spoilt.pth"), "-d", datasets.NUMBER]

    return make


def trainer(name: str, **plans: Any) -> Any:
    """A trainer as nnU-Net makes it from the prepared dataset of this process's environment."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    home = Path(os.environ["nnUNet_preprocessed"]) / datasets.NAME
    content = {**json.loads((home / "nnUNetPlans.json").read_text()), **plans}
    made = recursive_find_trainer_class_by_name(name)
    dataset_json = json.loads((home / "dataset.json").read_text())
    return made(content, "2d", 0, dataset_json, torch.device("cpu"))


def of_weights(spoil: Damage) -> Callable[[Path], Callable[[], object]]:
    """Do what `nnUNetv2_train ... -pretrained_weights FILE` does before its first step."""

    def make(root: Path) -> Callable[[], object]:
        datasets.prepared(root)
        file = root / "spoilt.pth"
        spoil(file)

        def start() -> None:
            from nnunetv2.run.run_training import maybe_load_checkpoint

            sys.argv = ["nnUNetv2_train", "907", "2d", "0", "-pretrained_weights", str(file)]
            made = trainer("nnUNetTrainerFinetune", continue_training=False)
            maybe_load_checkpoint(made, False, False, str(file))

        return start

    return make


_saved: dict[str, bytes] = {}  # by trainer, what it saves before its first step


def of_resuming(name: str, spoil: Damage) -> Callable[[Path], Callable[[], object]]:
    """Do what `nnUNetv2_train ... --c` does before its first step."""

    def make(root: Path) -> Callable[[], object]:
        datasets.prepared(root)
        fold = root / "results" / datasets.NAME / f"{name}__nnUNetPlans__2d" / "fold_0"
        fold.mkdir(parents=True)
        file = fold / "checkpoint_latest.pth"
        if name == "nnUNetTrainerMIMPretrain":
            os.environ["nnUNet_ssp_settings"] = "batch_size=4"
        if name not in _saved:
            made = trainer(name, continue_training=False)
            made.initialize()
            if name == "nnUNetTrainerMIMPretrain":
                made.on_train_start()  # its checkpoint says what it draws from
            made.save_checkpoint(str(file))
            _saved[name] = file.read_bytes()
        file.write_bytes(_saved[name])
        spoil(file)

        def start() -> None:
            from nnunetv2.run.run_training import maybe_load_checkpoint

            sys.argv = ["nnUNetv2_train", "907", "2d", "0", "--c"]
            made = trainer(name, continue_training=True)
            maybe_load_checkpoint(made, True, False, None)

        return start

    return make


LOGS = r"results(/.*)?$"  # the folder of the fold and its log, where there is one


def entries() -> Iterator[Entry]:
    for name, (spoil, rule) in REFUSED.items():
        says = rf"error:.*spoilt\.pth.*({rule})"
        if name in ("NaN", "infinity"):  # it is shown all the same
            says = r"spoilt\.pth.*DOES NOT FIT.*NaN or infinity"
        yield Entry(f"inspect: {name}", of_inspect(spoil), says)
    # Parts of the record that older files do not have.
    for name, change, says in (
        ("a method without counts", lambda h: h["ssp"].pop("counts") and None, "unknown data"),
        (
            "plans without a name",
            lambda h: h["init_args"]["plans"].pop("dataset_name") and None,
            "shared and stripped files leave out",
        ),
    ):
        yield Entry(f"inspect: {name}", of_inspect(content(change)), says, exits=0)
    for name in (
        *("zeros", "cut at 99 %", "code", "code in the old form", "code as a plain pickle"),
        *("a class that is not known", "weights in a list", "no weight", "NaN", "infinity"),
        *("a record in a list", "subjects of numbers"),
        *("a subject pattern that is none", "a subject pattern that never ends"),
        "plans that inherit from themselves",
    ):
        spoil, rule = REFUSED[name]
        says = rf"error:.*spoilt\.pth.*({rule})"
        yield Entry(f"-pretrained_weights: {name}", of_weights(spoil), says, writes=LOGS)
    for trainer_name in ("nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"):
        for name in (
            "empty",
            "zeros",
            "cut at 99 %",
            "code",
            "a list",
            "no weights",
            "weights in a list",
            "NaN",
        ):
            spoil, rule = REFUSED[name]
            says = rf"error:.*checkpoint_latest\.pth.*({rule})"
            make = of_resuming(trainer_name, spoil)
            yield Entry(f"--c of {trainer_name}: {name}", make, says, writes=LOGS)


ENTRIES = tuple(entries())
