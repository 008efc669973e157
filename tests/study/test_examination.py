from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.study.command import find_study
from nnunet_ssp.study.data import digest
from nnunet_ssp.study.examination import (
    EARLIER,
    SEEN,
    choice_in_words,
    choose,
    commit_of,
    only_chosen,
    read_chosen,
    split_in_words,
)
from nnunet_ssp.study.jobs import study_jobs
from nnunet_ssp.study.runs import Runs, study_runs
from nnunet_ssp.study.spec import Study, read_study
from tests.study.test_spec import write

pytestmark = pytest.mark.usefixtures("nnunet_folders")

MODELS: dict[str, Any] = {
    "baseline": {"trainer": "Scratch"},
    "MIM": {"trainer": "Finetune", "pretraining": "MIM"},
    "other": {"trainer": "Finetune", "pretraining": "MIM", "settings": {"initial_lr": 0.1}},
}
TABLES = [
    {"title": "All", "rows": "folds", "columns": "models"},
    {"title": "Other", "rows": "folds", "columns": "models", "models": "other"},
]


def planned(folder: Path, **changes: Any) -> tuple[Study, Runs]:
    parts = {
        "folds": {"all": "5-fold-0"},
        "models": MODELS,
        "tables": TABLES,
        "baseline": "baseline",
        "evaluate": "choosing",
        "family": {"title": "both", "models": ["MIM", "other"], "folds": "all"},
    }
    study = read_study(write(folder, **(parts | changes)))
    return study, study_runs(study, None)


def chosen(folder: Path, *names: str, file: str = "chosen.json") -> Path:
    study, runs = planned(folder)
    choose(study, "cpu", runs, names, {"other"}, folder / file, folder)
    return folder / file


def words(file: Path) -> str:
    return choice_in_words(json.loads(file.read_text()), file, file.parent)


def forget(file: Path) -> None:
    """Make a choice as it was written before choices recorded what came before them."""
    content = json.loads(file.read_text())
    for name in (EARLIER, SEEN, "digest"):
        del content[name]
    write_json(file, content | {"digest": digest(content)})


def report(folder: Path, *models: str) -> None:
    """Leave what a prediction of the test subjects leaves."""
    _, runs = planned(folder)
    for run in runs[1]:
        if run.name in models:
            (folder / run.folder / "reported" / "predictions").mkdir(parents=True)


def test_what_was_chosen_is_read_again(tmp_path):
    file = chosen(tmp_path, "baseline", "MIM")
    study, runs = planned(tmp_path)
    content = read_chosen(study, "cpu", runs, file)
    assert list(content["models"]) == ["baseline", "MIM"]
    assert content["chosen_from"] == ["baseline", "MIM", "other"]
    about = content["models"]["MIM"]
    assert about["pretraining"]["settings"]["mask_ratio"] == 0.75  # a default
    assert about["folds"]["all"]["seeds"] == [0, 1]
    assert "seed" not in about["folds"]["all"]["settings"]
    assert words(file) == (
        "Reported: baseline, MIM, chosen from 3 of this study. Named in chosen.json (not committed, digest "
        f"{content['digest']}) before any test subject was predicted."
    )
    more = choice_in_words(content | {"tried_before": 7}, file, tmp_path)
    assert "chosen from 3 of this study, and 7 more tried before" in more
    # The same choice again changes nothing, also after the report.
    before = file.read_bytes()
    report(tmp_path, "MIM")
    chosen(tmp_path, "baseline", "MIM")
    assert file.read_bytes() == before


def test_a_choice_that_later_ones_would_not_find_is_refused(tmp_path):
    for name in ("second", "second.txt"):
        with pytest.raises(ValueError, match=r"must end in \.json, by which later choices find it"):
            chosen(tmp_path, "baseline", file=name)
        assert not (tmp_path / name).exists()


def test_other_json_in_the_folder_is_no_choice(tmp_path):
    (tmp_path / "moved.json").symlink_to(tmp_path / "gone")
    (tmp_path / "list.json").write_text('{"models": {}, "chosen_from": [], "digest": []}')
    assert json.loads(chosen(tmp_path, "baseline").read_text())[EARLIER] == []


