from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.evaluation import report
from nnunet_ssp.evaluation.files import Pair
from nnunet_ssp.reporting.page import Page

SPACING = (8.0, 1.5, 2.0)  # mm: slices, rows, columns
SHAPE = (6, 40, 44)


def write_image(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING) -> Path:
    """Write an array (slices, rows, columns), spacing in the same order."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in spacing[::-1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def heart(radius: float = 9, row: float = 20, column: float = 24) -> np.ndarray:
    """LV 1 in a ring of myocardium 2, beside RV 3, on slices 1 to 4; smaller towards slice 4."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    stack = np.zeros(SHAPE, np.uint8)
    for z in range(1, 5):
        r = radius * (1 - (z - 1) / 8)
        distance = np.hypot(rows - row, columns - column)
        box = (abs(rows - row) < r) & (abs(columns - column + r + 4) < 4)
        stack[z] = np.select([distance < r * 0.7, distance < r, box], [1, 2, 3])
    return stack


def make_case(subject: str, phase: str, split: str = "test", base: str = "first") -> Case:
    number = int("".join(filter(str.isdigit, subject)))
    frame = {"ED": 0, "ES": 7, "": 3}[phase]
    return Case(
        case=f"{subject}_frame{frame:02d}",
        subject=subject,
        source="mm1",
        source_frame=frame,
        split=split,
        frame=frame,
        n_frames=20,
        phase=phase,
        base=base,
        vendor="AB"[number % 2],
        centre=str(number % 3),
        scanner="",
        field="1.5",
        pathology="",
    )


class Document(HTMLParser):
    """Parsed page: elements, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._goes_on = False
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        if tag == "wbr":  # within a name
            self._goes_on = True
            return
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self._open[-1] not in ("style", "title"):
            if self._goes_on:
                data = self.text.pop() + data
            self.text.append(data)
        self._goes_on = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_dataset_json(
    raw: Path, labels: dict[str, int | list[int]], ending: str = ".nii.gz"
) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))


def write_dataset(raw: Path) -> None:
    """Write eight test subjects at ED and ES, as `convert` does."""
    cases = [make_case(f"T{i}", phase) for i in range(8) for phase in ("ED", "ES")]
    noise = np.random.default_rng(0)
    for case in cases:
        number = int(case.subject[1:])
        stack = heart(radius=(11 if case.phase == "ED" else 8) + number / 4, row=18 + number / 2)
        image = (stack * 60 + noise.integers(0, 50, SHAPE)).astype(np.int16)
        write_image(raw / "labelsTs" / f"{case.case}.nii.gz", stack)
        write_image(raw / "imagesTs" / f"{case.case}_0000.nii.gz", image)
    write_cases(raw / "cases.csv", cases)
    write_dataset_json(raw, {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3})


def write_predictions(folder: Path, references: Path, pixels: float, seed: int = 0) -> Path:
    """Write the references with each slice moved by random pixels and cut at a random row."""
    generator = np.random.default_rng(seed)
    for path in sorted(references.iterdir()):
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        for z in stack:
            move = generator.normal(0, pixels, 2).round().astype(int)
            z[:] = np.roll(z, move, (0, 1))
            z[: 12 if pixels and generator.random() < 0.3 else 0] = 0
        write_image(folder / path.name, stack)
    return folder


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make nnU-Net's three folders, empty, in a temporary folder; return that folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def dataset(nnunet: Path) -> Path:
    """Dataset114_MNMs of `write_dataset`."""
    raw = nnunet / "nnUNet_raw" / "Dataset114_MNMs"
    write_dataset(raw)
    return raw


@pytest.fixture
def predict(dataset: Path, nnunet: Path) -> Callable[..., Path]:
    """Write a folder of predictions of `dataset`'s test cases."""

    def write(name: str, pixels: float, seed: int = 0) -> Path:
        return write_predictions(nnunet / name, dataset / "labelsTs", pixels, seed)

    return write


def write_pair(
    folder: Path, prediction: np.ndarray, reference: np.ndarray, **kwargs: object
) -> Pair:
    """Write two arrays as a pair of files."""
    paths = [
        write_image(folder / name / "a.nii.gz", array, **kwargs)  # type: ignore[arg-type]
        for name, array in (("predicted", prediction), ("true", reference))
    ]
    return Pair("model", 0, "a", *paths)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out pictures unless a test asks for them; drawing takes longer than all the rest."""
    if not {"reports", "with_page"} & set(request.fixturenames):
        monkeypatch.setattr(report, "evaluation_page", lambda evaluation: Page("no pictures"))


@pytest.fixture
def with_page() -> None:
    """Write the whole page."""
