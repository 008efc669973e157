from __future__ import annotations

import re
from urllib.parse import unquote, urldefrag

import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from nnunet_ssp.study.report import write_results
from tests.browser import WIDTHS, seen
from tests.evaluation.conftest import Document

HOSTILE = "<b onclick='x()'>a & b</b>"
PARTS = {
    "tables": [
        {"title": "Table 1", "rows": "folds", "columns": "models", "published": "demooij/table1"},
        {"title": "table 1", "rows": "scores", "columns": "models", "folds": "10"}
        | {"scores": ["dice", "area", "LV EF"]},
    ],
    "figures": [
        {"title": "Figure 1", "kind": "labels"},
        {"title": "Figure 2", "kind": "learning"},
        {"title": "Figure 3", "kind": "boxes", "tests": ["ED", "C+D"]},
    ],
}


def write(mini) -> Document:
    page = write_results(mini.results, ["export a=b"])
    assert page == mini.output / "report.html"
    return Document(page.read_text(encoding="utf-8"))


def test_everything_is_written(miniature):
    mini = miniature(**PARTS).finish()
    write(mini)
    names = {
        file.name for folder in ("tables", "figures") for file in (mini.output / folder).iterdir()
    }
    stems = ["Figure-1", "Figure-2-all", "Figure-2-10", "Figure-3-ED", "Figure-3-C+D"]
    pictures = {f"{stem}.{ending}" for stem in stems for ending in ("png", "pdf")}
    tables = {f"{t}.{ending}" for t in ("Table-1", "table-1-2") for ending in ("md", "csv", "tex")}
    assert names == pictures | tables
    models = {file.name for file in (mini.output / "models").iterdir()}
    assert models == {f"{m}{end}.csv" for m in ("baseline", "MIM") for end in ("", "-curves")}
    assert (mini.output / "figures" / "Figure-1.pdf").read_bytes().startswith(b"%PDF")
    cells = pd.read_csv(mini.output / "cells.csv", dtype={"fold": str})
    # Two models on two folds, and two more scores on one: three seeds each.
    assert len(cells) == (2 * 2 + 2 * 2) * 3
    own = cells[(cells["model"] == "MIM") & (cells["fold"] == "10") & (cells["score"] == "dice")]
    assert own["value"].tolist() == pytest.approx([0.594, 0.604, 0.614])
    assert own["n_subjects"].tolist() == [8] * 3


def test_a_single_plot_has_its_title_on_the_page_and_in_its_file(miniature, monkeypatch):
    """The figure, the dataset and the number of seeds."""
    titles = []

    def keep(canvas: Canvas, text: str, **more: object) -> object:
        titles.append(text.replace("\n", " "))
        return suptitle(canvas, text, **more)

    suptitle = Canvas.suptitle
    monkeypatch.setattr(Canvas, "suptitle", keep)
    figures = [PARTS["figures"][0], {"title": "Two seeds", "kind": "boxes", "seeds": [0, 1]}]
    write(miniature(tables=PARTS["tables"], figures=figures).finish())
    # As PNG, as PDF, and on the page
    assert sorted(titles) == sorted(
        3 * ["Figure 1, Dataset114_MNMs, 3 seeds"] + 3 * ["Two seeds, Dataset114_MNMs, 2 seeds"]
    )


def test_what_an_earlier_file_of_the_study_made_is_not_kept(miniature):
    mini = miniature(**PARTS).finish()
    write(mini)
    (mini.output / "tables" / "own.csv").touch()
    renamed = miniature(tables=[PARTS["tables"][0] | {"title": "First"}])
    write(renamed)
    names = {file.name for file in (mini.output / "tables").iterdir()}
    assert names == {"First.md", "First.csv", "First.tex", "own.csv"}
    assert not list((mini.output / "figures").iterdir())


def links(document: Document) -> list[str]:
    return [link["href"] for link in document.all("a")]


