"""The slice store: its index, its arrays, and nnU-Net's own files that it is made from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.malformed import datasets
from tests.malformed.checkpoints import LOGS, Stranger, trainer
from tests.malformed.entry import ANY_FILE, Damage, Entry, cut
from tests.malformed.jsons import NOT_JSON, changed, put, without


def pretraining(
    spoil: Damage, name: str = "A_frame00.npy"
) -> Callable[[Path], Callable[[], object]]:
    """Run a pretraining up to its first batches, with one file of the store spoilt."""

    def make(root: Path) -> Callable[[], object]:
        store = datasets.store(datasets.prepared(root))
        spoil(store / name)

        def start() -> None:
            os.environ["nnUNet_ssp_settings"] = "num_epochs=1 batch_size=4"
            made = trainer("nnUNetTrainerMIMPretrain", continue_training=False)
            made.initialize()
            made.on_train_start()
            for _ in range(5):  # an epoch
                next(made.dataloader_train)
            next(made.dataloader_val)

        return start

    return make


def plain(spoil: Damage, name: str) -> Callable[[Path], Callable[[], object]]:
    """A plain nnU-Net dataset, whose store is made of nnU-Net's own files."""

    def make(root: Path) -> Callable[[], object]:
        home = datasets.prepared(root)
        shutil.rmtree(datasets.store(home))
        (home / "cases.csv").unlink()
        own = home / "nnUNetPlans_2d"
        spoil(own / name)

        def start() -> None:
            os.environ["nnUNet_ssp_settings"] = (
                "num_epochs=1 batch_size=4 subject_pattern=(.+)_frame"
            )
            made = trainer("nnUNetTrainerMIMPretrain", continue_training=False)
            made.initialize()
            made.on_train_start()

        return start

    return make


def array(values: object, **options: object) -> Damage:
    return lambda file: np.save(file, values, **options)  # type: ignore[arg-type]


def renamed(new: str) -> Callable[[dict], None]:  # type: ignore[type-arg]
    def change(content: dict) -> None:  # type: ignore[type-arg]
        content["cases"][new] = content["cases"].pop("A_frame00")

    return change


OF_ARRAYS: dict[str, tuple[Damage, str]] = {
    **{name: (damage, "cannot be read|damaged|prepare") for name, damage in ANY_FILE.items()},
    "cut": (cut(0.6), "cannot be read|damaged|size|prepare"),
    "gone": (lambda file: file.unlink(), "cannot be read|missing|prepare"),
    "another type": (array(np.zeros((3, 1, 20, 24), np.float32)), "float16|prepare"),
    "another shape": (array(np.zeros((3, 1, 24, 20), np.float16)), "float16|shape|prepare"),
    "objects": (
        array(np.array([Stranger()], object), allow_pickle=True),
        "cannot be read|float16|prepare",
    ),
}
ENTRY = ("cases", "A_frame00")
OF_INDEX: dict[str, tuple[Damage, str]] = {
    **{name: (damage, "damaged|JSON|must|prepare") for name, (damage, _) in NOT_JSON.items()},
    "no cases": (without("cases"), "damaged|cases"),
    "cases in a list": (put("cases", []), "damaged|cases"),
    "a case of null": (put(*ENTRY, None), "damaged|A_frame00"),
    "a shape in words": (put(*ENTRY, "shape", "large"), "damaged|shape"),
    "a shape of three sides": (put(*ENTRY, "shape", [1, 20, 24]), "damaged|shape"),
    "a negative shape": (put(*ENTRY, "shape", [-3, 1, 20, 24]), "damaged|shape"),
    "a shape of a thousand million": (
        put(*ENTRY, "shape", [10**9, 1, 10**9, 24]),
        "damaged|shape|A_frame00",
    ),
    "slices in words": (put(*ENTRY, "n_slices", "many"), "damaged|n_slices"),
    "a first slice beyond the last": (put(*ENTRY, "first_slice", 99), "damaged|first_slice"),
    "a case with a path": (changed(renamed("../../escaped")), "escaped"),
    "a case that cases.csv does not have": (changed(renamed("Z_frame00")), "Z_frame00.*cases.csv"),
    "other plans": (put("preprocessing", "spacing", [9.0, 9.0]), "other plans"),
    "preprocessing in a list": (put("preprocessing", [1]), "damaged|other plans|preprocessing"),
}


def entries() -> Iterator[Entry]:
    for name, (spoil, rule) in OF_ARRAYS.items():
        says = rf"error:.*A_frame00\.npy.*({rule})"
        yield Entry(f"store's array: {name}", pretraining(spoil), says, writes=LOGS)
    for name, (spoil, rule) in OF_INDEX.items():
        says = rf"error:.*nnUNetPlans_2d_slices.*({rule})"
        yield Entry(f"store's index: {name}", pretraining(spoil, "index.json"), says, writes=LOGS)
    for name in ("empty", "zeros", "cut"):
        spoil, _ = OF_ARRAYS[name]
        for ending in (".b2nd", ".pkl"):
            yield Entry(
                f"nnU-Net's {ending}: {name}",
                plain(spoil, f"A_frame00{ending}"),
                r"error:.*A_frame00.*(cannot be read|damaged)",
                writes=r"results(/.*)?$|preprocessed/[^/]+/nnUNetPlans_2d_slices(/.*)?$",
            )


ENTRIES = tuple(entries())
