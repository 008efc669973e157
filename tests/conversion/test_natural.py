from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_ssp.conversion import natural
from nnunet_ssp.conversion.natural import case_of, find_images, read_rgb, write_images
from tests.natural_images import picture

RGB = picture(0)
GREY = RGB[..., 0]


def save(file: Path, image: Image.Image, **options: object) -> Path:
    image.save(file, **options)
    return file


def opacity(value: int) -> Image.Image:
    image = Image.fromarray(RGB).convert("RGBA")
    image.putpixel((3, 2), (*image.getpixel((3, 2))[:3], value))
    return image


# -- what is converted exactly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "image", "shown"),
    [
        ("a.png", Image.fromarray(RGB), RGB),
        ("a.tif", Image.fromarray(RGB), RGB),
        ("a.JPEG", Image.fromarray(GREY), None),
        ("grey.png", Image.fromarray(GREY), np.stack([GREY] * 3, 2)),
        ("bits.png", Image.fromarray(GREY > 90), np.stack([(GREY > 90) * np.uint8(255)] * 3, 2)),
        ("opaque.png", opacity(255), RGB),
        # A PNG under another ending, as there is one in ImageNet.
        ("other.jpg", Image.fromarray(RGB), RGB),
    ],
)
def test_what_8_bit_rgb_can_show_is_read_exactly(tmp_path: Path, name, image, shown):
    file = save(tmp_path / name, image, format="PNG" if name == "other.jpg" else None)
    if shown is None:
        shown = np.asarray(Image.open(file).convert("RGB"))
        assert (shown[..., 0] == shown[..., 2]).all()
    found = read_rgb(file)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, shown)


def test_palettes_are_looked_up(tmp_path: Path):
    image = Image.fromarray(RGB).quantize(17)
    file = save(tmp_path / "palette.png", image)
    with Image.open(file) as opened:
        assert opened.mode == "P"
    table = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(read_rgb(file), table[np.asarray(image)])


def test_the_camera_s_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right side of what is shown
    file = save(tmp_path / "turned.png", Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(read_rgb(file), np.rot90(RGB, -1))


# -- what is refused -------------------------------------------------------------------------------


def sixteen_bits(file: Path) -> Path:
    """A PNG with 16 bits for each of three channels, which Pillow can read but not write."""
    import struct
    import zlib

    rows, columns, _ = RGB.shape
    header = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in RGB.astype(np.uint16) * 200)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    file.write_bytes(content)
    with Image.open(file) as image:
        assert image.mode == "RGB"  # so that the header alone tells
    return file


def truncated(file: Path, share: float = 0.6) -> Path:
    content = save(file, Image.fromarray(RGB)).read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    return file


def animated(file: Path) -> Path:
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2, 3)]
    return save(file, frames[0], save_all=True, append_images=frames[1:])


def wide_tiff(file: Path, **options: str) -> Path:
    pixels = RGB.astype(np.uint16) * 200
    pixels = pixels.transpose(2, 0, 1) if options else pixels
    tifffile.imwrite(file, pixels, photometric="rgb", **options)
    return file


def signed_tiff(file: Path) -> Path:
    tifffile.imwrite(file, (GREY.astype(np.int16) - 128).astype(np.int8), photometric="minisblack")
    return file


def touched(file: Path) -> Path:
    file.touch()
    return file