def test_links_lead_to_files_and_rows_that_exist(miniature):
    mini = miniature(tables=PARTS["tables"])
    mini.finish(run for run in [*mini.runs[0], *mini.runs[1]] if run.seed != 2)
    run = mini.run("MIM", "10", 2)
    (mini.output / run.folder).mkdir(parents=True)
    (mini.output / run.folder / "train.log").write_text("error")
    without = f"{mini.run('MIM', '10', 1).folder}/evaluation/report.html"  # --no-report
    (mini.output / without).unlink()
    document = write(mini)
    rows = {row["id"] for row in document.all("tr") if "id" in row}
    assert len(rows) == 4
    found = links(document)
    assert {f"#{row}" for row in rows} < set(found)
    for link in found:
        path, row = urldefrag(link)
        assert (mini.output / unquote(path)).is_file() if path else row in rows
    assert without not in found
    for name in ("evaluation/report.html", "train.log", "train.json"):
        assert f"{mini.run('MIM', '10', 0).folder}/{name}" in found
    assert f"{run.folder}/train.log" in found
    text = (mini.output / "tables" / "Table-1.md").read_text()
    for path, row in re.findall(r"\]\((.*?)#(.*?)\)", text):
        assert (mini.output / "tables" / path).is_file()
        assert row in rows


def test_the_page_asks_the_network_for_nothing(miniature):
    document = write(miniature(figures=PARTS["figures"][:1]).finish())
    for tag, attributes in document.elements:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    assert not [link for link in links(document) if re.match(r"\w+:|/", link)]
    policy = next(m for m in document.all("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'")


def test_what_is_missing_is_said(miniature):
    mini = miniature(tables=PARTS["tables"])
    mini.finish(run for run in mini.runs[1] if run.name == "baseline" and run.seed == 0)
    text = write(mini).text
    assert text[0] == "Not complete: 11 of 13 runs are missing; what needs them stays empty."
    assert "Pretrainings: 0 of 1 done, 0 s of work." in text
    assert "Trainings: 2 of 12 done, 6 min of work on here." in text
    state = text.index("MIM, 10, seed 1")
    assert text[state + 1] == "waits for the pretraining MIM"
    table = text.index("Table 1")
    assert text[text.index("baseline", table) :][:12] == [
        *("baseline", "MIM"),
        *("all", "0.694", "1 of 3 seeds", "paper 0.89 ± 0.001", "–", "paper 0.89 ± 0.001"),
        *("10", "0.494", "1 of 3 seeds", "paper 0.82 ± 0.009"),
    ]


def test_a_study_of_which_nothing_ran_has_its_page(miniature):
    mini = miniature(**PARTS)
    text = write(mini).text
    assert text.count("No run of this figure is done.") == 3
    assert len(pd.read_csv(mini.output / "cells.csv")) == 0
    assert not (mini.output / "figures").exists()


def test_a_complete_study_has_no_notice_but_comparisons_and_commands(miniature):
    mini = miniature().finish()
    text = write(mini).text
    assert text[:3] == ["A study", "First paragraph.", "Second one."]
    start = text.index("Comparisons")
    rows = text[text.index("p, Holm", start) + 1 :][:20]
    numbers = ("+0.100", *["+0.100 to +0.100"] * 2, "8 of 8", "3 of 3", "0.004", "0.004")
    assert rows == ["all", "MIM", "baseline", *numbers, "10", "MIM", "baseline", *numbers]
    assert "export a=b" in text
    (commands,) = (part for part in text if part.startswith("# baseline, all, seed 0"))
    assert commands.count("nnUNetv2_train") == commands.count("nnunet-ssp evaluate") == 12
    assert "nnUNetv2_train MIM, 10, seed 1 & more" in commands
    assert "Curves of MIM, pretraining on paper, seed 0" in text


def test_names_are_escaped(miniature):
    mini = miniature(title=HOSTILE, about=HOSTILE).finish()
    document = write(mini)
    assert document.text[:2] == [HOSTILE, HOSTILE]
    assert not document.all("b")


def test_a_test_that_no_case_belongs_to_is_named(miniature):
    tests = {"all": {}, "C+D": {"vendor": "Canon"}}
    table = {"title": "T", "rows": "folds", "columns": "tests", "models": "MIM"}
    mini = miniature(tests=tests, tables=[table | {"tests": ["all", "C+D"]}]).finish()
    text = write(mini).text
    assert [part for part in text if part.startswith("No tested case belongs to the test C+D")]


def test_the_same_results_are_the_same_files(miniature):
    mini = miniature(figures=PARTS["figures"][:1]).finish()
    files = ("report.html", "figures/Figure-1.pdf", "figures/Figure-1.png", "tables/Table-1.csv")
    write(mini)
    first = [(mini.output / name).read_bytes() for name in files]
    write(mini)
    assert [(mini.output / name).read_bytes() for name in files] == first


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_a_desktop_and_a_phone(miniature, tmp_path, width):
    page = write_results(miniature(**PARTS).finish().results, ["export a=b"])
    found = seen(page, width, tmp_path)
    assert found["width"] <= found["room"] <= width
