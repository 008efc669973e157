from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnunet_ssp.conversion.subjects import Look, Outcome, Task, make_cases
from nnunet_ssp.conversion.summary import (
    Remarks,
    as_log,
    dry_summary_lines,
    lost_labels,
    refusals,
    same_images,
    same_patients,
    summary_lines,
)


def outcome(subject: str, split: str = "train", **changes: object) -> Outcome:
    """Return a subject of four frames, of which two are labelled."""
    task = Task(subject, split, ())
    cases = make_cases(task, {0: "ED", 2: "ES"}, 4, source="toy", base="first", vendor="GE")
    return replace(Outcome(subject, split, cases=cases), **changes)


REFUSED = [Outcome("S10", "", refused="no image."), Outcome("S9", "", refused="no mask.")]


def numbers(lines: list[str]) -> dict[str, list[int]]:
    """Return the numbers of each row of the table, by its first word or words."""
    rows = {}
    for line in lines[2:]:
        if not line or line.startswith("\n"):
            break
        rows[line[:12].strip()] = [int(text) for text in line[12:].split()]
    return rows


def test_frames_are_counted_by_split_and_source():
    outcomes = [
        outcome("a-1", corrections=["set right"]),
        outcome("a-2"),
        outcome("b-1", "test"),
        *REFUSED,
    ]
    lines = summary_lines(outcomes, 2, [], ["a", "b"])
    # subjects, frames, labelled, unlabelled, corrected, refused
    assert numbers(lines) == {
        "train": [2, 8, 4, 4, 1, 0],
        "test": [1, 2, 2, 0, 0, 0],
        "unread": [0, 0, 0, 0, 0, 2],
        "all": [3, 10, 6, 4, 1, 2],
        "a train": [2, 8, 4, 4, 1, 0],
        "b test": [1, 2, 2, 0, 0, 0],
    }
    text = "\n".join(lines)
    assert "Cross-validation by subject: 2 folds" in text
    assert "Corrected:\n  a-1: set right" in text
    assert "REFUSED, not converted:\n  S9: no mask.\n  S10: no image." in text


def test_without_folds_or_refusals_that_is_said_or_left_out():
    text = "\n".join(summary_lines([outcome("A")], 0, ["so it is"], ()))
    assert "Cross-validation by subject: no folds, only `all`\n\nso it is" in text
    assert "REFUSED" not in text and "unread" not in text


def test_equal_texts_of_subjects_share_a_line():
    notes = {"notes": ["left out 1 series"]}
    lines = summary_lines([outcome("A", **notes), outcome("B", **notes)], 0, [], ())
    assert "  A, B: left out 1 series" in lines


def test_refusals_are_in_natural_order_and_cut_short():
    many = [Outcome(f"S{n}", "", refused=f"reason {n}.") for n in reversed(range(1, 23))]
    lines = refusals(many)
    assert lines[:2] == ["  S1: reason 1.", "  S2: reason 2."]
    assert lines[-1] == "  ... and 2 more, see convert.json"
    assert len(lines) == 21
    assert len(refusals(many, limit=None)) == 22


def test_a_dry_run_tells_what_headers_tell(tmp_path: Path):
    looks = [
        Look("A", "train", has_masks=True, n_frames=25),
        Look("B", "train", n_frames=30, notes=["turned"]),
        Look("T", "test", has_masks=True, n_frames=20, every_frame=False),
        Look("X", "train", refused="no image."),
    ]
    lines = dry_summary_lines(looks, tmp_path, ["so it is"], ())
    # subjects, with masks, without, frames, refused
    assert numbers(lines) == {
        "train": [2, 1, 1, 55, 1],
        "test": [1, 1, 0, 20, 0],
        "all": [3, 2, 1, 75, 1],
    }
    text = "\n".join(lines)
    assert "\ntrain: A, B\n" in text and "\ntest: T\n" in text
    assert "\nwithout masks: B\n" in text
    assert "Only the labelled frames of test subjects" in text
    assert "Only the labelled" not in "\n".join(dry_summary_lines(looks[:2], tmp_path, [], ()))
    assert "Would be REFUSED:\n  X: no image." in text
    assert f"nothing was written. The dataset would be {tmp_path}" in text
    assert "That folder holds a finished dataset" not in text
    (tmp_path / "dataset.json").touch()
    assert "That folder holds a finished dataset" in dry_summary_lines(looks, tmp_path, [], ())[-1]


def test_a_dry_run_without_a_usable_subject(tmp_path: Path):
    looks = [Look("S9", "test", refused="no mask.")]
    assert "no subject could be converted" in dry_summary_lines(looks, tmp_path, [], ())[-1]


