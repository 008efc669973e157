from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ssp.cli import main
from nnunet_ssp.dataset_conversion import images
from nnunet_ssp.dataset_conversion.images import convert
from tests.natural_images import picture, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pictures", 7)


def copies(target: Path) -> list[str]:
    return sorted(file.name for file in (target / "imagesTr").iterdir())


def test_a_tree_becomes_an_unlabelled_rgb_dataset(tree: Path, raw: Path, capsys):
    Image.fromarray(picture(9)).convert("CMYK").save(tree / "class1" / "print.jpg")
    (tree / "class0" / "empty.png").touch()
    (tree / "list.txt").touch()
    assert main(["convert", "images", "-i", str(tree), "-d", "150"]) == 0
    target = raw / "Dataset150_Images"
    said = capsys.readouterr().out
    assert "7 images converted" in said
    assert "2 refused. Shorter sides: 48 to 48 pixels." in said
    assert "class0/empty.png: the file is empty." in said
    assert "print.jpg: its colours are CMYK" in said
    assert "1 other file left alone." in said
    content = json.loads((target / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "red", "1": "green", "2": "blue"}
    assert (content["labels"], content["numTraining"]) == ({"background": 0}, 7)
    assert content["natural_images"] is True
    assert len(copies(target)) == 7
    (first,) = (target / "imagesTr").glob("image_0-*_0000.png")
    np.testing.assert_array_equal(np.asarray(Image.open(first)), picture(0))
    record = json.loads((target / "convert.json").read_text())
    assert len(record["refused"]) == 2
    assert str(tree) not in json.dumps(record)
    assert record["nbytes"] == sum(f.stat().st_size for f in (target / "imagesTr").iterdir())


def test_processes_make_the_same_as_one(tree: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "AT_ONCE", 3)
    one, two = convert(tree, 150, workers=1), convert(tree, 151, workers=2)
    assert copies(one) == copies(two)
    for name in copies(one):
        assert (one / "imagesTr" / name).read_bytes() == (two / "imagesTr" / name).read_bytes()


def test_an_interrupted_conversion_goes_on(tree: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "AT_ONCE", 2)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_dataset_json", lambda n: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(tree, 150, workers=1)
    target = raw / "Dataset150_Images"
    nodes = {f.name: f.stat().st_ino for f in (target / "imagesTr").iterdir()}
    (tree / "class0" / "image 0.png").unlink()
    convert(tree, 150, workers=1)
    now = {f.name: f.stat().st_ino for f in (target / "imagesTr").iterdir()}
    assert len(now) == 6
    assert now.items() <= nodes.items()
    with pytest.raises(FileExistsError, match="a finished dataset"):
        convert(tree, 150, workers=1)
    assert len(copies(convert(tree, 150, workers=1, overwrite=True))) == 6


def test_without_any_image_nothing_stays(tmp_path: Path, raw: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(
        ValueError, match=r"no image could be converted\.\s+a.png: the file is empty"
    ):
        convert(tmp_path / "pictures", 150)
    assert not list(raw.glob("*/*.json"))
    assert not list(raw.glob("Dataset150*/imagesTr"))
