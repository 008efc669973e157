"""Shared pretrainings: a zip, or a folder for a model hub, with weights, plans and a card; nothing in it is a pickle.

The weights are a file of safetensors with the tensors that pretraining trained, each once. Its metadata lists every
name of the network in order: stored, alias of an earlier name, or fresh with its shape. The checkpoint's weights come
back bit by bit. Fresh tensors are drawn anew, in float16, by which a fine-tuning knows them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.files.archives import SUMS, Writer, open_archive, write_folder, write_zip
from nnunet_ssp.files.contents import COUNT, NAMES, TEXT, Rule, check, shown
from nnunet_ssp.files.names import PLAIN
from nnunet_ssp.files.nnunet import check_plans, configuration_of
from nnunet_ssp.files.tensors import SHAPE, Spring, read_tensors, write_tensors

FORMAT, VERSION = "nnunet-ssp pretrained network", 1
CARD, PAGE, PLANS = "card.json", "card.md", "plans.json"
FINGERPRINT, WEIGHTS = "dataset_fingerprint.json", "weights.safetensors"
ON_A_HUB = {PAGE: "README.md", WEIGHTS: "model.safetensors"}  # names that a hub looks for
ENDING = ".safetensors"
DRAWN = "ssp_drawn"  # in the content of a checkpoint, which no file holds
LAYOUT = "nnunet_ssp"  # in the metadata of the weights
MOST_FRESH = 16  # numbers per stored byte; a U-Net's decoder is about as large as its encoder

RECORD = Rule(
    "a pretraining's record with its `method`",
    lambda v: NAMES.holds(v) and TEXT.holds(v.get("method")),
)
OF_OURS = {"format": Rule(FORMAT, lambda v: v == FORMAT), "version": COUNT}
CARD_RULES = {
    "name": TEXT,
    "record": RECORD,
    "configuration": PLAIN,
    "channel_names": NAMES,
    "data": NAMES,
}


@dataclass(frozen=True)
class Bundle:
    """A pretraining as it is shared.

    Attributes:
        weights: Tensors by nnU-Net's names; trained ones in float32, fresh ones in float16.
        card: Content of `card.json`.
        plans: Plans with the one configuration of the network, without the dataset's name.
        fingerprint: nnU-Net's fingerprint of the dataset; empty where it is not known.
        drawn: Names of the tensors that the file does not store, which were drawn on reading.
    """

    weights: dict[str, Tensor]
    card: dict[str, Any]
    plans: dict[str, Any]
    fingerprint: dict[str, Any]
    drawn: frozenset[str] = frozenset()

    def as_checkpoint(self) -> dict[str, Any]:
        """Return the content of a checkpoint that a training can start from."""
        record = self.card["record"]
        return {
            "network_weights": self.weights,
            "trainer_name": record.get("trainer", ""),
            "init_args": {
                "plans": self.plans,
                "configuration": self.card["configuration"],
                "dataset_json": {"channel_names": self.card["channel_names"]},
            },
            "ssp": record,
        }


def is_shared(file: Path) -> bool:
    """Whether a file or folder is, or was before it was damaged, a shared pretraining or a file of safetensors."""
    if file.is_dir():
        return (file / CARD).is_file()
    if not file.is_file():
        return False
    if file.suffix == ENDING:
        return True
    with open(file, "rb") as stream:
        start = stream.read(4096)
    if not start.startswith(b"PK\x03\x04"):
        return False
    # A truncated zip has no directory, but still the name of its first file. PyTorch puts all into one folder.
    first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    theirs = b"/" in first and (file.suffix != ".zip" or first.endswith(b"/data.pkl"))
    return bool(first) and not theirs


def read_shared(file: Path) -> dict[str, Any]:
    """Read a shared pretraining, or a file of safetensors, as the content of a checkpoint.

    Returns:
        The content, and under `DRAWN` the names of the tensors that the file does not store.

    Raises:
        ValueError: See `read_bundle`.
    """
    if file.suffix != ENDING:
        bundle = read_bundle(file)
        return {**bundle.as_checkpoint(), DRAWN: sorted(bundle.drawn)}
    with open(file, "rb") as stream:
        weights, drawn = _read_weights(stream, file.stat().st_size, str(file))
    return {"network_weights": weights, DRAWN: sorted(drawn)}


def write_bundle(
    target: Path, bundle: Bundle, page: str, fresh: Collection[str], half: bool, hub: bool
) -> None:
    """Write a pretraining to be shared, whole or not at all.

    Args:
        target: The zip, or the folder for a hub.
        bundle: The pretraining.
        page: The card for people.
        fresh: Names of the tensors that pretraining did not train.
        half: Whether to store float16 in place of float32.
        hub: Whether to write a folder.

    Raises:
        ValueError: A weight is too large for float16.
    """
    stored, layout = _layout(bundle.weights, fresh)
    if half:
        stored = {name: _halved(name, tensor) for name, tensor in stored.items()}
    metadata = {LAYOUT: json.dumps({"version": VERSION, "half": half, "tensors": layout})}
    parts: dict[str, Writer] = {
        CARD: _text(json.dumps(bundle.card, indent=2)),
        PAGE: _text(page),
        PLANS: _text(json.dumps(bundle.plans, indent=2)),
        WEIGHTS: lambda sink: write_tensors(sink, stored, metadata),
    }
    if bundle.fingerprint:
        parts[FINGERPRINT] = _text(json.dumps(bundle.fingerprint))
    if hub:
        write_folder(target, {ON_A_HUB.get(name, name): part for name, part in parts.items()})
    else:
        write_zip(target, parts)


def _text(text: str) -> Writer:
    return lambda sink: sink.write(f"{text.rstrip()}\n".encode())


def read_bundle(file: Path) -> Bundle:
    """Read a pretraining that somebody shared.

    Args:
        file: A zip, or a folder from a hub.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no shared pretraining, altered, not whole, of a later version, or holds what does not belong.
    """
    with unverified_bundle(file, mapped=False) as bundle:
        pass
    return bundle


@contextmanager
def unverified_bundle(file: Path, mapped: bool = True) -> Iterator[Bundle]:
    """Yield a pretraining that somebody shared while the checksums of its weights are still taken.

    They are compared when the block ends, also by an error, which an altered file may be the reason of. Until then
    nothing may change the weights, and nothing of the file may be kept or believed.

    Args:
        file: As for `read_bundle`, which raises the same errors.
        mapped: Whether the weights of a zip may stay in its pages; they must not be used after the block then.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist.")
    names = ON_A_HUB if file.is_dir() else {}
    before = file.stat()
    page, weights_file = names.get(PAGE, PAGE), names.get(WEIGHTS, WEIGHTS)
    with open_archive(file) as archive:
        if CARD not in archive.sizes:
            raise ValueError(f"{file}: no shared pretraining: it has no {CARD}.")
        card = archive.names_and_values(CARD)
        _check_card(card, f"{file}, {CARD}")
        foreign = archive.sizes.keys() - {CARD, page, PLANS, FINGERPRINT, weights_file, SUMS}
        if foreign and not file.is_dir():  # a hub has files of its own
            raise ValueError(f"{file}: {shown(min(foreign))} does not belong there.")
        archive.text(page)
        plans = archive.names_and_values(PLANS)
        fingerprint = archive.names_and_values(FINGERPRINT) if FINGERPRINT in archive.sizes else {}
        with archive.stream(weights_file) as stream:
            size = archive.sizes[weights_file]
            place, take = f"{file}, {weights_file}", stream.take if mapped else None
            wrong: ValueError | None = None
            try:
                weights, drawn = _read_weights(stream, size, place, take)
            except ValueError as error:
                wrong = error  # to be raised when the checksums agree
        listed = archive.listed_sums()
    try:
        if wrong is not None:
            raise wrong
        _check_2d(plans, card["configuration"], f"{file}, {PLANS}")
        yield Bundle(weights, card, plans, fingerprint, drawn)
    finally:
        # People edit the page of a hub.
        archive.check_sums(listed, (page,) if file.is_dir() else ())
    after = file.stat()
    alike = (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    if file.is_file() and not alike:
        raise ValueError(f"{file}: somebody has changed it while it was read: try again.")


def _check_card(card: dict[str, Any], where: str) -> None:
    check(card, OF_OURS, where, tuple(OF_OURS))
    if card["version"] != VERSION:
        raise ValueError(
            f"{where}: `version` (={card['version']}) must be {VERSION}: another nnunet-ssp has written the file. "
            "Update nnunet-ssp."
        )
    check(card, CARD_RULES, where, tuple(CARD_RULES))


def _check_2d(plans: dict[str, Any], configuration: str, where: str) -> None:
    check_plans(plans, where)
    resolved = configuration_of(plans, configuration, where, ("patch_size", "architecture"))
    if len(resolved["patch_size"]) != 2:
        patch = " x ".join(map(str, resolved["patch_size"]))
        raise ValueError(
            f"{where}: configuration {shown(configuration)} must be 2D: its patch is {patch}."
        )


# -- weights ---------------------------------------------------------------------------------------

_KIND = Rule(
    "null, the name of an earlier tensor, or a shape",
    lambda v: v is None or isinstance(v, str) or SHAPE.holds(v),
)
_LAYOUT_RULES = {
    "version": COUNT,
    "half": Rule("true or false", lambda v: isinstance(v, bool)),
    "tensors": Rule(
        f"names, each with {_KIND.words}",
        lambda v: NAMES.holds(v) and all(map(_KIND.holds, v.values())),
    ),
}


def _layout(
    weights: Mapping[str, Tensor], fresh: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors to store, and for every name null, the name it is an alias of, or a fresh shape."""
    stored: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    first: dict[Any, str] = {}
    for name, tensor in weights.items():
        same = first.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.dtype), name)
        if same != name:
            layout[name] = same
        elif name in fresh:
            layout[name] = list(tensor.shape)
        else:
            layout[name], stored[name] = None, tensor
    return stored, layout


def _halved(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not half.isfinite().all():
        raise ValueError(f"{name} has numbers too large for float16: leave out --half.")
    return half


def _read_weights(
    stream: Spring, size: int, where: str, take: Callable[[int], memoryview] | None = None
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Read a network's weights under all of its names, and which of these are drawn; another's file as it is."""
    stored, metadata = read_tensors(stream, size, where, take)
    if LAYOUT not in metadata:
        return stored, frozenset()
    place = f"{where}, `{LAYOUT}`"
    layout: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):  # what stays empty is refused next
        layout = json.loads(metadata[LAYOUT])
    check({LAYOUT: layout}, {LAYOUT: NAMES}, where)
    check(layout, _LAYOUT_RULES, place, tuple(_LAYOUT_RULES))
    kinds = layout["tensors"]
    if {name for name, kind in kinds.items() if kind is None} != stored.keys():
        raise ValueError(f"{place}: must name the stored tensors and no others.")
    n_fresh = sum(math.prod(kind) for kind in kinds.values() if isinstance(kind, list))
    if n_fresh > MOST_FRESH * size:
        raise ValueError(f"{place}: `tensors` has fresh ones of {n_fresh} numbers, too many here.")
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, kind in kinds.items():
        if kind is None:
            halved = layout["half"] and stored[name].dtype == torch.float16
            weights[name] = stored[name].float() if halved else stored[name]
        elif isinstance(kind, list):
            weights[name] = _fresh_tensor(name, kind, generator)
        elif kind in weights:
            weights[name] = weights[kind]
        else:
            raise ValueError(f"{place}: {shown(kind)} must come before its alias.")
    drawn = {name for name, kind in kinds.items() if isinstance(kind, list)}
    drawn |= {name for name, kind in kinds.items() if isinstance(kind, str) and kind in drawn}
    return weights, frozenset(drawn)


def _fresh_tensor(name: str, shape: list[int], generator: torch.Generator) -> Tensor:
    """Return a tensor as nnU-Net initialises it: convolutions after He, norms to pass their input on."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    tensor = torch.zeros(shape)
    if len(shape) > 2:
        nn.init.kaiming_normal_(tensor, a=1e-2, generator=generator)
    elif name.endswith((".weight", ".running_var")):
        tensor.fill_(1)
    return tensor.half()
