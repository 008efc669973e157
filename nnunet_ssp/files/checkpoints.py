"""The one place where checkpoints are opened, without running code that they may hold.

A checkpoint is a pickle, and a pickle may call any function. `load` allows tensors, Python's own values and the few
NumPy types that nnU-Net stores in its logs. It refuses all else by name.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssp.files import patterns
from nnunet_ssp.files.bundles import DRAWN, is_shared, read_shared
from nnunet_ssp.files.contents import (
    COUNT,
    NAMES,
    NUMBER,
    TEXT,
    TEXTS,
    WAY_OUT,
    Rule,
    check,
    nests_too_deeply,
    optional,
    printable,
)
from nnunet_ssp.parallel import one_thread

# Pickles of NumPy 1 and of NumPy 2 call the function that makes a number by these names.
SCALAR = ("numpy.core.multiarray", "numpy._core.multiarray")
# nnU-Net logs means in double or single precision; the other types are as harmless.
DTYPES = ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")


def _is_whole_tensor(value: object) -> bool:
    """Whether a value is an ordinary tensor with no more elements than are stored; others could fill the memory."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return False
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


WEIGHTS = Rule(
    "tensors by name",
    lambda v: NAMES.holds(v) and bool(v) and all(map(_is_whole_tensor, v.values())),
)
PARTS = {
    "network_weights": WEIGHTS,
    "optimizer_state": optional(NAMES),
    "grad_scaler_state": optional(NAMES),
    "logging": Rule(
        "names with lists",
        lambda v: NAMES.holds(v) and all(isinstance(curve, list) for curve in v.values()),
    ),
    "_best_ema": optional(NUMBER),
    "current_epoch": COUNT,
    "init_args": NAMES,
    "trainer_name": TEXT,
    "ssp": NAMES,
    "ssp_state": NAMES,
    "ssp_early_stopping": NAMES,
    "ssp_trained_weights": WEIGHTS,
}
INIT_ARGS = {"plans": NAMES, "configuration": TEXT, "dataset_json": NAMES}
COUNTS = Rule(
    "numbers of subjects, frames and slices",
    lambda v: NAMES.holds(v)
    and all(COUNT.holds(v.get(name)) for name in ("subjects", "frames", "slices")),
)
SNAPSHOT = Rule(
    "epochs, and of how many",
    lambda v: (
        NAMES.holds(v)
        and all(COUNT.holds(v.get(name)) for name in ("epochs", "of"))
        and (v.get("probe_dice") is None or NUMBER.holds(v["probe_dice"]))
    ),
)
SSP = {
    "trainer": TEXT,
    "method": TEXT,
    "transfers": TEXT,
    "adapted": TEXT,
    "weights_from": TEXT,
    "precision": TEXT,
    "memory_format": TEXT,
    "settings": NAMES,
    "versions": NAMES,
    "subjects": TEXTS,
    "papers": TEXTS,
    "pretraining": NAMES,
    "counts": COUNTS,
    "unlabelled": COUNTS,
    "preprocessing": NAMES,
    "snapshot": SNAPSHOT,
    "chain": Rule("a list of records", lambda v: isinstance(v, list) and all(map(NAMES.holds, v))),
}
SETTINGS = {"subject_pattern": optional(Rule(patterns.RULE, patterns.is_pattern))}
PLANS = {
    "dataset_name": TEXT,
    "plans_name": TEXT,
    "configurations": Rule(
        "names with configurations",
        lambda v: NAMES.holds(v) and all(map(NAMES.holds, v.values())),
    ),
}
# Parts that a run needs to continue, beside the weights.
TO_GO_ON = ("optimizer_state", "logging", "_best_ema", "current_epoch", "init_args")


