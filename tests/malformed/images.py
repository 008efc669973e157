"""NIfTI images and masks, as converters, `prepare` and `evaluate` read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.cine_trees import AFFINE, ED, ES, add_acdc, add_mnms, add_mnms2, cine, drawn, save
from tests.malformed import datasets
from tests.malformed.entry import (
    DATATYPE,
    DIM,
    INF,
    NAN,
    PIXDIM,
    SLOPE,
    SROW,
    WHOLE_FILE,
    Damage,
    Entry,
    Make,
    flip,
    folder,
    header,
    loop,
    pipe,
    shortened,
)

UNREADABLE = (
    r"(not a complete NIfTI|truncated|damaged|cannot be read|cannot read|git-lfs|is empty|web page"
    "|none of nnU-Net's readers)"
)
CONVERTED = r"raw/Dataset007_\w+(/.*)?$"  # begun, and removed when no subject could be converted
# Of own cine, whose key is taken back, too; `corpus` looks that none is left.
CONVERTED_CINE = rf"{CONVERTED}|raw/\.ssp-keys(/[^/]*Dataset007_Cine\.csv)?$"


def stored(voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Damage:
    """Other voxels under the file's name."""
    return lambda file: save(voxels, file, affine)


def changed(place: tuple[int, ...], value: float) -> Damage:
    """The cine as float32 with another value at one place."""
    voxels = cine().astype(np.float32)
    voxels[place] = value
    return stored(voxels)


def constant_frame() -> np.ndarray:
    voxels = cine()
    voxels[..., 1] = 7
    return voxels


# Damages of a cine, with the rule that the message must hold.
OF_CINES: dict[str, tuple[Damage, str]] = {
    **{name: (damage, UNREADABLE) for name, damage in WHOLE_FILE.items()},
    "one bit wrong": (flip(), UNREADABLE),
    "a datatype that there is not": (header(DATATYPE, "h", 9999), UNREADABLE),
    "complex numbers": (header(DATATYPE, "hh", 32, 64), "must be integers or real numbers|"),
    "colours": (header(DATATYPE, "hh", 128, 24), "must be integers or real numbers|"),
    "a negative side": (header(DIM, "hh", 4, -6), UNREADABLE + "|shape"),
    "no axes": (header(DIM, "h", 0), UNREADABLE + "|shape"),
    "200 axes": (header(DIM, "h", 200), UNREADABLE + "|shape"),
    "more voxels than memory holds": (
        header(DIM, "hhhhh", 4, 32000, 32000, 3000, 300),
        UNREADABLE + "|shape|more",
    ),
    "more frames than the file holds": (header(DIM + 8, "h", 30000), UNREADABLE + "|frames"),
    "three axes": (stored(cine()[..., 0]), "4 axes"),
    "two axes": (stored(cine()[..., 0, 0]), "axes"),
    "five axes": (stored(np.stack([cine(), cine()], -1)), "axes"),
    "NaN": (changed((1, 1, 1, 1), NAN), "NaN or infinite|finite"),
    "infinity": (changed((1, 1, 1, 1), INF), "NaN or infinite|finite"),
    "a constant frame": (stored(constant_frame()), "constant"),
    "only zeros": (stored(np.zeros_like(cine())), "constant"),
    "a slope of 1e30": (header(SLOPE, "ff", 1e30, 0.0), "slope|implausible|at most|float"),
    "an infinite slope": (header(SLOPE, "ff", INF, 0.0), UNREADABLE + "|slope|finite"),
    "NaN in the affine": (header(SROW, "f", NAN), "affine|sform|geometry"),
    "an axis of no length": (header(SROW, "ffff", 0, 0, 0, 0), "affine|axes|spacing"),
    "equal axes": (header(SROW, "ffff" * 2, *[1, 1, -4, 0] * 2), "affine|axes"),
}
# Damages of a mask of that cine.
OF_MASKS: dict[str, tuple[Damage, str]] = {
    "cut at 98 %": (WHOLE_FILE["cut at 98 %"], UNREADABLE),
    "wrong checksum": (WHOLE_FILE["wrong checksum"], UNREADABLE),
    "a web page": (WHOLE_FILE["a web page"], UNREADABLE),
    "an unknown value": (stored(drawn(ED, ES) * np.uint8(3)), "among|9|value"),
    "a value of 0.5": (stored(drawn(ED, ES) * np.float32(0.5)), "whole numbers|value"),
    "a negative value": (stored(drawn(ED, ES) * np.int16(-1)), "among|value"),
    "NaN": (stored(np.where(drawn(ED) > 0, np.float32(NAN), 0)), "whole numbers|NaN|value"),
    "another shape": (stored(drawn(ED, ES)[:-1]), "shape"),
}


