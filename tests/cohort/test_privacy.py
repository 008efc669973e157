from __future__ import annotations

import copy
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.cohort import privacy
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.saving import save
from nnunet_ssp.training.transfer import read
from tests.training.test_inspection import SSP, make_plans, write_checkpoint, write_plain

HASH_OF_A = "s1:" + hashlib.sha256(b"nnunet-ssp subject 1\nmm1-A1D9Z7").hexdigest()[:32]
NAMES = ["cine-Mustermann_Erika", "cine-PatID4711", "mm1-A1D9Z7"]


# -- subjects --------------------------------------------------------------------------------------


def test_the_hash_is_fixed_by_the_format():
    """Files of all sites must agree, so this value never changes; another one is another format."""
    assert privacy.hashed_subject("mm1-A1D9Z7") == HASH_OF_A


@pytest.mark.parametrize("subject", ["mm1-A1D9Z7", "mm2-001", "acdc-patient001", "mm1-SCD0000401"])
def test_frames_of_public_subjects_count_for_nothing(subject):
    """A dataset without cases.csv names its subjects after cases."""
    assert privacy.hashed_subject(f"{subject}_frame05") == privacy.hashed_subject(subject)


def test_local_names_are_taken_whole():
    assert privacy.hashed_subject("cine-a_frame05") != privacy.hashed_subject("cine-a")
    assert privacy.hashed_subject("cine-a") != privacy.hashed_subject("mm1-a")


def test_earlier_files_hold_names():
    hashes = privacy.hashed_subjects(NAMES)
    assert privacy.hashed_subjects([*hashes, "mm1-A1D9Z7"]) == hashes
    assert len(hashes) == 3 and HASH_OF_A in hashes


def test_a_later_format_is_refused():
    """Its hashes match none of ours: a leak would go unseen."""
    with pytest.raises(ValueError, match=r"`subjects` \(=s2:00ff, ...\) must be of format s1"):
        privacy.hashed_subjects([HASH_OF_A, "s2:00ff"])


def test_our_subjects_are_named():
    ours = ["mm1-B", "cine-PatID4711", "mm1-A1D9Z7"]
    assert privacy.ours_among(ours, privacy.hashed_subjects(NAMES)) == sorted(ours[1:])


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/results/fold_0/checkpoint_final.pth", "checkpoint_final.pth"),
        (r"C:\Users\erika\checkpoint_final.pth", "checkpoint_final.pth"),
        (r"\\server\share\a.pth", "a.pth"),
        ("pretraining/MIM/seed0/a.pth", "a.pth"),
        ("scratch", "scratch"),
        ("a.pth", "a.pth"),
    ],
)
def test_names_of_files(path, name):
    record = privacy.origin(path)
    assert record["weights_from"] == name
    assert path == name or path not in json.dumps(record)
    assert privacy.has_origin(record, path)
    assert privacy.has_origin({"weights_from": path}, path), "of an earlier version"
    assert not privacy.has_origin(record, f"/other/{name}")


# -- a checkpoint as a whole -----------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint as earlier versions wrote it, on a dataset that lists its images."""
    monkeypatch.setattr(socket, "gethostname", lambda: "ws-radiology-7")
    plans = make_plans()
    listed = {f"{NAMES[0]}_frame00": {"images": ["imagesUn/x.nii.gz"], "label": "labelsTr/x"}}
    arguments = {
        "plans": plans,
        "configuration": "2d",
        "fold": 0,
        "dataset_json": {
            "channel_names": {"0": "cineMRI"},
            "labels": {"background": 0},
            "numTraining": 1,
            "file_ending": ".nii.gz",
            "description": "Cine of Klinikum Musterstadt",
            "dataset": listed,
        },
    }
    record = SSP | {
        "subjects": NAMES,
        "weights_from": "/data/erika/nnUNet_results/checkpoint_final.pth",
        "papers": ["Somebody et al., https://arxiv.org/abs/2409.18100"],
        "pretraining": {"subjects": NAMES[:1], "settings": {"x": r"D:\erika\x.json"}},
        "note": "made on ws-radiology-7 in /data/erika/a.txt",
    }
    logging = {
        "epoch_start_timestamps": [1764300000.0, 1764300100.5],
        "epoch_end_timestamps": [1764300100.0, 1764300200.0],
        "train_losses": [0.5, 0.25],
    }
    file = tmp_path / "earlier.pth"
    return write_checkpoint(file, plans, init_args=arguments, ssp=record, logging=logging)


def texts_of(file: Path) -> str:
    """All that a file holds besides tensors, as Python reads it and as it lies on the disk."""
    content = checkpoints.load(file)
    content["network_weights"] = list(content["network_weights"])
    return repr(content) + file.read_bytes().decode("latin1")


