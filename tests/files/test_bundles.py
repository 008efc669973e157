"""Shared pretrainings: the weights come back bit by bit, and what does not belong is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_by_library
from torch import Tensor

from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.archives import write_zip
from nnunet_ssp.files.bundles import (
    CARD,
    DRAWN,
    FORMAT,
    LAYOUT,
    PAGE,
    PLANS,
    WEIGHTS,
    Bundle,
    is_shared,
    read_bundle,
    unverified_bundle,
    write_bundle,
)
from nnunet_ssp.files.tensors import write_tensors
from tests.training.test_inspection import SSP, make_plans


def weights() -> dict[str, Tensor]:
    """As in a checkpoint: trained tensors in float32, fresh ones in float16, and aliases of both."""
    torch.manual_seed(0)
    found = {
        "encoder.conv.weight": torch.randn(4, 1, 3, 3),
        "encoder.norm.weight": torch.randn(4),
        "encoder.norm.num_batches_tracked": torch.tensor(3),
        "decoder.conv.weight": torch.randn(2, 4, 3, 3).half(),
        "decoder.norm.weight": torch.randn(2).half(),
        "decoder.norm.num_batches_tracked": torch.tensor(0),
    }
    aliases = {f"decoder.encoder.{k.removeprefix('encoder.')}": k for k in list(found)[:3]}
    return {**found, **{name: found[key] for name, key in aliases.items()}}


FRESH = {name for name in weights() if name.startswith("decoder.") and ".encoder." not in name}


def bundle(**changes: Any) -> Bundle:
    card = {
        "format": FORMAT,
        "version": 1,
        "name": "heart",
        "record": SSP,
        "configuration": "2d",
        "plans_name": "nnUNetPlans",
        "channel_names": {"0": "cineMRI"},
        "data": {},
    }
    plans = make_plans()
    del plans["dataset_name"]
    return Bundle(weights(), card | changes, plans, {"spacings": [[1.0, 1.0, 1.0]]})


def shared(folder: Path, half: bool = False, hub: bool = False, **changes: Any) -> Path:
    target = folder / ("heart" if hub else "heart.zip")
    write_bundle(target, bundle(**changes), "# heart", FRESH, half, hub)
    return target


@pytest.mark.parametrize("hub", [False, True])
def test_the_weights_come_back_bit_by_bit(tmp_path: Path, hub: bool) -> None:
    got, want = read_bundle(shared(tmp_path, hub=hub)), bundle()
    assert list(got.weights) == list(want.weights)
    for name, tensor in want.weights.items():
        assert got.weights[name].dtype == tensor.dtype and got.weights[name].shape == tensor.shape
        if name not in FRESH:
            assert torch.equal(got.weights[name], tensor), name
    same = got.weights["decoder.encoder.conv.weight"], got.weights["encoder.conv.weight"]
    assert same[0] is same[1]
    assert (got.card, got.plans, got.fingerprint) == (want.card, want.plans, want.fingerprint)


def test_fresh_tensors_are_drawn_as_nnunet_does(tmp_path: Path) -> None:
    got = read_bundle(shared(tmp_path)).weights
    assert got["decoder.norm.weight"].tolist() == [1, 1]
    assert got["decoder.norm.num_batches_tracked"] == 0
    assert 0.1 < got["decoder.conv.weight"].float().std() < 0.5  # He: sqrt(2 / 36) = 0.24
    again = read_bundle(tmp_path / "heart.zip").weights
    assert torch.equal(got["decoder.conv.weight"], again["decoder.conv.weight"])


def test_what_was_drawn_is_known(tmp_path: Path) -> None:
    folder = shared(tmp_path, hub=True)
    for file in (folder, folder / "model.safetensors"):
        assert checkpoints.load(file)[DRAWN] == sorted(FRESH)
    torch.save({"network_weights": weights(), DRAWN: {"x": 1}}, tmp_path / "x.pth")
    assert DRAWN not in checkpoints.load(tmp_path / "x.pth")


def test_only_what_was_trained_is_stored(tmp_path: Path) -> None:
    with zipfile.ZipFile(shared(tmp_path)) as archive:
        stored = load_by_library(archive.read(WEIGHTS))
    assert stored.keys() == {name for name in weights() if name.startswith("encoder.")}


def test_half_is_rounded_once(tmp_path: Path) -> None:
    got = read_bundle(shared(tmp_path, half=True)).weights
    for name, tensor in weights().items():
        assert got[name].dtype == tensor.dtype, name
        if name.startswith("encoder.") and tensor.is_floating_point():
            assert torch.equal(got[name], tensor.half().float())


def test_half_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    large = bundle()
    large.weights["encoder.norm.weight"][0] = 1e6
    with pytest.raises(
        ValueError, match=r"encoder\.norm\.weight has numbers too large for float16"
    ):
        write_bundle(tmp_path / "x.zip", large, "", FRESH, half=True, hub=False)
    assert not list(tmp_path.iterdir())


def test_it_is_read_as_a_checkpoint(tmp_path: Path) -> None:
    content = checkpoints.load(shared(tmp_path))
    assert content["ssp"]["method"] == "MIM"
    assert content["init_args"]["dataset_json"] == {"channel_names": {"0": "cineMRI"}}


def test_weights_alone_are_read_too(tmp_path: Path) -> None:
    folder = shared(tmp_path, hub=True)
    alone = checkpoints.load(folder / "model.safetensors")
    assert list(alone["network_weights"]) == list(weights())


def test_checkpoints_are_told_from_what_is_shared(tmp_path: Path) -> None:
    torch.save({"network_weights": {}}, tmp_path / "a.zip")
    torch.save({"network_weights": {}}, tmp_path / "b", _use_new_zipfile_serialization=False)
    (tmp_path / "c").write_bytes(pickle.dumps(1))
    assert not any(is_shared(tmp_path / name) for name in ("a.zip", "b", "c", "missing"))
    file = shared(tmp_path)
    file.with_suffix(".cut").write_bytes(file.read_bytes()[:300])
    assert is_shared(file) and is_shared(file.with_suffix(".cut"))


# -- what is refused -------------------------------------------------------------------------------


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != "SHA256SUMS"}


def rewritten(file: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The zip with other content and the right checksums."""
    parts = members(file)
    change(parts)
    write_zip(file, {name: lambda sink, c=c: sink.write(c) for name, c in parts.items()})
    return file


