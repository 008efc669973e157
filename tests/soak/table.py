"""Table of `docs/reliability.md`: trials, survivors and losses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.soak.journal import LOST, NOT_TRIED, SURVIVED

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


def rows(entries: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the lines of the table, one row per group in the order of its first trial."""
    groups: dict[str, list[Mapping[str, object]]] = {}
    for entry in entries:
        groups.setdefault(str(entry["group"]), []).append(entry)
    lines = ["| what | tried | survived | lost |", "|---|---|---|---|"]
    for group, trials in groups.items():
        tried = [t for t in trials if t["outcome"] != NOT_TRIED]
        survived = [t for t in tried if t["outcome"] == SURVIVED]
        if not tried:
            lines.append(f"| {group} | 0 | | not tried: {_cell(trials[0]['lost'])} |")
            continue
        lost = Counter(str(t["lost"]) for t in tried if t["outcome"] == LOST)
        twice = Counter(str(t["lost"]) for t in survived if t["lost"])
        said = [f"{n}x LOST: {text}" if n > 1 else f"LOST: {text}" for text, n in lost.items()]
        said += [f"{n}x {text}" for text, n in sorted(twice.items())]
        if not said:
            said = [str(tried[0]["detail"]) if group.startswith(("2,000", "fuzzer")) else "nothing"]
        lines.append(f"| {group} | {len(tried)} | {len(survived)} | {_cell('; '.join(said))} |")
    total = [e for trials in groups.values() for e in trials if e["outcome"] != NOT_TRIED]
    good = sum(e["outcome"] == SURVIVED for e in total)
    lines.append(f"| **all** | **{len(total)}** | **{good}** | |")
    return lines


def _cell(text: object) -> str:
    return re.sub(r"\s+", " ", str(text).replace("|", "/"))[:300]


def write(page: Path, entries: Iterable[Mapping[str, object]], about: str) -> None:
    """Put the table between the page's two markers."""
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: must hold the markers {BEGIN} and {END}.")
    table = "\n".join(["", about, "", *rows(entries), ""])
    page.write_text(f"{head}{BEGIN}{table}{END}{tail}", encoding="utf-8")
