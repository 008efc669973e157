from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.dataset_conversion import images
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import write_bundle
from nnunet_ssp.files.nnunet import NATURAL
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.moved_plans import plans_for
from nnunet_ssp.slices.drawing import SliceStore
from tests.files.test_bundles import FRESH, bundle
from tests.natural_images import write_tree


@pytest.fixture
def pictures(base: Path, tmp_path: Path) -> Path:
    """Convert five images beside the prepared phantom (901); return their folder in nnUNet_preprocessed."""
    images.convert(write_tree(tmp_path / "pictures", 5), 150, workers=1)
    return base / "nnUNet_preprocessed" / "Dataset150_Images"


def planned(folder: Path, name: str = "nnUNetPlans") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_natural_images_are_prepared_under_the_plans_of_the_target(
    pictures: Path, target: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["prepare", "150", "--plans-from", "901", "-np", "1"]) == 0
    said = capsys.readouterr().out
    assert "their pixels count as pixels of these plans" in said
    assert "normalised by ZScoreNormalization" in said
    assert "the images have 3 channels, those of Dataset901_Phantom 1" in said
    assert "adapt=yes" in said
    theirs, ours = planned(target), planned(pictures)
    before, after = (plans["configurations"]["2d"] for plans in (theirs, ours))
    for key in ("patch_size", "architecture", "batch_size"):
        assert after[key] == before[key]
    assert after["spacing"] == [1.0, 1.0]
    assert after["normalization_schemes"] == ["ZScoreNormalization"] * 3
    assert ours["image_reader_writer"] == NATURAL
    store = SliceStore(pictures / "nnUNetPlans_2d_slices")
    assert sorted(map(tuple, store.sizes)) == [(48, 64)] * 2 + [(48, 65)] * 2 + [(48, 66)]
    # A second run goes on with the same plans; other plans of that name are not replaced.
    prepare(150, plans_from="901", workers=1)
    theirs["configurations"]["2d"]["patch_size"] = [32, 32]
    write_json(target / "nnUNetPlans.json", theirs)
    with pytest.raises(FileExistsError, match=r"other plans.*-overwrite_plans_name"):
        prepare(150, plans_from="901", workers=1)
    prepare(150, plans_from="Dataset901_Phantom", overwrite_plans_name="small", workers=1)
    assert planned(pictures, "small")["configurations"]["2d"]["patch_size"] == [32, 32]


@pytest.fixture
def zipped(target: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a shared pretraining with the phantom's plans, without some of their entries."""

    def make(*without: str) -> Path:
        plans = planned(target)
        del plans["dataset_name"]
        plans["configurations"] = {"2d": plans["configurations"]["2d"]}
        for name in without:
            plans.pop(name, None)
            plans["configurations"]["2d"].pop(name, None)
        whole = replace(bundle(), plans=plans)
        whole.card["record"]["trainer"] = "nnUNetTrainerMIMPretrain"
        write_bundle(tmp_path / "heart.zip", whole, "# heart", FRESH, half=False, hub=False)
        return tmp_path / "heart.zip"

    return make


def test_the_plans_of_a_shared_pretraining(
    pictures: Path, target: Path, zipped, capsys: pytest.CaptureFixture[str]
):
    """`prepare ID --plans-from ZIP`: the normalisation and plans of the source, said in words."""
    file = zipped()
    assert main(["prepare", "150", "--plans-from", str(file), "-c", "2d", "-np", "1"]) == 0
    said = capsys.readouterr().out
    assert "Plans heart of heart.zip, 2d: " in said
    assert "normalised by ZScoreNormalization" in said
    # As the pretraining learned, whose card says so.
    adapted = "Next, to pretrain heart.zip further: nnUNet_ssp_settings='mask_ratio=0.6 adapt=yes' "
    weights = f"-p heart -tr nnUNetTrainerMIMPretrain -pretrained_weights {shlex.quote(str(file))}"
    assert f"{adapted}nnUNetv2_train 150 2d all {weights}" in said
    assert "Or, without these weights: " in said
    theirs, ours = planned(target), planned(pictures, "heart")
    assert ours["dataset_name"] == pictures.name and ours["plans_name"] == "heart"
    for key in ("patch_size", "architecture", "batch_size"):
        assert ours["configurations"]["2d"][key] == theirs["configurations"]["2d"][key]
    assert len(SliceStore(pictures / "heart_2d_slices")) == 5
    with pytest.raises(ValueError, match="leave out -p other"):
        prepare(150, plans_from=str(file), plans_name="other", workers=1)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not whole, or altered"):
        prepare(150, plans_from=str(file), workers=1)


@pytest.mark.parametrize("name", ["resampling_fn_seg", "transpose_forward", "use_mask_for_norm"])
def test_plans_that_lack_what_preparing_needs(pictures: Path, zipped, name: str):
    with pytest.raises(ValueError, match=f"heart.zip.*`{name}` is missing"):
        prepare(150, configurations=["2d"], plans_from=str(zipped(name)), workers=1)
    assert not list(pictures.glob("heart*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plans_from": "902"}, "no dataset 902 here"),
        ({"plans_from": "150"}, "must be another dataset"),
        ({"plans_from": "901", "plans_name": "nnUNetPlan"}, "has no plans nnUNetPlan: .*nnUNetP"),
        ({"plans_from": "901", "planner": "nnUNetPlannerResEncM"}, "existing plans"),
        ({"plans_from": "901", "overwrite_plans_name": "a__b"}, "must not hold __"),
        ({"plans_from": "901", "configurations": ["3d"]}, "3d"),
        ({"plans_from": "gone.zip"}, "gone.zip does not exist"),
    ],
)
def test_what_cannot_be_taken_is_refused(pictures: Path, target: Path, options, message):
    pictures.mkdir(exist_ok=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(150, workers=1, **options)
    assert not list(pictures.glob("*.json"))


def moved(schemes: list[str], channels: int, reader: str = "SimpleITKIO") -> dict:
    plans = {
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
        "configurations": {
            "2d": {
                "patch_size": [8, 8],
                "spacing": [1.5, 1.5],
                "normalization_schemes": schemes,
                "use_mask_for_norm": [False] * len(schemes),
            }
        },
    }
    return plans_for(plans, ["2d"], "Dataset001_A", "p", channels, reader, "plans.json")


def test_mm_stay_mm_and_rows_stay_rows():
    mri = moved(["ZScoreNormalization"], 1)
    assert (mri["configurations"]["2d"]["spacing"], mri["transpose_forward"]) == (
        [1.5, 1.5],
        [1, 0, 2],
    )
    natural = moved(["ZScoreNormalization"], 3, NATURAL)
    assert (natural["configurations"]["2d"]["spacing"], natural["transpose_forward"]) == (
        [1.0, 1.0],
        [0, 1, 2],
    )
    assert natural["configurations"]["2d"]["use_mask_for_norm"] == [False] * 3
    assert natural["foreground_intensity_properties_per_channel"].keys() == {"0", "1", "2"}


def test_plans_of_two_channels_for_three():
    """nnU-Net looks up the intensities of every channel."""
    both = ["ZScoreNormalization"] * 2
    assert moved(both, 3)["foreground_intensity_properties_per_channel"].keys() == {"0", "1", "2"}


def test_normalisation_that_says_nothing_about_the_images_is_refused():
    with pytest.raises(ValueError, match=r"CTNormalization.*Hounsfield"):
        moved(["CTNormalization"], 3, NATURAL)
    with pytest.raises(ValueError, match=r"must be one for all channels.*have 3 channels"):
        moved(["CTNormalization", "ZScoreNormalization"], 3)
