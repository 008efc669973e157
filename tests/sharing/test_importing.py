"""`nnunet-ssp import`: what is checked, and what the dataset gets."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.files import saving
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import read_bundle, write_bundle
from nnunet_ssp.recommended import FEW_SETTINGS
from nnunet_ssp.settings import ENVIRONMENT_VARIABLE, FinetuningSettings, override
from nnunet_ssp.training import transfer
from nnunet_ssp.training.inspection import compare_with_dataset
from tests.files.test_bundles import rewritten, with_card, with_plans
from tests.sharing.conftest import OTHER, row
from tests.training.test_inspection import CONFIGURATION


@pytest.fixture
def file(checkpoint: Path, dataset: Path) -> Path:
    target = dataset.parents[1] / "heart.zip"
    assert main(["export", str(checkpoint), "-o", str(target)]) == 0
    shutil.rmtree(dataset)  # as on another machine
    return target


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["import", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_the_dataset_gets_the_plans(file: Path, other: Path, environment: Path, capsys) -> None:
    assert main(["import", str(file), "-d", "908"]) == 0
    plans = json.loads((environment / "preprocessed" / OTHER / "heart.json").read_text())
    assert plans["dataset_name"] == OTHER and plans["plans_name"] == "heart"
    assert plans["image_reader_writer"] == "SimpleITKIO"
    configuration = plans["configurations"]["2d"]
    assert configuration["data_identifier"] == "heart_2d"
    assert configuration["spacing"] == CONFIGURATION["spacing"]
    said = capsys.readouterr().out
    for words in (
        "method: MIM, pretrained on 2 subjects, 4 frames, 20 slices",
        "resampled to 1.5 x 1.5 mm and normalised by ZScoreNormalization",
        "Next: nnunet-ssp prepare 908 -c 2d -p heart",
        f"-p heart -tr nnUNetTrainerMIMPretrain -pretrained_weights {file}",
        # One labelled case: nnU-Net cannot draw folds.
        f"nnUNetv2_train 908 2d all -p heart -tr nnUNetTrainerFinetune -pretrained_weights {file}",
    ):
        assert words in said


def test_licences_are_said_in_words(checkpoint: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "heart.zip"
    licences = ("M&Ms: CC BY-NC-SA 4.0", "ACDC: none")
    assert main(["export", str(checkpoint), "-o", str(file), "--data-licence", *licences]) == 0
    assert main(["import", str(file)]) == 0
    said = capsys.readouterr().out
    assert "licences of the data: M&Ms: CC BY-NC-SA 4.0; ACDC: none\n" in said


@pytest.mark.parametrize(("folds", "cases", "first"), [(None, 5, "0"), (2, 1, "0"), (0, 9, "all")])
def test_the_printed_fold_exists(file: Path, other: Path, capsys, folds, cases, first) -> None:
    content = json.loads((other / "dataset.json").read_text())
    write_json(other / "dataset.json", content | {"numTraining": cases})
    if folds is not None:
        write_json(other / "splits_final.json", [{"train": ["a"], "val": ["b"]}] * folds)
    assert main(["import", str(file), "-d", "908"]) == 0
    assert capsys.readouterr().out.count(f"nnUNetv2_train 908 2d {first} -p heart") == 2


@pytest.mark.parametrize(("n_subjects", "few"), [(4, True), (13, True), (14, False)])
@pytest.mark.parametrize("place", ["raw/labelsTr", "preprocessed/gt_segmentations"])
def test_few_labels_are_fine_tuned_as_prepare_recommends(
    file: Path, other: Path, environment: Path, capsys, n_subjects: int, few: bool, place: str
) -> None:
    """Without folds nnU-Net draws five: of 13 subjects 10 are trained on, of 14 11, and `few` ends at 10."""
    kind, masks = place.split("/")
    home = environment / kind / OTHER
    if kind == "preprocessed":
        shutil.move(other, home)
    (home / masks).mkdir()
    (home / "cases.csv").unlink()
    for number in range(n_subjects):
        (home / masks / f"s{number:02d}.nii.gz").touch()
    content = json.loads((home / "dataset.json").read_text())
    write_json(home / "dataset.json", content | {"numTraining": n_subjects})
    assert main(["import", str(file), "-d", "908"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("Or, to fine"))
    fold = "all" if n_subjects < 5 else "0"
    settings = f"nnUNet_ssp_settings='{FEW_SETTINGS}' " if few else ""
    assert line.startswith(f"Or, to fine-tune: {settings}nnUNetv2_train 908 2d {fold} -p heart")


def test_the_commands_name_the_device(file: Path, other: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("nnunet_ssp.preparation.imported.device_flag", lambda: " -device cpu")
    assert main(["import", str(file), "-d", "908"]) == 0
    assert capsys.readouterr().out.count(f"{file} -device cpu\n") == 2


def test_the_weights_fit_those_plans(file: Path, other: Path, environment: Path) -> None:
    assert main(["import", str(file), "-d", OTHER, "-p", "mine"]) == 0
    shutil.copy(other / "dataset.json", environment / "preprocessed" / OTHER)
    compared = compare_with_dataset(transfer.read(file), OTHER, "mine", "2d")
    compared = compared[0] if isinstance(compared, tuple) else compared
    assert compared.refusals == []


def test_a_second_import_changes_nothing(file: Path, other: Path, environment: Path) -> None:
    for _ in range(2):
        assert main(["import", str(file), "-d", "908"]) == 0


def test_other_plans_of_that_name_stay(file: Path, other: Path, environment: Path, capsys) -> None:
    theirs = environment / "preprocessed" / OTHER / "heart.json"
    assert main(["import", str(file), "-d", "908"]) == 0
    plans = json.loads(theirs.read_text()) | {"note": "mine"}
    write_json(theirs, plans)
    assert "heart.json has other plans: choose another name with -p" in refusal(
        capsys, file, "-d", 908
    )
    assert json.loads(theirs.read_text()) == plans


def test_a_dataset_without_labels_pretrains_only(file: Path, other: Path, capsys) -> None:
    content = json.loads((other / "dataset.json").read_text())
    write_json(other / "dataset.json", content | {"labels": {"background": 0}})
    assert main(["import", str(file), "-d", "908"]) == 0
    said = capsys.readouterr().out
    assert "nnUNetv2_train 908 2d all -p heart" in said and "fine-tune" not in said


def test_a_checkpoint_for_the_stock_trainers(file: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert main(["import", str(file), "--pth", str(tmp_path / "x.pth")]) == 0
    got = torch.load(tmp_path / "x.pth", weights_only=True)
    want = transfer.read(checkpoint).weights
    fresh = transfer.fresh_keys(want)
    assert list(got["network_weights"]) == list(want)
    for name, tensor in want.items():
        same = torch.equal(got["network_weights"][name], tensor)
        assert same or name in fresh or ".seg_layers." in name


def test_a_test_subject_that_was_seen(file: Path, other: Path, environment: Path, capsys) -> None:
    from nnunet_ssp.cohort.cases import write_cases

    write_cases(other / "cases.csv", [row("A", 0, "test")])
    assert "has seen 1 test subject of Dataset908_Other (mm1-A)" in refusal(capsys, file, "-d", 908)
    assert not (environment / "preprocessed" / OTHER).exists()


def test_weights_of_a_training_that_diverged(file: Path, other: Path, capsys) -> None:
    """Export refuses them; another's file may hold them."""
    whole = read_bundle(file)
    next(iter(whole.weights.values())).view(-1)[0] = torch.inf
    spoiled = file.with_name("spoiled.zip")
    write_bundle(spoiled, whole, "", (), half=False, hub=False)
    said = refusal(capsys, spoiled, "--pth", file.with_name("x.pth"))
    assert "hold NaN or infinity" in said and "that training diverged" in said
    assert not file.with_name("x.pth").exists()