def test_subjects_of_one_patient_are_a_warning():
    looks = [Look("A", "train", patient="1"), Look("B", "train", patient="2")]
    assert same_patients([*looks, Look("C", "train")]) == []
    (warning,) = same_patients([*looks, Look("C", "test", patient="1")])
    assert warning.startswith("WARNING: A, C have the same PatientID")


def test_subjects_with_the_same_images_are_a_warning():
    outcomes = [Outcome("A", "train", sums=["1", "1", "2"]), Outcome("B", "train", sums=["3", ""])]
    assert same_images([*outcomes, Outcome("C", "test", sums=["4", ""])], 120) == []
    (warning,) = same_images([*outcomes, Outcome("C", "test", sums=["2"])], 120)
    assert warning.startswith("WARNING: A and C have 1 image with the same voxels")
    assert "C is a test subject: a leak." in warning
    assert warning.endswith(" nnunet-ssp folds 120 --check")


def test_remarks_on_splits_do_not_count_the_refused():
    remarks = Remarks(["general"], lambda splits: [f"{splits}"])
    outcomes = [outcome("A"), outcome("T", "test"), *REFUSED]
    assert remarks.about(outcomes) == ["general", "{'A': 'train', 'T': 'test'}"]
    assert Remarks().about(outcomes) == []


def test_the_log_holds_what_was_said():
    outcomes = [outcome("A", notes=["a note"]), outcome("B", warnings=["lost"]), REFUSED[0]]
    assert as_log(outcomes) == {
        "refused": {"S10": "no image."},
        "corrections": {},
        "warnings": {"B": ["lost"]},
        "notes": {"A": ["a note"]},
    }


def test_refusals_of_one_kind_share_a_line_with_the_first_file():
    texts = {n: f"/d/s{n}_gt.nii.gz: mask values (=85) must be among [0, 1]." for n in (1, 2, 3)}
    texts |= {4: "/d/s4.nii.gz: is damaged.", 5: "/d: no file in it.", 6: "/d: no file in it."}
    assert refusals([Outcome(f"s{n}", "", refused=text) for n, text in texts.items()]) == [
        "  s1, s2, s3: mask values (=85) must be among [0, 1]. The first: /d/s1_gt.nii.gz",
        "  s4: /d/s4.nii.gz: is damaged.",
        "  s5, s6: /d: no file in it.",
    ]


def test_a_reason_without_a_file_stays_as_it_is():
    texts = ("is damaged.", "/d/s2.nii.gz: is damaged.", "/d/s3.nii.gz: is damaged.")
    assert refusals([Outcome(f"s{n}", "", refused=text) for n, text in enumerate(texts, 1)]) == [
        "  s1: is damaged.",
        "  s2, s3: is damaged. The first: /d/s2.nii.gz",
    ]


def test_lost_labels_are_told_from_empty_masks():
    refused = Outcome("R", "train", has_masks=True, refused="wrong values.")
    bare = Outcome("B", "train")
    (said,) = lost_labels([refused, bare])
    assert said.startswith("Nothing is labelled: 1 subject with masks is refused, for the reasons")
    assert lost_labels([bare]) == lost_labels([refused, outcome("A")]) == []
    looks = [Look("R", "train", has_masks=True, refused="wrong values."), Look("B", "train")]
    assert lost_labels(looks) == [said]
    empty = Look("E", "train", has_masks=True, n_labelled=0)
    assert lost_labels([looks[0], empty]) == [said]
    assert lost_labels([looks[0], replace(empty, n_labelled=2)]) == []


def test_a_dry_run_that_reads_masks_counts_labelled_frames(tmp_path: Path):
    looks = [
        Look("A", "train", has_masks=True, n_frames=25, n_labelled=2),
        Look("B", "train", has_masks=True, n_frames=25, n_labelled=1),
        Look("E", "train", has_masks=True, n_frames=25, n_labelled=0),
        Look("N", "train", n_frames=25),
        Look("R", "train", has_masks=True, refused="wrong values."),
    ]
    text = "\n".join(dry_summary_lines(looks, tmp_path, [], (), ["how"]))
    assert "\nLabelled frames: 3, of 2 subjects. Masks were read, of images only headers:" in text
    assert "how" not in text and "Only headers were read" not in text
    (tmp_path / "dataset.json").touch()
    lines = dry_summary_lines(looks[2:4], tmp_path, [], (), ["how"])
    assert "\nhow" in lines
    assert lines[-1].endswith(
        "or --overwrite: this deletes the converted dataset, never your files."
    )


def test_warnings_and_a_dry_run_name_all_subjects_in_order():
    """Their names are given to options such as --label-values-for."""
    names = [f"p{number}" for number in range(1, 31)]
    looks = [Look(name, "train", warnings=["so"]) for name in sorted(names)]
    lines = dry_summary_lines(looks, Path("Dataset120_Cine"), [], [])
    assert f"  {', '.join(names)}: so" in lines
    assert f"\ntrain: {', '.join(names)}" in lines