def of_mnms(spoil: Damage, part: str) -> Make:
    def make(root: Path) -> list[str]:
        image = add_mnms(root / "source", "Training/Labeled", "A1B2C3", drawn(ED, ES))
        spoil(image if part == "image" else image.with_name("A1B2C3_sa_gt.nii.gz"))
        return ["convert", "mnms", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def of_acdc(spoil: Damage, part: str) -> Make:
    def make(root: Path) -> list[str]:
        four_d = part != "frame"
        home = add_acdc(root / "source", "training", 1, four_d=four_d)
        name = {"4d": "4d", "frame": "frame01", "mask": "frame01_gt"}[part]
        spoil(home / f"patient001_{name}.nii.gz")
        return ["convert", "acdc", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def of_mnms2(spoil: Damage, part: str) -> Make:
    def make(root: Path) -> list[str]:
        file = add_mnms2(root / "source", 1)
        spoil(file if part == "image" else file.with_name("001_SA_ED_gt.nii.gz"))
        return ["convert", "mnms2", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def of_cine(spoil: Damage, part: str) -> Make:
    def make(root: Path) -> list[str]:
        image = root / "source" / "S1.nii.gz"
        save(cine(), image)
        if part == "mask":
            save(drawn(ED, ES), image.with_name("S1_gt.nii.gz"))
        spoil(image if part == "image" else image.with_name("S1_gt.nii.gz"))
        return ["convert", "cine", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def converters() -> Iterator[Entry]:
    def entry(name: str, make: Make, says: str) -> Entry:
        writes = CONVERTED_CINE if name.startswith("own ") else CONVERTED
        return Entry(name, make, f"error:.*{says}", writes=writes)

    for name, (spoil, rule) in OF_CINES.items():
        yield entry(f"mnms image: {name}", of_mnms(spoil, "image"), rf"A1B2C3_sa\.nii.*({rule})")
        if name in WHOLE_FILE or "memory" in name or "slope" in name:
            yield entry(f"acdc 4D image: {name}", of_acdc(spoil, "4d"), rf"_4d\.nii.*({rule})")
            yield entry(f"own cine: {name}", of_cine(spoil, "image"), rf"S1\.nii.*({rule})")
    for name in ("cut at 98 %", "wrong checksum", "zeros"):
        says = rf"{{}}\.nii.*{UNREADABLE}"
        yield entry(
            f"acdc frame: {name}", of_acdc(WHOLE_FILE[name], "frame"), says.format("_frame01")
        )
        yield entry(
            f"mnms2 image: {name}", of_mnms2(WHOLE_FILE[name], "image"), says.format("001_SA_CINE")
        )
        yield entry(
            f"mnms2 mask: {name}", of_mnms2(WHOLE_FILE[name], "mask"), says.format("001_SA_ED_gt")
        )
    for name, (spoil, rule) in OF_MASKS.items():
        yield entry(f"mnms mask: {name}", of_mnms(spoil, "mask"), rf"A1B2C3_sa_gt\.nii.*({rule})")
        yield entry(f"own mask: {name}", of_cine(spoil, "mask"), rf"S1_gt\.nii.*({rule})")
    yield entry(
        "own cine: a named pipe", of_cine(pipe, "image"), r"S1(\.nii.*|: )(regular|no file|file)"
    )
    yield entry(
        "own cine: a link to itself",
        of_cine(loop, "image"),
        r"(loop.*S1\.nii|S1\.nii.*(missing|cannot|read))",
    )
    yield entry(
        "mnms image: a folder", of_mnms(folder, "image"), r"A1B2C3_sa\.nii.*(missing|folder)"
    )


# -- prepare ---------------------------------------------------------------------------------------

PREPARED = rf"preprocessed/{datasets.NAME}(/.*)?$"


def frame(value: float | None = None, **options: object) -> np.ndarray:
    voxels = datasets.image(1).astype(np.float32)
    if value is not None:
        voxels[2, 2, 1] = value
    return voxels


OF_IMAGES: dict[str, tuple[Damage, str]] = {
    "cut at 30 %": (WHOLE_FILE["cut at 30 %"], UNREADABLE),
    "wrong checksum": (WHOLE_FILE["wrong checksum"], UNREADABLE),
    "a web page": (WHOLE_FILE["a web page"], UNREADABLE),
    "voxels missing": (shortened(0.7), UNREADABLE),
    "more voxels than memory holds": (
        header(DIM, "hhhh", 3, 32000, 32000, 3000),
        UNREADABLE + "|shape|memory|more",
    ),
    "four axes": (stored(cine()), "axes|3D|4D|dimension"),
    "NaN": (stored(frame(NAN)), "NaN|finite"),
    "infinity": (stored(frame(INF)), "infinit|finite"),
    "only zeros": (stored(np.zeros(datasets.SHAPE, np.int16)), "equal|constant|no image|zero"),
    "spacing of 0": (
        header(PIXDIM + 4, "fff", 0.0, 0.0, 0.0),
        "spacing|voxel edges|affine|zero|" + UNREADABLE,
    ),
    "a unit of micrometres": (
        stored(frame(), np.diag([1500.0, 1500, 8000, 1])),
        "1,?000|unit|spacing",
    ),
}


def of_prepare(spoil: Damage, name: str) -> Make:
    def make(root: Path) -> list[str]:
        home = datasets.raw(root)
        datasets.prepared(root)
        spoil(home / name)
        return ["prepare", datasets.NUMBER, "-p", "nnUNetPlans", "-np", "1"]

    return make


def preparing() -> Iterator[Entry]:
    for name, (spoil, rule) in OF_IMAGES.items():
        for part, file in (
            ("labelled", "imagesTr/A_frame00_0000.nii.gz"),
            ("unlabelled", "imagesUn/A_frame01_0000.nii.gz"),
        ):
            says = rf"error:.*{Path(file).name[:-7]}\.nii.*({rule})"
            yield Entry(
                f"prepare, {part} image: {name}", of_prepare(spoil, file), says, writes=PREPARED
            )
    mask = datasets.mask(0)
    for name, spoil, rule in (
        ("an unknown value", stored(mask * np.uint8(3)), "value|label"),
        ("a value of 0.996", stored(mask * np.float32(0.5)), "value|whole"),
        ("NaN", stored(np.where(mask > 0, np.float32(NAN), 0)), "value|NaN|whole"),
        ("another shape", stored(mask[1:]), "shape"),
        ("wrong checksum", WHOLE_FILE["wrong checksum"], UNREADABLE),
        ("cut at 98 %", WHOLE_FILE["cut at 98 %"], UNREADABLE),
    ):
        says = rf"error:.*A_frame00(_0000)?\.nii.*({rule})"
        make = of_prepare(spoil, "labelsTr/A_frame00.nii.gz")
        yield Entry(f"prepare, mask: {name}", make, says, writes=PREPARED)


# -- evaluate --------------------------------------------------------------------------------------


def of_evaluate(spoil: Damage, part: str = "prediction") -> Make:
    def make(root: Path) -> list[str]:
        folder = datasets.predictions(root)
        home = root / "raw" / datasets.NAME / "labelsTs"
        spoil((folder if part == "prediction" else home) / "T_frame00.nii.gz")
        return ["evaluate", datasets.NUMBER, str(folder), "-np", "1"]

    return make


def evaluating() -> Iterator[Entry]:
    mask = datasets.mask(5)
    damages: dict[str, tuple[Damage, str]] = {
        **{name: (damage, UNREADABLE) for name, damage in WHOLE_FILE.items()},
        "one bit wrong": (flip(), UNREADABLE),
        "an unknown value": (stored(mask * np.uint8(3)), "value|label"),
        "a value of 0.5": (stored(mask * np.float32(0.5)), "value|whole"),
        "NaN": (stored(np.where(mask > 0, np.float32(NAN), 0)), "value|NaN|whole"),
        "another shape": (stored(mask[1:]), "size|shape"),
        "four axes": (stored(np.stack([mask, mask], -1)), "3D|axes"),
        "more voxels than memory holds": (
            header(DIM, "hhhh", 3, 32000, 32000, 3000),
            UNREADABLE + "|shape|more",
        ),
    }
    for name, (spoil, rule) in damages.items():
        says = rf"error:.*T_frame00\.nii.*({rule})"
        yield Entry(f"evaluate, prediction: {name}", of_evaluate(spoil), says)
        if name in ("cut at 98 %", "wrong checksum", "an unknown value"):
            make = of_evaluate(spoil, "reference")
            yield Entry(f"evaluate, reference: {name}", make, says)


ENTRIES = (*converters(), *preparing(), *evaluating())