def test_a_name_by_which_nnunet_splits(file: Path, other: Path, capsys) -> None:
    assert "must not hold __" in refusal(capsys, file, "-d", 908, "-p", "a__b")
    assert "one plain name" in refusal(capsys, file, "-d", 908, "-p", "../a")


FIRST = "encoder.stages.0.0.convs.0.conv.weight"
LAST = "encoder.stages.2.0.convs.0.conv.weight"


def with_channels(other: Path, *names: str) -> dict[str, Any]:
    content = json.loads((other / "dataset.json").read_text())
    content["channel_names"] = {str(n): name for n, name in enumerate(names)}
    write_json(other / "dataset.json", content)
    return content


def test_other_channels(file: Path, other: Path, environment: Path, capsys) -> None:
    with_channels(other, "a", "b")
    said = refusal(capsys, file, "-d", 908, "--pth", environment / "x.pth")
    assert "channels: pretrained with 1 input channel, these plans have 2" in said
    assert said.endswith("The option --adapt takes what can be made to fit.\n")
    assert not (environment / "preprocessed" / OTHER).exists()
    assert not (environment / "x.pth").exists()


@pytest.mark.parametrize(
    ("names", "parts", "how"),
    [
        (("a", "b"), (0.5, 0.5), "1 input channels taken in turn for 2, times 1/2"),
        (("LGE", "cineMRI"), (0, 1), "channels by name: cineMRI; LGE begin at 0"),
    ],
)
def test_other_channels_are_adapted(
    file: Path, checkpoint: Path, other: Path, environment: Path, capsys, names, parts, how
) -> None:
    content = with_channels(other, *names)
    target = environment / "x.pth"
    assert main(["import", str(file), "-d", "908", "--adapt", "--pth", str(target)]) == 0
    said = capsys.readouterr().out
    assert "--adapt: channels: pretrained with 1 input channel, these plans have 2" in said
    assert f"{FIRST}  4x2x3x3  adapted: {how}" in said
    assert "100% of the encoder's parameters come from the file" in said
    lines = [line for line in said.splitlines() if "nnUNetv2_train 908 2d" in line]
    assert len(lines) == 2
    for line in lines:
        variable, _, value = shlex.split(line.partition(": ")[2])[0].partition("=")
        assert variable == ENVIRONMENT_VARIABLE
        assert override(FinetuningSettings(), value)[0].adapt
    got, want = transfer.read(target), transfer.read(checkpoint).weights
    first = torch.cat([want[FIRST] * part for part in parts], 1)
    alias = FIRST.replace("encoder.", "decoder.encoder.", 1)
    assert all(torch.equal(got.weights[name], first) for name in (FIRST, alias))
    trained = [
        k for k in want if k.startswith("encoder.") and want[k].shape == got.weights[k].shape
    ]
    assert len(trained) > 20
    assert all(torch.equal(got.weights[key], want[key]) for key in trained)
    # What pretraining did not train is still known as fresh.
    assert transfer.fresh_keys(got.weights) == transfer.fresh_keys(want)
    plans = json.loads((environment / "preprocessed" / OTHER / "heart.json").read_text())
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["ZScoreNormalization"] * 2
    write_json(environment / "preprocessed" / OTHER / "dataset.json", content)
    assert compare_with_dataset(got, OTHER, "heart", "2d")[0].refusals == []
    assert main(["inspect", str(target)]) == 0
    assert "adapted to these plans: channels: pretrained with 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"spacing": [9.0, 9.0]},
            "spacing: pretrained with [1.5, 1.5], these plans have [9.0, 9.0]",
        ),
        (
            {"normalization_schemes": ["NoNormalization"]},
            "normalisation: pretrained with ['ZScoreNormalization'], these plans have ['NoNormalization']",
        ),
    ],
)
def test_the_datasets_own_plans(
    file: Path, checkpoint: Path, other: Path, environment: Path, capsys, change, words
) -> None:
    """Refused where they prepare images in another way, unless asked for; then noted, and the plans stay."""
    assert main(["import", str(file), "-d", "908", "-p", "own"]) == 0
    theirs = environment / "preprocessed" / OTHER / "own.json"
    plans = json.loads(theirs.read_text())
    plans["configurations"]["2d"].update(change)
    write_json(theirs, plans)
    target = environment / "x.pth"
    options = ("-d", 908, "-p", "own", "--pth", target)
    said = refusal(capsys, file, *options)
    assert f"own.json has other plans ({words}): choose another name with -p, or" in said
    assert not target.exists()
    assert main(["import", str(file), *map(str, options), "--adapt"]) == 0
    said = capsys.readouterr().out
    assert f"--adapt: {words}\n" in said and "other than in the pretraining" in said
    assert json.loads(theirs.read_text()) == plans
    got, want = transfer.read(target), transfer.read(checkpoint).weights
    assert all(torch.equal(got.weights[k], want[k]) for k in want if k.startswith("encoder."))
    assert got.plans == plans


