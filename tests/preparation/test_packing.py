from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ssp.dataset_conversion import images
from nnunet_ssp.preparation import packing
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.packing import groups
from nnunet_ssp.preparation.raw import CaseJob
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.slices.store import read_index
from tests.natural_images import write_tree
from tests.preparation.conftest import set_folders


@pytest.fixture
def natural(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Convert seven images, prepare them in packs of three; return the slice store."""
    set_folders(monkeypatch, tmp_path)
    monkeypatch.setattr(packing, "CASES", 3)
    images.convert(write_tree(tmp_path / "pictures", 7), 150, workers=1)
    return prepare(150, workers=1) / "nnUNetPlans_2d_slices"


def raw_of(case: str) -> Path:
    folder = Path(os.environ["nnUNet_raw"]) / "Dataset150_Images" / "imagesTr"
    return folder / f"{case}_0000.png"


def normalised(case: str) -> np.ndarray:
    with Image.open(raw_of(case)) as image:
        colours = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    mean, deviation = (f(colours, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
    return (colours - mean) / np.maximum(deviation, 1e-8)


def packs(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("pack_*.f16")}


def test_natural_images_are_normalised_and_packed(natural: Path):
    store = SliceStore(natural)
    assert (len(store), store.channels) == (7, 3)
    assert not list(natural.glob("*.npy"))
    assert len(packs(natural)) == 3
    for number, case in enumerate(store.names):
        np.testing.assert_allclose(
            store.slice(number).astype(np.float32), normalised(case), atol=2e-3
        )
    stored = sum(file.stat().st_size for file in natural.glob("pack_*"))
    assert stored == store.nbytes


def test_only_the_pack_of_a_changed_image_is_made_again(natural: Path):
    before = packs(natural)
    assert packs(prepare(150, workers=1) / natural.name) == before
    _, index = read_index(natural)
    case = sorted(index)[0]
    with Image.open(raw_of(case)) as image:
        changed = image.rotate(180)
    changed.save(raw_of(case))
    prepare(150, workers=1)
    after = packs(natural)
    assert len(after.items() & before.items()) == 2
    assert len(after) == 3
    store = SliceStore(natural)
    found = store.slice(store.names.index(case)).astype(np.float32)
    np.testing.assert_allclose(found, normalised(case), atol=2e-3)
    raw_of(case).unlink()
    prepare(150, workers=1)
    assert len(SliceStore(natural)) == 6
    assert sum(f.stat().st_size for f in natural.glob("pack_*")) == SliceStore(natural).nbytes


def test_a_bad_image_is_named_and_the_rest_is_packed(natural: Path):
    _, index = read_index(natural)
    case = sorted(index)[4]
    raw_of(case).write_bytes(raw_of(case).read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"1 case not preprocessed, .*\n.*{case}_0000\.png"):
        prepare(150, workers=1)
    assert read_index(natural)[1].keys() == index.keys() - {case}


def test_every_worker_has_a_pack():
    jobs = [CaseJob(str(n), (), None) for n in range(600)]
    assert [len(part) for part in groups(jobs[:10], 4)] == [3, 3, 3, 1]
    assert [len(part) for part in groups(jobs, 2)] == [256, 256, 88]
    assert groups([], 4) == []