PRIVATE = (
    "erika",
    "Erika",
    "4711",
    "Klinikum",
    "A1D9Z7",
    "Dataset907",
    "/data/e",
    "17643",
    "ws-radiology-7",
)


def test_what_a_file_reveals(earlier: Path, capsys: pytest.CaptureFixture[str]):
    assert all(word in texts_of(earlier) for word in PRIVATE)
    assert main(["inspect", str(earlier), "--private"]) == 1
    stripped = earlier.with_stem(f"{earlier.stem}_stripped")
    assert capsys.readouterr().out.splitlines()[:11] == [
        f"{earlier}:",
        f"  subjects 3 names in `ssp.subjects`: {', '.join(NAMES)}",
        f"  subjects 1 name in `ssp.pretraining.subjects`: {NAMES[0]}",
        "  dataset  its name (=Dataset907_Planned) in `init_args.plans`",
        "  dataset  Cine of Klinikum Musterstadt in `init_args.dataset_json.description`",
        f"  cases    1 name in `init_args.dataset_json.dataset`: {NAMES[0]}_frame00",
        "  dates    training from 2025-11-28 03:20 to 2025-11-28 03:23 UTC, in `logging`",
        "  path     /data/erika/nnUNet_results/checkpoint_final.pth in `ssp.weights_from`",
        r"  path     D:\erika\x.json in `ssp.pretraining.settings.x`",
        "  path     made on ws-radiology-7 in /data/erika/a.txt in `ssp.note`",
        f"To write a checkpoint without: nnunet-ssp inspect {earlier} --strip {stripped}",
    ]


def test_a_stripped_file_says_nothing_and_is_as_good(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "stripped.pth"
    before = copy.deepcopy(read(earlier))
    assert main(["inspect", str(earlier), "--strip", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        f"{out}, written without these; what it still reveals:\n  subjects 3 hashes in `ssp.subjects`"
        in said
    )
    texts = texts_of(out)
    assert not [word for word in PRIVATE if word in texts]
    after = read(out)
    assert set(after.ssp["subjects"]) == privacy.hashed_subjects(NAMES)
    for name in ("method", "settings", "counts", "versions", "papers"):
        assert after.ssp[name] == before.ssp[name]
    assert after.weights.keys() == before.weights.keys()
    for name, tensor in before.weights.items():
        assert after.weights[name].dtype == tensor.dtype
        assert torch.equal(after.weights[name], tensor), name
    content = torch.load(out, map_location="cpu", weights_only=True)
    assert content["logging"] == {
        "epoch_start_timestamps": [0.0, 100.5],
        "epoch_end_timestamps": [100.0, 200.0],
        "train_losses": [0.5, 0.25],
    }
    assert content["init_args"]["dataset_json"] == {
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    assert main(["inspect", str(out), "--private"]) == 0, "nothing is left to strip"


def test_stripping_writes_no_larger_file(earlier: Path, tmp_path: Path):
    """Aliases of tensors stay aliases."""
    main(["inspect", str(earlier), "--strip", str(tmp_path / "x.pth")])
    assert (tmp_path / "x.pth").stat().st_size <= earlier.stat().st_size


def test_nothing_is_written_over(earlier: Path, capsys: pytest.CaptureFixture[str]):
    content = earlier.read_bytes()
    assert main(["inspect", str(earlier), "--strip", str(earlier)]) == 1
    assert f"{earlier} exists already: choose another name for --strip" in capsys.readouterr().err
    assert earlier.read_bytes() == content


def test_a_plain_nnunet_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write_plain(tmp_path / "plain.pth")
    assert main(["inspect", str(file), "--strip", str(tmp_path / "out.pth")]) == 0
    assert (
        "out.pth, written without these; what it still reveals:\n  nothing about persons or the institution"
        in capsys.readouterr().out
    )
    assert "Dataset907" not in texts_of(tmp_path / "out.pth")
    assert main(["inspect", str(tmp_path / "out.pth")]) == 0


def test_addresses_and_words_are_no_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = ["https://arxiv.org/abs/2409.18100", "encoder/decoder", "1/2", "a: b", "(.+)_frame"]
    content: dict[str, Any] = {"network_weights": {"w": torch.ones(1)}, "ssp": {"papers": plain}}
    save(tmp_path / "a.pth", content)
    assert main(["inspect", str(tmp_path / "a.pth"), "--private"]) == 0
    assert privacy.stripped(content)["ssp"]["papers"] == plain


def test_a_pattern_of_names_is_told_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fine-tuning needs it to find our subjects among the file's."""
    record = {"settings": {"subject_pattern": "(.+)_frame"}, "subjects": [HASH_OF_A]}
    save(tmp_path / "a.pth", {"network_weights": {"w": torch.ones(1)}, "ssp": record})
    assert main(["inspect", str(tmp_path / "a.pth"), "--private"]) == 0
    assert "`subject_pattern` (=(.+)_frame) of their names" in capsys.readouterr().out
