"""`docs/settings.md` says what the settings' dataclasses say."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("make_settings")


def test_the_page_is_current(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "run python docs/make_settings.py"


def test_an_outdated_page_is_noticed_and_written_anew(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    current = script.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "settings.md"
    page.write_text(current.replace("`mask_ratio`", "`mask_share`"), encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    assert script.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{page} is not current: run python docs/make_settings.py\n"
    assert "`mask_share`" in page.read_text(encoding="utf-8")
    assert script.main([]) == 0
    assert page.read_text(encoding="utf-8") == current