def test_adapting_needs_a_dataset(file: Path, capsys) -> None:
    assert "name it with -d" in refusal(capsys, file, "--adapt")


@pytest.fixture
def wide(file: Path, other: Path, environment: Path) -> Path:
    """Plans `own` of the dataset, whose last stage is wider: little of it can come from the file."""
    assert main(["import", str(file), "-d", "908", "-p", "own"]) == 0
    theirs = environment / "preprocessed" / OTHER / "own.json"
    plans = json.loads(theirs.read_text())
    plans["configurations"]["2d"] |= narrow(features_per_stage=[4, 8, 32])
    write_json(theirs, plans)
    return theirs


def test_too_little_of_the_network(file: Path, wide: Path, environment: Path, capsys) -> None:
    """The rule of training, with its default; the option lowers it as the setting does there."""
    target = environment / "x.pth"
    words = (file, "-d", "908", "-p", "own", "--pth", target, "--adapt")
    said = refusal(capsys, *words)
    share = re.search(r"With --adapt (\d+)% of the encoder's parameters come from the file", said)
    assert share is not None and 0 < int(share[1]) < 50
    assert "--min-transferred 0.5 asks for more:\n" in said
    assert f"{LAST}  32x8x3x3  fresh: 8x8x3x3 in the file" in said
    assert not target.exists()
    assert main(["import", *map(str, words), "--min-transferred", "0.05"]) == 0
    said = capsys.readouterr().out
    assert f"{share[1]}% of the encoder's parameters come from the file" in said
    lines = [line for line in said.splitlines() if "nnUNetv2_train 908 2d" in line]
    assert len(lines) == 2
    for line in lines:
        variable, _, value = shlex.split(line.partition(": ")[2])[0].partition("=")
        assert variable == ENVIRONMENT_VARIABLE
        asked = override(FinetuningSettings(), value)[0]
        assert asked.adapt and asked.min_transferred == 0.05
    got = transfer.read(target).weights
    assert got[LAST].shape == (32, 8, 3, 3) and LAST in transfer.fresh_keys(got)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--min-transferred", "0.4"), "--min-transferred (=0.4) is for weights that --adapt fits"),
        (("--min-transferred", "1.5", "--adapt"), "`min_transferred` (=1.5) must lie in [0, 1]."),
    ],
)
def test_a_share_without_meaning(file: Path, other: Path, capsys, options, words) -> None:
    assert words in refusal(capsys, file, "-d", 908, *options)


