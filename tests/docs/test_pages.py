"""`make docs`: every page is built, and a link that leads nowhere ends it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = (".git", ".venv", "build", "dist")  # what the pages do not need


def built(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = ["-m", "sphinx", "--fail-on-warning", "--quiet", "--fresh-env", "-c"]
    return subprocess.run(
        [sys.executable, *words, str(root / "docs"), str(root), str(target)],
        capture_output=True,
        text=True,
    )


@pytest.mark.heavy
def test_the_pages(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    done = built(ROOT, tmp_path / "pages")
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (tmp_path / "pages" / "docs").glob("*.html")}
    assert pages == {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert "docs/sharing.html" in (tmp_path / "pages" / "README.html").read_text()
    outside = (tmp_path / "pages" / "outside-links.txt").read_text().splitlines()
    assert outside and all(link.startswith("http") for link in outside)


@pytest.mark.heavy
@pytest.mark.parametrize("link", ["docs/gone.md", "docs/data.md#no-such-heading"])
def test_a_link_that_leads_nowhere(tmp_path: Path, link: str) -> None:
    pytest.importorskip("myst_parser")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*OUTSIDE))
    page = copy / "docs" / "platforms.md"
    page.write_text(f"{page.read_text()}\n\n[wrong](../{link})\n")
    done = built(copy, tmp_path / "pages")
    assert done.returncode != 0
    (warning,) = (line for line in done.stderr.splitlines() if "WARNING" in line)
    assert "platforms.md" in warning and re.split("[/#]", link)[-1] in warning
