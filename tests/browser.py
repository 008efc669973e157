"""Pages in a headless browser, at the width of a desktop and of a phone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 400)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_MEASURE = """
  const root = page.documentElement;
  const images = [...page.images];
  const wide = [...page.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth);
  return {width: root.scrollWidth, room: root.clientWidth,
    drawn: images.filter(i => i.complete && i.naturalWidth > 0).length, all: images.length,
    hidden: wide.filter(e => e.offsetHeight === e.clientHeight).length, wide: wide.length,
    text: parseFloat(page.defaultView.getComputedStyle(page.querySelector('td')).fontSize)};
"""
TRIES = 3  # Chromium crashes now and then by itself


def seen(page: Path, width: int, scratch: Path) -> dict[str, Any]:
    """Measure a page in a frame of some width; skips the test where there is no browser."""
    return measured(page.read_text(encoding="utf-8"), width, scratch, _MEASURE)


def measured(html: str, width: int, scratch: Path, script: str) -> dict[str, Any]:
    """Return what the body of a function of `page`, its document, finds in a frame of some width.

    Skips the test where there is no browser.
    """
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium here: the pages are not looked at")
    inner = html.replace('"', "&quot;")
    loaded = (
        "<script>onload = () => { document.body.textContent = JSON.stringify(((page) => {"
        f"{script}"
        "})(document.querySelector('iframe').contentDocument)); }</script>"
    )
    frame = f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{inner}"></iframe>'
    outer = scratch / f"outer{width}.html"
    outer.write_text(f'<!doctype html><meta charset="utf-8">{loaded}{frame}', encoding="utf-8")
    command = [browser, "--headless=new", "--disable-gpu", "--virtual-time-budget=10000"]
    command += [f"--user-data-dir={scratch / 'profile'}", "--dump-dom", outer.as_uri()]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode >= 0:  # not ended by a signal
            break
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.partition("<body>")[2].partition("</body>")[0])
    return found