def test_another_number_of_classes(file: Path, other: Path, environment: Path, capsys) -> None:
    """Output layers are no part of a pretraining: weights fit any number of labels."""
    content = json.loads((other / "dataset.json").read_text())
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3, "atrium": 4}
    write_json(other / "dataset.json", content | {"labels": labels})
    assert main(["import", str(file), "-d", "908"]) == 0
    assert "adapt" not in capsys.readouterr().out
    shutil.copy(other / "dataset.json", environment / "preprocessed" / OTHER)
    comparison, adaptation = compare_with_dataset(transfer.read(file), OTHER, "heart", "2d")
    assert comparison.refusals == []
    shapes = {fate.key: fate.shape for fate in adaptation.fates if "seg_layers" in fate.key}
    assert {shape[0] for shape in shapes.values()} == {5}


def test_an_encoder_alone_for_the_stock_trainers(
    file: Path, checkpoint: Path, environment: Path, capsys
) -> None:
    """As a snapshot of an encoder method; its decoder is drawn as nnU-Net draws it, and known as fresh."""
    content = torch.load(checkpoint, weights_only=True)
    whole = content["network_weights"]
    content["network_weights"] = {k: t for k, t in whole.items() if k.startswith("encoder.")}
    saving.save(environment / "alone.pth", content)
    words = ["export", str(environment / "alone.pth"), "-o", str(environment / "alone")]
    assert main(words) == 0
    target = environment / "x.pth"
    assert main(["import", str(environment / "alone.zip"), "--pth", str(target)]) == 0
    got = torch.load(target, weights_only=True)["network_weights"]
    body = {k: t.shape for k, t in whole.items() if ".seg_layers." not in k}
    assert {k: t.shape for k, t in got.items() if ".seg_layers." not in k} == body
    assert all(torch.equal(got[k], whole[k]) for k in whole if k.startswith("encoder."))
    drawn = got["decoder.stages.0.convs.0.conv.weight"]
    assert drawn.dtype == torch.float16 and 0.05 < drawn.float().std() < 0.3  # He: sqrt(2 / 144)


