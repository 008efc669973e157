"""Sphinx's settings: the Markdown of this repository as pages, see `make docs`.

Every link within the repository must lead somewhere, to a heading too; links to other places are only listed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes

ROOT = Path(__file__).parents[1]
PAGES = sorted(f"docs/{page.stem}" for page in (ROOT / "docs").glob("*.md"))
OUTSIDE = "outside-links.txt"

project = "nnunet-ssp"
author = "The authors of nnunet-ssp"
release = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md"]
myst_heading_anchors = 4  # as GitHub makes them
html_theme = "alabaster"
html_theme_options = {
    "description": "Self-supervised pretraining for nnU-Net",
    "page_width": "70em",
}
html_copy_source = False


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """Give the first page the list of all others, which GitHub does not need."""
    if name == root_doc:
        others = "\n".join([*PAGES, "CONTRIBUTING", "CHANGELOG"])
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n\n{others}\n```\n"


def note_outside(app: Any, tree: nodes.document, name: str) -> None:
    """Collect the links of a page that lead to other places."""
    found = {node["refuri"] for node in tree.findall(nodes.reference) if "refuri" in node}
    app.outside |= {link for link in found if re.match(r"https?:", link)}


def list_outside(app: Any, error: Exception | None) -> None:
    """Write the list of these links; nothing is asked for over the network."""
    if error is None:
        text = "".join(f"{link}\n" for link in sorted(app.outside))
        Path(app.outdir, OUTSIDE).write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.outside = set()
    app.connect("source-read", add_contents)
    app.connect("doctree-resolved", lambda app, tree, name: note_outside(app, tree, name))
    app.connect("build-finished", list_outside)