def load(file: str | Path, trust: bool = False, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint of ours or of nnU-Net, or a shared pretraining, on the CPU, and check its parts.

    Args:
        file: The checkpoint.
        trust: Run what the file asks for; only for files whose maker you trust.
        mmap: Leave the tensors on disk until they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of nnU-Net's form, a part has the wrong type, or the file would run code.
    """
    file = Path(file)
    if not file.exists():
        raise FileNotFoundError(f"Checkpoint {file} does not exist.{_nearest(file)}")
    shared = is_shared(file)
    if not (shared or file.is_file()):
        raise ValueError(f"{file} is not a readable checkpoint (it is not a file){_inside(file)}.")
    content = read_shared(file) if shared else _open(file, trust, mmap)
    if not shared and isinstance(content, dict):
        content.pop(DRAWN, None)
    if not isinstance(content, dict) or "network_weights" not in content:
        raise ValueError(f"{file} is not an nnU-Net checkpoint: it has no `network_weights`.")
    check_content(content, file)
    return content


def _nearest(file: Path) -> str:
    """Name the checkpoints in nnUNet_results whose paths are most like that of a missing one; empty if none is."""
    results = Path(os.environ.get("nnUNet_results") or os.devnull).resolve()
    found = [
        str(path.relative_to(results))
        for pattern in ("checkpoint_*.pth", "snapshots/*.pth")
        for path in sorted(results.glob(f"Dataset*/*/fold_*/{pattern}"))
    ]
    typed = file.resolve()
    wanted = Path(*typed.parts[-4:])  # a path of another machine, or of a variable that is not set
    if typed.is_relative_to(results):
        wanted = typed.relative_to(results)
    if found and len(file.parts) == 1:  # a name alone is like hundreds
        return f" In nnUNet_results are: {', '.join(str(results / name) for name in found[:3])}."
    near = difflib.get_close_matches(str(wanted), found, 3)
    return f" Perhaps {' or '.join(str(results / name) for name in near)}?" if near else ""


def _inside(folder: Path) -> str:
    """Name the checkpoints of a folder, the final one first."""
    found = sorted(f for pattern in ("*.pth", "*/*.pth") for f in folder.glob(pattern))
    if not found:
        return ": give a checkpoint, FOLDER/fold_0/checkpoint_final.pth for one"
    first = min(found, key=lambda file: file.name != "checkpoint_final.pth")
    more = f", or another of the {len(found)} in it" if len(found) > 1 else ""
    return f": give {first}{more}"


def check_content(content: dict[str, Any], file: str | Path) -> None:
    """Check the parts of a checkpoint.

    Args:
        content: Its content.
        file: The file, for messages.

    Raises:
        ValueError: A part has the wrong type.
    """
    check(content, PARTS, str(file))
    arguments, ssp = content.get("init_args", {}), content.get("ssp", {})
    if nests_too_deeply([arguments, ssp, content.get("logging"), content.get("optimizer_state")]):
        raise ValueError(
            f"{file}: `init_args`, `ssp`, `logging` and `optimizer_state` nest too deeply."
        )
    check(arguments, INIT_ARGS, f"{file}, `init_args`")
    check(arguments.get("plans", {}), PLANS, f"{file}, `init_args.plans`")
    check(ssp, SSP, f"{file}, `ssp`")
    check(ssp.get("settings", {}), SETTINGS, f"{file}, `ssp.settings`")
    check(ssp.get("pretraining", {}), SSP, f"{file}, `ssp.pretraining`")
    for number, link in enumerate(ssp.get("chain", [])):
        check(link, SSP, f"{file}, `ssp.chain[{number}]`")
        check(link.get("settings", {}), SETTINGS, f"{file}, `ssp.chain[{number}].settings`")


def non_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity; what several names share is looked at once."""
    found: dict[Any, bool] = {}
    wrong = []
    with one_thread():  # several wait for each other on cores that have other work, as checksums
        for name, tensor in weights.items():
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            if key not in found:
                found[key] = _is_lost(tensor)
            if found[key]:
                wrong.append(name)
    return wrong


def _is_lost(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity, which a sum keeps; a sum of finite numbers may also overflow."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.sum().isfinite():
        return False
    return not bool(tensor.isfinite().all())


def refuse_non_finite(file: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which no training can continue.

    Raises:
        ValueError: Names the first tensor that holds NaN or infinity.
    """
    if wrong := non_finite(weights):
        raise ValueError(f"{file}: {non_finite_in_words(wrong, len(weights))}.")


def non_finite_in_words(wrong: list[str], n: int) -> str:
    """Say in words what `non_finite` found among `n` tensors."""
    return (
        f"{len(wrong)} of {n} tensors hold NaN or infinity, the first is {printable(wrong[0])}: "
        "that training diverged"
    )


def open_weights(file: Path, trust: bool = False) -> Any:
    """Open a file of PyTorch, whatever its form, on the CPU.

    Raises:
        ValueError: It is damaged, or would run code.
    """
    return _open(file, trust, mmap=False)


def _open(file: Path, trust: bool, mmap: bool) -> Any:
    with open(file, "rb") as stream:
        start = stream.read(4)
    is_zip = start == b"PK\x03\x04"
    other = "it is neither a zip file of PyTorch nor a pickle"
    if not (
        trust or is_zip or start.startswith(b"\x80")
    ):  # torch would try to unpack it as a tar file
        raise ValueError(f"{file} is not a readable checkpoint ({other}).")
    try:
        # Torch warns about kinds of files that it then refuses.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed()):
            warnings.simplefilter("ignore")
            mapped = mmap and is_zip  # torch maps no others
            return torch.load(str(file), map_location="cpu", weights_only=not trust, mmap=mapped)
    except Exception as error:  # damaged pickles raise anything
        message = str(error)
        # Torch names the builtins without their module.
        if found := re.search(r"GLOBAL (\S+) (?:was not|whose)", message):
            raise ValueError(
                f"{file} is not opened, because it would run code: it needs {printable(found[1][:80])}, which is no "
                f"part of the weights and numbers of a checkpoint. {WAY_OUT}"
            ) from None
        if not is_zip and not start.startswith(b"\x80"):
            reason = other
        elif "weights_only" in message or "Weights only" in message:
            raise ValueError(
                f"{file} is not opened, because it may run code: PyTorch cannot read it as weights and numbers alone. "
                f"{WAY_OUT}"
            ) from None
        else:
            reason = "it is damaged or not whole"
        raise ValueError(f"{file} is not a readable checkpoint ({reason}).") from error


def _allowed() -> list[Any]:
    """Return the types and functions in nnU-Net's own checkpoints, beside tensors and Python's values."""
    kinds = [type(np.dtype(name)) for name in DTYPES]
    return [np.dtype, *kinds, *map(_scalar, SCALAR)]


def _scalar(module: str) -> Callable[[Any, Any], Any]:
    """Return NumPy's function that makes a number of its bytes, restricted to numbers, as pickles name it."""

    def scalar(dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, np.dtype) or dtype.name not in DTYPES:
            raise ValueError(f"a number of NumPy must be one of {', '.join(DTYPES)}")
        # An old pickle holds the bytes as text.
        raw = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(raw, dtype, count=1)[0]

    # Torch looks functions up by these.
    scalar.__module__, scalar.__qualname__, scalar.__name__ = module, "scalar", "scalar"
    return scalar