ARCHITECTURE = CONFIGURATION["architecture"]


def narrow(**changes: Any) -> dict[str, Any]:
    values = ARCHITECTURE["arch_kwargs"] | changes
    return {"architecture": ARCHITECTURE | {"arch_kwargs": values}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_plans(**narrow(features_per_stage=[4, 8, 16])), "do not go with its plans"),
        (with_plans(**narrow(n_stages=2)), "its plans: nnU-Net cannot build a network"),
        (with_card(channel_names={"0": "a", "1": "b"}), "do not go with its plans: channels"),
        (with_card(record={"method": "MIM", "subjects": ["s9:00"]}), "later nnunet-ssp"),
        (lambda parts: parts.update({"archive/data.pkl": b""}), "may run code"),
    ],
)
def test_a_file_that_contradicts_itself(file: Path, other: Path, capsys, change, words) -> None:
    assert words in refusal(capsys, rewritten(file, change), "-d", 908)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def flip(file: Path) -> None:
    """Another byte in the midst of the weights, which a zip's own sums tell."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_end(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Other last numbers of the weights, which the zip's own sums know, and the list of checksums does not."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "weights.safetensors"
    parts[name] = parts[name][:-4] + change(parts[name][-4:])
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in parts.items():
            archive.writestr(member, content)


ALTERED = "weights.safetensors was altered, or damaged on its way: its checksum"
NAN = b"\0\0\xc0\x7f"  # which says nothing on the training


def add_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**26))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "not whole, or altered"),
        (flip, "altered"),
        (partial(replace_end, change=lambda end: bytes([end[0] ^ 1]) + end[1:]), ALTERED),
        (partial(replace_end, change=lambda end: NAN), ALTERED),
        (partial(rewritten, change=with_card(version=2)), "Update nnunet-ssp"),
        (partial(rewritten, change=with_plans(patch_size=[8, 32, 32])), "must be 2D: its patch"),
        (add_bomb, "would unpack to"),
        (partial(rewritten, change=lambda p: p.update({"../x": b""})), "leads out of the folder"),
        (partial(rewritten, change=with_card(record={})), "record with its `method`"),
    ],
)
def test_a_zip_that_is_refused(
    file: Path, other: Path, environment: Path, capsys, change, words
) -> None:
    """Whole in nothing: neither plans nor a checkpoint are written."""
    change(file)
    target = environment / "x.pth"
    said = refusal(capsys, file, "-d", 908, "--pth", target)
    assert words in said and str(file) in said and "Traceback" not in said
    assert not target.exists() and not (environment / "preprocessed" / OTHER).exists()
    assert not list(environment.glob(".ssp-tmp*"))  # where the checkpoint was begun


def test_a_checkpoint_is_not_imported(checkpoint: Path, capsys) -> None:
    assert "may run code" in refusal(capsys, checkpoint)


def test_a_file_to_write_that_exists(file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.pth").write_text("")
    assert "exists already" in refusal(capsys, file, "--pth", tmp_path / "x.pth")


def test_no_such_dataset(file: Path, capsys) -> None:
    assert "no dataset 77 here" in refusal(capsys, file, "-d", 77)