def test_a_second_choice_tells_what_came_before(tmp_path):
    first = chosen(tmp_path, "baseline", "MIM")
    one = json.loads(first.read_text())["digest"]
    with pytest.raises(FileExistsError, match=r"another choice.*--chosen chosen-2\.json"):
        chosen(tmp_path, "baseline", "other")
    early = chosen(tmp_path, "baseline", "other", file="early.json")
    assert words(early).endswith(
        ") before any test subject was predicted in this folder, but after an earlier choice (chosen.json, digest "
        f"{one})."
    )
    early.unlink()

    report(tmp_path, "MIM", "baseline")
    second = chosen(tmp_path, "baseline", "other", file="chosen-2.json")
    content = json.loads(second.read_text())
    assert content[EARLIER] == [
        {"file": "chosen.json", "digest": one, "models": ["baseline", "MIM"]}
    ]
    said = words(second)
    assert said == (
        "Reported: baseline, other, chosen from 2 of this study. Named in chosen-2.json (not committed, digest "
        f"{content['digest']}) after the test subjects had been seen by: baseline, MIM (chosen.json, digest {one})."
    )
    # The record is under the digest, and the first choice remains the first.
    study, runs = planned(tmp_path)
    assert read_chosen(study, "cpu", runs, second) == content
    write_json(second, content | {SEEN: []})
    with pytest.raises(ValueError, match="its digest does not fit"):
        read_chosen(study, "cpu", runs, second)
    write_json(second, content)
    assert words(first).endswith(f"digest {one}) before any test subject was predicted.")
    with pytest.raises(FileExistsError, match=r"--chosen chosen-3\.json"):
        chosen(tmp_path, "baseline", file="chosen-2.json")

    # A copy elsewhere is the same choice, and says the same.
    copied = tmp_path / "kept" / "chosen-2.json"
    copied.parent.mkdir()
    copied.write_bytes(second.read_bytes())
    assert choice_in_words(content, copied, tmp_path) == said


def test_a_choice_after_a_report_whose_choice_was_deleted(tmp_path):
    chosen(tmp_path, "baseline", "MIM").unlink()
    report(tmp_path, "MIM")
    gone = tmp_path / "runs" / "gone" / "all" / "seed0-0" / "reported"
    (gone / "predictions").mkdir(parents=True)
    said = words(chosen(tmp_path, "baseline", "other"))
    seen = "after the test subjects had been seen by: MIM, gone (no earlier choice lies in the folder)."
    assert said.endswith(seen)


def test_a_second_choice_without_a_record(tmp_path):
    first = chosen(tmp_path, "baseline", "MIM")
    forget(first)
    assert words(first).endswith(") before any test subject was predicted.")
    second = chosen(tmp_path, "baseline", "other", file="chosen-2.json")
    assert words(first).endswith(
        ") before any test subject was predicted."
    )  # by the other's record
    forget(second)
    study, runs = planned(tmp_path)
    read_chosen(study, "cpu", runs, second)
    one, two = (json.loads(file.read_text())["digest"] for file in (first, second))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(second, alone)
    said = choice_in_words(json.loads(second.read_text()), alone / second.name, alone)
    assert said.endswith(f"digest {two}) without a record of what had been reported by then.")
    assert words(second).endswith(
        f") after an earlier choice (chosen.json, digest {one}); whether test subjects had been seen by then is not "
        "recorded."
    )
    assert words(first).endswith(
        f") beside another choice (chosen-2.json, digest {two}); no file tells which was first."
    )


