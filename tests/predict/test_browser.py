"""The pages in a real browser, on a desktop and on a phone: nothing fails, nothing sticks out, and the player plays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.phantom import PhantomSubject
from nnunet_ssp.predict.command import Procedure, run
from nnunet_ssp.predict.inputs import find_studies
from nnunet_ssp.predict.results import Output
from tests.predict.conftest import save

api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NAME = "a_subject_whose_name_is_longer_than_a_phone_is_wide"
LABELS = Labels({n: (v,) for v, n in enumerate(("LV", "MYO", "RV"), 1)}, structures={
    n: n for n in ("LV", "MYO", "RV")})  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the pages are not looked at"),
]


class WithHole:
    """Gives true masks but for a slice that lacks the LV, so that flags are raised."""

    def __init__(self, subject: PhantomSubject) -> None:
        self.labels = subject.labels.copy()
        self.labels[:, :, 2][self.labels[:, :, 2] == 1] = 0

    def segment(self, voxels: np.ndarray, affine: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        return ((frame, 1.5) for frame in np.moveaxis(self.labels, -1, 0))


@pytest.fixture(scope="module")
def pages(subject: PhantomSubject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    save(subject.image, folder / "in" / f"{NAME}.nii.gz", subject.affine)
    (folder / "in" / "bad.nii.gz").write_bytes(b"no image")
    tasks, refused = find_studies([folder / "in"], False, (), 1)
    (folder / "out").mkdir()
    job = Procedure(LABELS, lambda: WithHole(subject))
    assert list(run(tasks, refused, Output(folder / "out"), job, {})) == ["bad"]
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with api.sync_playwright() as playwright:
        # Root, as in containers, has no sandbox
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 400])
def view(browser, request) -> Iterator[object]:
    """A tab of a desktop's or a phone's width, in which nothing may fail."""
    tab = browser.new_page(viewport={"width": request.param, "height": 800})
    failed: list[str] = []
    tab.on("console", lambda said: said.type == "error" and failed.append(said.text))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    yield tab
    tab.close()
    assert failed == []


def test_nothing_sticks_out_of_a_page(view, pages: Path) -> None:
    for name in ("report.html", f"{NAME}_seg.html"):
        view.goto((pages / name).as_uri())
        width, shown = view.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= shown, name
    view.goto((pages / "report.html").as_uri())
    view.get_by_role("link", name=NAME).click()
    assert view.title() == NAME


def test_the_player_is_one_of_the_keyboard(view, pages: Path) -> None:
    view.goto((pages / f"{NAME}_seg.html").as_uri())
    frame, slices, lines = (
        view.locator(f".player .{name}") for name in ("frame", "slice", "lines")
    )

    def drawn() -> str:
        return view.locator("canvas").evaluate("canvas => canvas.toDataURL()")

    def at() -> str:
        return view.locator(".player .at").inner_text()

    assert view.locator(".player img:visible").count() == 0
    frame.press("Home")
    first = drawn()
    assert at().startswith("frame 0")
    frame.press("ArrowRight")
    second = drawn()
    assert at().startswith("frame 1") and second != first
    slices.press("ArrowLeft")
    assert drawn() != second
    slices.press("ArrowRight")
    assert drawn() == second
    lines.press("Space")
    plain = drawn()
    lines.press("Space")
    assert drawn() == second != plain
    # Some pixels have the colour of a contour where it is on, and none has where it is off
    coloured = """canvas => { const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      let n = 0; for (let i = 0; i < data.length; i += 4) n += Math.abs(data[i] - data[i + 2]) > 60; return n; }"""
    assert view.locator("canvas").evaluate(coloured) > 0
    lines.uncheck()
    assert view.locator("canvas").evaluate(coloured) == 0


def test_the_player_plays_and_pauses(view, pages: Path) -> None:
    view.goto((pages / f"{NAME}_seg.html").as_uri())
    button, frame = view.locator(".player .run"), view.locator(".player .frame")
    before = frame.input_value()
    button.press("Enter")
    view.wait_for_function(
        "before => document.querySelector('.frame').value !== before", arg=before
    )
    assert button.inner_text() == "Pause"
    button.press("Enter")
    assert button.inner_text() == "Play"