REFUSED = {
    "cmyk.jpg": (lambda f: save(f, Image.fromarray(RGB).convert("CMYK")), "its colours are CMYK"),
    "grey16.png": (lambda f: save(f, Image.fromarray(GREY.astype(np.uint16) * 200)), "than 8 bits"),
    "rgb16.png": (sixteen_bits, "more than 8 bits"),
    "rgb16.tif": (wide_tiff, "more than 8 bits"),
    "planes16.tif": (
        lambda f: wide_tiff(f, planarconfig="separate"),
        "more than 8 bits",
    ),
    "signed.tif": (signed_tiff, "its values are signed"),
    "float.tif": (lambda f: save(f, Image.fromarray(GREY.astype(np.float32))), "than 8 bits"),
    "lab.tif": (lambda f: save(f, Image.new("LAB", (9, 9))), "its colours are LAB"),
    "glass.png": (lambda f: save(f, opacity(254)), "has transparent pixels"),
    "moving.png": (animated, "holds 3 pictures"),
    "pages.tif": (animated, "holds 3 pictures"),
    "short.png": (truncated, "cannot be read; truncated"),
    "short.jpg": (truncated, "cannot be read; truncated"),
    "short.tif": (truncated, "cannot be read; truncated"),
    "empty.png": (touched, "the file is empty"),
    "text.jpg": (lambda f: [f.write_text("no image"), f][1], "cannot be read"),
    "flat.png": (lambda f: save(f, Image.new("RGB", (8, 8), "red")), "all pixels are equal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_show_is_refused_with_file_and_reason(tmp_path: Path, name: str):
    make, reason = REFUSED[name]
    file = make(tmp_path / name)
    with pytest.raises(ValueError, match=reason) as refused:
        read_rgb(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_opened_does_not_stop_the_others(tmp_path: Path):
    whole, nowhere = save(tmp_path / "a.png", Image.fromarray(RGB)), tmp_path / "b.png"
    nowhere.symlink_to("nothing.png")
    written = tmp_path / "raw" / "imagesTr"
    pairs = [(nowhere, written / "b.png"), (whole, written / "a.png")]
    refused, taken = write_images(pairs)
    assert refused.refused == f"{nowhere}: cannot be read (No such file or directory)."
    assert taken.side == 48 and [file.name for file in written.iterdir()] == ["a.png"]


def test_sides_beyond_the_slice_store_s_are_refused(tmp_path: Path, monkeypatch):
    file = save(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(natural, "LARGEST_SIDE", 63)
    with pytest.raises(ValueError, match=r"sides \(=\(48, 64\)\) must be at most 63"):
        read_rgb(file)


# -- trees and copies ------------------------------------------------------------------------------


def test_hidden_and_other_files_are_left_alone(tmp_path: Path):
    for name in ("b/x.PNG", "a.tiff", "._a.tiff", ".git/y.png", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ([tmp_path / "a.tiff", tmp_path / "b" / "x.PNG"], 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.gif").touch()
    with pytest.raises(ValueError, match=r"none of its 1 files ends in \.png, \.jpg"):
        find_images(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(tmp_path / "nowhere")


def test_names_of_cases_tell_paths_apart():
    names = [case_of(Path(p)) for p in ("a/b_c.png", "a_b/c.png", "a/b_c.jpg", "a/b c.png")]
    assert len(set(names)) == 4
    assert [name[:-17] for name in names] == ["b_c", "c", "b_c", "b_c"]
    assert case_of(Path("\u00e4\u00f6.png"))[:-17] == "image"
    assert len(case_of(Path("x" * 240 + ".png"))) < 140


def test_copies_are_made_again_only_when_the_original_changes(tmp_path: Path):
    source, copy = tmp_path / "a.png", tmp_path / "set" / "imagesUn" / "a_0000.png"
    save(source, Image.fromarray(RGB))
    copy.parent.mkdir(parents=True)
    (first,) = write_images([(source, copy)])
    assert (first.side, first.nbytes, first.refused) == (48, copy.stat().st_size, "")
    np.testing.assert_array_equal(read_rgb(copy), RGB)
    node = copy.stat().st_ino
    assert write_images([(source, copy)]) == [first]
    assert copy.stat().st_ino == node
    save(source, Image.fromarray(RGB[:40]))
    os.utime(source, ns=(1, 1))
    assert write_images([(source, copy)])[0].side == 40
    np.testing.assert_array_equal(read_rgb(copy), RGB[:40])