def test_other_files_beside_a_choice(tmp_path):
    for name, text in {"bench.json": "{", "list.json": "[]", "workflow.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    said = words(chosen(tmp_path, "baseline", "MIM"))
    assert said.endswith(") before any test subject was predicted.")
    with pytest.raises(FileExistsError, match=r"workflow\.json holds no choice"):
        chosen(tmp_path, "baseline", file="workflow.json")
    (tmp_path / "chosen.json").write_text("{")
    with pytest.raises(ValueError, match=r"chosen\.json: not a JSON file"):
        chosen(tmp_path, "baseline", "other", file="second.json")


@pytest.mark.filterwarnings("ignore")
def test_the_choice_behind_the_reported_figures_still_fits_its_study():
    """With it, docs/studies.md says, the report of docs/results.md is repeated."""
    study = read_study(find_study("acdc-few"), "cpu")
    file = Path(__file__).parents[2] / "docs" / "results" / "acdc-few" / "chosen-2.json"
    content = read_chosen(study, "cpu", study_runs(study, None), file)
    assert [*content["models"]] == ["scratch", "Dense", "movement alone"]
    assert "after an earlier choice (chosen.json, digest da511d6240ca013f); whether" in words(file)


def test_a_choice_from_before_a_setting_existed_still_counts(tmp_path):
    file = chosen(tmp_path, "baseline", "MIM")
    content = json.loads(file.read_text())
    del content["models"]["MIM"]["pretraining"]["settings"]["snapshot_epochs"]
    del content["digest"]
    content["digest"] = digest(content)
    file.write_text(json.dumps(content))
    study, runs = planned(tmp_path)
    assert read_chosen(study, "cpu", runs, file) == content
    before = file.read_bytes()
    chosen(tmp_path, "baseline", "MIM")
    assert file.read_bytes() == before


def test_nothing_is_reported_before_it_was_chosen(tmp_path):
    study, runs = planned(tmp_path)
    with pytest.raises(FileNotFoundError, match="Name them with --choose"):
        read_chosen(study, "cpu", runs, tmp_path / "chosen.json")


@pytest.mark.parametrize(
    "change",
    [
        {"models": {"baseline": None}},
        {"chosen_from": ["MIM"]},
        {"predict": "--disable_tta"},
        {"digest": "0" * 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_edited_choice_is_refused(tmp_path, change):
    file = chosen(tmp_path, "baseline", "MIM")
    write_json(file, json.loads(file.read_text()) | change)
    study, runs = planned(tmp_path)
    with pytest.raises(ValueError, match="its digest does not fit"):
        read_chosen(study, "cpu", runs, file)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        (
            {"settings": {"finetuning": {"num_epochs": 7}}},
            "cpu",
            r"folds\.all\.settings\.num_epochs",
        ),
        (
            {"pretraining": {"MIM": {"trainer": "MIM", "fold": "all", "settings": {"fill": 1}}}},
            "cpu",
            r"changed: models\.MIM\.pretraining\.settings\.fill\.",
        ),
        ({"seeds": [0]}, "cpu", "seeds"),
        ({"predict": "--disable_tta"}, "cpu", "changed: predict"),
        ({}, "gpu", "changed: size"),
    ],
)
def test_a_study_that_changed_since_the_choice_is_refused(tmp_path, changes, size, message):
    file = chosen(tmp_path, "baseline", "MIM")
    study, runs = planned(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_chosen(study, size, runs, file)


def test_a_digest_made_to_fit_does_not_help(tmp_path):
    file = chosen(tmp_path, "baseline", "MIM")
    content = json.loads(file.read_text())
    content["models"]["other"] = content["models"]["MIM"]
    del content["digest"]
    write_json(file, content | {"digest": digest(content)})
    study, runs = planned(tmp_path)
    with pytest.raises(ValueError, match=r"models"):
        read_chosen(study, "cpu", runs, file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["MIM"], "must name baseline, the baseline of MIM, too"),
        (["baseline", "SimCLR"], r"--choose \(=SimCLR\) must be one of models: baseline, MIM"),
    ],
)
def test_what_cannot_be_chosen(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        chosen(tmp_path, *names)


def test_only_a_study_that_chooses_has_a_choice(tmp_path):
    study, runs = planned(tmp_path, evaluate="test")
    with pytest.raises(ValueError, match=r"evaluate: choosing \(=test\)"):
        choose(study, None, runs, ["baseline"], set(), tmp_path / "chosen.json", tmp_path)
    with pytest.raises(ValueError, match="does not follow the schema"):
        planned(tmp_path, evaluate="report")


def test_the_report_trains_nothing_anew_and_touches_the_chosen_models_alone(tmp_path, data):
    study, _ = planned(tmp_path)
    runs = study_runs(study, data)
    reduced, few = only_chosen(study, runs, ["baseline", "MIM"])
    assert list(reduced.models) == ["baseline", "MIM"]
    assert [(table.title, table.models) for table in reduced.tables] == [
        ("All", ["baseline", "MIM"])
    ]
    assert reduced.family is not None and reduced.family.models == ["MIM"]
    before = {job.record: job for job in study_jobs(study, runs, data, "cpu")}
    after = {job.record: job for job in study_jobs(reduced, few, data, "cpu")}
    trained = {record for record in after if record.endswith("train.json")}
    assert {record: before[record] for record in trained} == {r: after[r] for r in trained}
    scored = after.keys() - trained
    assert scored and not scored & before.keys()
    assert all("/reported/" in record for record in scored)
    tests = [job for job in after.values() if "imagesTs" in " ".join(job.command)]
    assert len(tests) == 2 * 2
    # Without the report no command sees a test subject.
    assert not [job for job in before.values() if "imagesTs" in " ".join(job.command)]
    (text,) = split_in_words(study, runs, data)
    assert text.startswith("Split: trained on 8 subjects (labels as each fold says); chosen on")
    assert "of 2 others: mm1-S0, mm1-S1; to be reported, not predicted here, on 1: mm1-S12" in text
    (text,) = split_in_words(reduced, few, data)
    assert "reported here on 1: mm1-S12" in text


def test_the_commit_of_a_choice(tmp_path):
    file = tmp_path / "chosen.json"
    file.write_text("{}")

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert commit_of(file) == ""
    git("init", "-q")
    assert commit_of(file) == ""
    git("add", "chosen.json")
    git("commit", "-qm", "Choose")
    assert commit_of(file) == git("rev-parse", "--short", "HEAD")
    file.write_text("[]")
    assert commit_of(file) == ""