def with_card(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(parts: dict[str, bytes]) -> None:
        card = json.loads(parts[CARD]) | changes
        parts[CARD] = json.dumps({k: v for k, v in card.items() if v is not None}).encode()

    return change


def with_plans(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(parts: dict[str, bytes]) -> None:
        plans = json.loads(parts[PLANS])
        plans["configurations"]["2d"].update(changes)
        parts[PLANS] = json.dumps(plans).encode()

    return change


ARCHITECTURE = make_plans()["configurations"]["2d"]["architecture"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts.pop(CARD), "no shared pretraining: it has no card.json"),
        (lambda parts: parts.pop(PLANS), "not whole: plans.json is missing"),
        (lambda parts: parts.pop(WEIGHTS), "not whole: weights.safetensors is missing"),
        (lambda parts: parts.pop(PAGE), "not whole: card.md is missing"),
        (lambda parts: parts.update({"x.txt": b""}), "x.txt does not belong there"),
        (lambda parts: parts.update({"x.pkl": b""}), "x.pkl may run code"),
        (lambda parts: parts.update({"../x": b""}), "leads out of the folder"),
        (with_card(version=2), "`version` .=2. must be 1.*Update nnunet-ssp"),
        (with_card(format="zip"), "`format` .=zip. must be nnunet-ssp pretrained network"),
        (with_card(record={}), "record with its `method`"),
        (with_card(record={"method": "MIM", "counts": 3}), "`counts` .=3. must be numbers"),
        (with_card(configuration="3d"), "`configuration` .=3d. must be one"),
        (with_card(configuration="../2d"), "`configuration`.*one plain name"),
        (with_card(data=None), "`data` is missing"),
        (with_plans(patch_size=[8, 32, 32]), "must be 2D: its patch is 8 x 32 x 32"),
        (
            with_plans(architecture=ARCHITECTURE | {"network_class_name": "os.system"}),
            "`network_class_name` .=os.system. must be a network",
        ),
    ],
)
def test_bad_content_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    file = rewritten(shared(tmp_path), change)
    with pytest.raises(ValueError, match=words):
        checkpoints.load(file)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    folder = shared(tmp_path, hub=True)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors was altered"):
        read_bundle(folder)
    with pytest.raises(ValueError, match=r"was altered"), unverified_bundle(folder) as read:
        assert read.card["name"] == "heart"  # until the block ends
    # What an altered file leads to is no reason of its own.
    with pytest.raises(ValueError, match=r"was altered"), unverified_bundle(folder):
        raise KeyError


