"""A small cine player for a page: sliders for frame and slice, contours on and off, without any library.

All frames and slices lie in two embedded images, tile beside tile: grey values, and contours on a transparent ground.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

SCRIPT = """
for (const box of document.querySelectorAll('.player')) {
  const d = box.dataset, part = name => box.querySelector('.' + name);
  const canvas = part('shown'), pen = canvas.getContext('2d');
  const frame = part('frame'), slice = part('slice'), lines = part('lines'), run = part('run');
  const labels = JSON.parse(d.labels);
  let timer = 0;
  function draw() {
    const t = +frame.value, z = +slice.value, w = +d.width, h = +d.height;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (const image of lines.checked ? ['images', 'contours'] : ['images'])
      pen.drawImage(part(image), t * w, z * h, w, h, 0, 0, canvas.width, canvas.height);
    part('at').value = 'frame ' + t + (labels[t] ? ' ' + labels[t] : '');
    part('in').value = 'slice ' + (z + 1);
  }
  function stop() { clearInterval(timer); timer = 0; run.textContent = 'Play'; }
  function play() {
    run.textContent = 'Pause';
    timer = setInterval(() => { frame.value = (+frame.value + 1) % d.frames; draw(); }, +d.ms);
  }
  run.addEventListener('click', () => { if (timer) stop(); else play(); });
  for (const input of [frame, slice, lines]) input.addEventListener('input', draw);
  for (const name of ['images', 'contours'])
    if (!part(name).complete) part(name).addEventListener('load', draw);
  draw();
}
"""


@dataclass(frozen=True)
class Sprites:
    """The tiles of a cine, one column a frame, one row a slice."""

    # PNG files of the same size
    images: bytes
    contours: bytes
    n_frames: int
    n_slices: int
    # Columns and rows of a tile, and of its picture on the page
    tile: tuple[int, int]
    shown: tuple[int, int]
    # Where it starts
    frame: int
    slice: int
    # ms
    frame_time: float
    # For example ED, by frame
    labels: dict[int, str]
    alt: str


def markup(sprites: Sprites, images: str, contours: str) -> str:
    """Return the player as HTML.

    Args:
        sprites: The tiles.
        images: Address of the grey tiles.
        contours: Address of the contours.
    """
    import json

    (width, height), (wide, high) = sprites.tile, sprites.shown
    labels = html.escape(json.dumps({str(frame): text for frame, text in sprites.labels.items()}))

    def slider(name: str, output: str, last: int, value: int) -> str:
        return (
            f"<label><span>{name}</span>"
            f'<input type="range" class="{name.lower()}" min="0" max="{last}" value="{value}">'
            f'<output class="{output}"></output></label>'
        )

    return (
        f'<div class="player" data-width="{width}" data-height="{height}" data-frames="{sprites.n_frames}" '
        f'data-ms="{max(round(sprites.frame_time), 20)}" data-labels="{labels}">'
        f'<img class="images" src="{images}" alt="" hidden><img class="contours" src="{contours}" alt="" hidden>'
        f'<canvas class="shown" width="{wide}" height="{high}" role="img" aria-label="{html.escape(sprites.alt)}">'
        "</canvas>"
        + slider("Frame", "at", sprites.n_frames - 1, sprites.frame)
        + slider("Slice", "in", sprites.n_slices - 1, sprites.slice)
        + '<label><input type="checkbox" class="lines" checked>contours</label>'
        '<button type="button" class="run">Play</button></div>'
    )
