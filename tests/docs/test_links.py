"""Every relative link of the documentation leads to a file, and to a heading where it names one."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from nnunet_ssp.cli import _parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(text: str) -> str:
    """The text without fenced blocks and inline code, where brackets are no links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(text: str) -> list[str]:
    """Targets of links and pictures, as Markdown or HTML."""
    text = without_code(text)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"", text)
    return [a or b for a, b in found if not re.match(r"[a-z]+:", a or b)]


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them: the second of a name gets -1."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = unquote(link).partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (
            anchor and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert not broken(page)


def test_every_page_is_linked_from_the_readme() -> None:
    """A page that nobody is led to is read by nobody."""
    named = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text())}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= named


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda page: page.name)
def test_a_page_begins_with_whom_it_is_for(page: Path) -> None:
    """In words, before its first heading, list, table or block of commands."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    title, first, *_ = [part.strip() for part in text.split("\n\n") if part.strip()]
    assert title.startswith("# ") and "\n" not in title
    assert re.match(r"For those (who|whose) .{40,}", first, re.DOTALL)


def words_of_commands(text: str) -> list[list[str]]:
    """The words of our command's lines in a page's blocks and inline code."""
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(a or b for a, b in code).replace("\\\n", " ").splitlines()
    found = (re.search(r"(?:^|[\s(])nnunet-ssp ((?!nnunet)[a-z]+\b.*)", line) for line in lines)
    return [re.split(r"\s+#|[|;&)]", match[1])[0].split() for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_and_their_options_exist(page: Path) -> None:
    for words in words_of_commands(page.read_text(encoding="utf-8")):
        parser: argparse.ArgumentParser = _parser()
        while words and parser._subparsers is not None:
            (choices,) = (a.choices for a in parser._subparsers._group_actions)
            if words[0].isupper():  # SOURCE
                words[0] = "cine"
            assert words[0] in choices, words
            parser = choices[words.pop(0)]
        for word in words:
            if re.fullmatch(r"--?[A-Za-z][\w-]*", word):
                assert word in parser._option_string_actions, f"{parser.prog} has no {word}"


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One\n\n## A `b`: c, d\n\n## One\n\n```\n# no heading\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-b-c-d) [c](other.md#one-1) [d](https://example.org/x) `[e](gone.md)`\n"
        '[f](gone.md) [g](other.md#no-heading) <img src="gone.png"> [h](#nowhere)\n\n# Somewhere\n[i](#somewhere)\n'
    )
    assert broken(page) == ["gone.md", "other.md#no-heading", "gone.png", "#nowhere"]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