@pytest.mark.parametrize("aligned", [True, False])
def test_weights_may_stay_in_the_pages_of_the_zip(tmp_path: Path, aligned: bool) -> None:
    """Ours begin at a multiple of their numbers' size; those of another's zip are copied where they do not."""
    file, want = shared(tmp_path), bundle().weights
    if not aligned:
        parts = members(file) | {"SHA256SUMS": zipfile.ZipFile(file).read("SHA256SUMS")}
        for length in range(1, 9):  # of the zip's first name, by which all else moves
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in parts.items():
                    member = zipfile.ZipInfo(name)
                    if name == CARD:
                        member.extra = b"\xff\xff" + bytes([length, 0]) + bytes(length)
                    archive.writestr(member, content)
                at = archive.getinfo(WEIGHTS).header_offset + 30 + len(WEIGHTS)
            if at % 4:
                break
        assert at % 4
    with unverified_bundle(file) as got:
        kept = {name for name, tensor in want.items() if tensor.dtype != torch.float16}
        assert all(torch.equal(got.weights[name], want[name]) for name in kept)
        assert all(t.data_ptr() % t.element_size() == 0 for t in got.weights.values())
    with zipfile.ZipFile(shared(tmp_path)) as archive:
        member = archive.getinfo(WEIGHTS)
        archive.fp.seek(member.header_offset + 26)
        lengths = archive.fp.read(4)
        begin = member.header_offset + 30 + sum(memoryview(lengths).cast("H"))
    assert begin % 64 == 0


def test_a_zip_that_somebody_changes_meanwhile(tmp_path: Path) -> None:
    file = shared(tmp_path)
    with pytest.raises(ValueError, match="changed it while it was read"), unverified_bundle(file):
        os.utime(file, (1, 1))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = shared(tmp_path)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not whole, or altered"):
        checkpoints.load(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_bundle(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("[", "`version` is missing"),
        ({"version": 1, "half": False}, "`tensors` is missing"),
        ({"version": 1, "half": 0, "tensors": {}}, "`half`"),
        ({"version": 1, "half": False, "tensors": {"w": 3}}, "null, the name"),
        ({"version": 1, "half": False, "tensors": {}}, "must name the stored tensors"),
        (
            {"version": 1, "half": False, "tensors": {"a": "w", "w": None}},
            "w must come before its alias",
        ),
        (
            {"version": 1, "half": False, "tensors": {"w": None, "f": [2**30, 2**30]}},
            "too many here",
        ),
    ],
)
def test_a_bad_list_of_tensors(tmp_path: Path, layout: Any, words: str) -> None:
    stream = io.BytesIO()
    text = layout if isinstance(layout, str) else json.dumps(layout)
    write_tensors(stream, {"w": torch.zeros(2)}, {LAYOUT: text})
    file = tmp_path / "x.safetensors"
    file.write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=words):
        checkpoints.load(file)
