from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from nnunet_ssp.reporting.page import Page
from nnunet_ssp.reporting.player import SCRIPT, Sprites


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def page() -> str:
    tiles = np.zeros((3 * 5, 4 * 6), np.uint8)
    sprites = Sprites(
        png(tiles), png(tiles), 4, 3, (6, 5), (18, 15), 2, 1, 33.4, {2: "ED", 0: 'a"<b>'}, 'x "y"'
    )
    made = Page("Title")
    made.player(sprites)
    return made.html()


def test_the_page_allows_its_script_and_no_other(page: str) -> None:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = re.search('Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy[1]
    assert page.count("<script>") == 1 and f"<script>{SCRIPT}</script>" in page
    assert "script-src" not in Page("Title").html() and "<script" not in Page("Title").html()
    assert not re.search(r"https?://|src=\"(?!data:)", page)


def test_every_control_is_one_of_the_keyboard(page: str) -> None:
    assert page.count('<input type="range"') == 2
    assert '<input type="checkbox" class="lines" checked>' in page
    assert '<button type="button" class="run">' in page
    assert 'aria-label="x &quot;y&quot;"' in page and "<b>" not in page
    assert 'data-ms="33"' in page


STUB = """
const drawn = [], parts = {};
function part(name) {
  return parts[name] ??= {name, value: {frame: '2', slice: '1'}[name], checked: true, complete: true, width: 18,
    height: 15, textContent: '', on: {}, addEventListener(kind, act) { this.on[kind] = act; },
    getContext: () => ({clearRect() {}, drawImage: (image, ...place) => drawn.push([image.name, ...place])})};
}
const box = {dataset: DATA, querySelector: name => part(name.slice(1))};
globalThis.document = {querySelectorAll: () => [box]};
let tick; globalThis.setInterval = act => { tick = act; return 1; }; globalThis.clearInterval = () => {};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the script")
def test_the_script_draws_the_tile_of_frame_and_slice() -> None:
    data = {"width": "6", "height": "5", "frames": "4", "ms": "33", "labels": '{"2": "ED"}'}
    steps = """
    const first = [...drawn, part('at').value, part('in').value]; drawn.length = 0;
    part('lines').checked = false; part('slice').value = '0'; part('slice').on.input();
    part('run').on.click(); tick(); tick();
    console.log(JSON.stringify([first, drawn, part('at').value, part('run').textContent]));
    """
    program = STUB.replace("DATA", json.dumps(data)) + SCRIPT + steps
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    place = [12, 5, 6, 5, 0, 0, 18, 15]
    first, later, said, button = json.loads(done.stdout)
    assert first == [["images", *place], ["contours", *place], "frame 2 ED", "slice 2"]
    assert [entry[:3] for entry in later] == [
        ["images", 12, 0],
        ["images", 18, 0],
        ["images", 0, 0],
    ]
    assert (said, button) == ("frame 0", "Pause")
