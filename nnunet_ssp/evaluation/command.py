"""`nnunet-ssp evaluate`: from folders of predictions to tables, a summary and a report.

Examples with one model, and with two models of three seeds each:

    nnunet-ssp evaluate 114 predictions
    nnunet-ssp evaluate 114 scratch=scratch_seed{0,1,2} MIM=mim_seed{0,1,2} -o evaluation

The shell expands the braces to `scratch=scratch_seed0 scratch=scratch_seed1 ...`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.cohort.cases import Case, read_cases, subject_of
from nnunet_ssp.console import nearest, path, whole
from nnunet_ssp.files.atomic import require_place, write_json, write_together
from nnunet_ssp.files.nnunet import read_dataset
from nnunet_ssp.nnunet import dataset_folder, datasets_there, nnunet_folder
from nnunet_ssp.parallel import number_of_workers

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_ssp.evaluation.labels import Labels
    from nnunet_ssp.evaluation.results import Evaluation
    from nnunet_ssp.evaluation.scoring import Scores

CASE_COLUMNS = (  # of cases.csv, beside `case` and `subject`
    *("source", "split", "frame", "phase", "base"),
    *("vendor", "centre", "scanner", "field", "pathology"),
)
IN_ML_OR_MM = ["hd95_mm", "assd_mm", "reference_ml", "predicted_ml"]
PAGE = "report.html"
OUTPUTS = ("metrics.csv", "slices.csv", "clinical.csv", "summary.json", PAGE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp evaluate`, the keywords of `evaluate`."""
    parser.add_argument("dataset", help="dataset id or name: 114 or Dataset114_MNMs")
    parser.add_argument(
        "predictions",
        nargs="+",
        metavar="FOLDER",
        help="what nnUNetv2_predict or nnunet-ssp predict wrote, or the validation folder of a fold. NAME=FOLDER names "
        "the model; folders of the same NAME are its seeds, or its folds",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="the model that the others are tested against (default: the first)",
    )
    parser.add_argument(
        "--references",
        type=path,
        metavar="FOLDER",
        help="reference label maps (default: the dataset's labelsTs, gt_segmentations, labelsTr)",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        metavar="FOLDER",
        help="where to write (default for a single folder: FOLDER_evaluation, beside it)",
    )
    for flag, structure in (
        ("--lv", "left ventricle's cavity"),
        ("--myo", "myocardium"),
        ("--rv", "right ventricle's cavity"),
    ):
        parser.add_argument(
            flag, metavar="CLASS", help=f"the class that is the {structure} (default: by its name)"
        )
    parser.add_argument(
        "--spacing-unknown",
        action="store_true",
        help="the files' spacing is nominal: no distances, no volumes",
    )
    parser.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help='without cases.csv: finds the subject in a case\'s name, e.g. "(.+)_frame"',
    )
    parser.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help=f"write tables and summary only; drawing {PAGE} takes longer than scoring",
    )
    parser.add_argument(
        "-np", dest="workers", metavar="N", type=whole, help="N processes (default: as many as pay)"
    )


def evaluate(
    dataset: str | int,
    predictions: Sequence[str],
    baseline: str | None = None,
    references: Path | None = None,
    output: Path | None = None,
    lv: str | None = None,
    myo: str | None = None,
    rv: str | None = None,
    spacing_unknown: bool = False,
    subject_pattern: str | None = None,
    report: bool = True,
    workers: int | None = None,
) -> Path:
    """Score one or more models on the same cases, print a table, and write `OUTPUTS`.

    Args:
        dataset: Id or name of a dataset in `nnUNet_raw` or `nnUNet_preprocessed`.
        predictions: `FOLDER` or `NAME=FOLDER`. Folders of one name with the same cases are seeds of a model; those with
            different cases are folds of a seed.
        baseline: Model that the others are compared with; by default the first.
        references: Folder of reference label maps instead of the dataset's.
        output: Folder to write to; by default `FOLDER_evaluation` for a single folder.
        lv: Class of the left ventricle's cavity; by default found by its name, see `labels`.
        myo: Class of the myocardium.
        rv: Class of the right ventricle's cavity.
        spacing_unknown: The spacing in the files is nominal, so distances and volumes are left out.
        subject_pattern: Regular expression that finds the subject in a case's name, for datasets without `cases.csv`;
            by default each case is a subject.
        report: Whether to write `PAGE`; otherwise an earlier one is removed.
        workers: Number of processes; by default see `number_of_workers`.

    Returns:
        The output folder.

    Raises:
        FileNotFoundError: The dataset, a prediction or a reference is missing.
        ValueError: An argument breaks its rule, a file cannot be read, or the files of a case lie on different grids.
    """
    from nnunet_ssp.evaluation.console import summary_text
    from nnunet_ssp.evaluation.for_new_patients import prediction_lines
    from nnunet_ssp.evaluation.mistaken import refuse_mistaken

    _refuse_folder(str(dataset))
    folders = _name_models(predictions)
    baseline = baseline or next(iter(folders))
    if baseline not in folders:
        raise ValueError(
            f"`--baseline` (={baseline}) must be one of {', '.join(folders)}.{nearest(baseline, folders)}"
        )
    homes = _dataset_folders(dataset)
    home = next(f for f in homes if f is not None)
    ending = read_dataset(home / "dataset.json", ("file_ending",))["file_ending"]
    refuse_mistaken(home.name, homes, ending, folders, references, output)
    output = _output_folder(output, folders, references)
    structures = {"LV": lv, "MYO": myo, "RV": rv}
    evaluation = _measure(
        dataset,
        folders,
        baseline=baseline,
        references=references,
        structures=structures,
        spacing_unknown=spacing_unknown,
        subject_pattern=subject_pattern,
        workers=number_of_workers(workers),
    )
    print(summary_text(evaluation), flush=True)  # before the page, which takes as long as scoring
    if report:
        print("Drawing the report ...", file=sys.stderr, flush=True)
    _write(evaluation, output, report)
    print(f"\nReport: {output / PAGE}" if report else f"\nTables: {output}")
    if "LV" in evaluation.labels.structures:  # of which `predict` makes its volumes
        for line in prediction_lines(evaluation.dataset, folders, structures):
            print(line)
    return output


def _measure(
    dataset: str | int,
    folders: Mapping[str, Sequence[Path]],
    *,
    baseline: str,
    references: Path | None,
    structures: Mapping[str, str | None],
    spacing_unknown: bool,
    subject_pattern: str | None,
    workers: int,
) -> Evaluation:
    """Score the predictions in the folders of each model; arguments as in `evaluate`."""
    from nnunet_ssp.cohort.pseudonyms import key_file, read_key
    from nnunet_ssp.evaluation.cine import phase_notes, subject_names
    from nnunet_ssp.evaluation.files import (
        WITHOUT_SPACING,
        find_image_files,
        find_pairs,
        find_references,
    )
    from nnunet_ssp.evaluation.labels import read_labels
    from nnunet_ssp.evaluation.overlooked import overlooked
    from nnunet_ssp.evaluation.provenance import provenance_notes
    from nnunet_ssp.evaluation.results import Evaluation, said_once, worst_first
    from nnunet_ssp.evaluation.scoring import score_pairs
    from nnunet_ssp.evaluation.trained_models import model_notes
    from nnunet_ssp.evaluation.training_subjects import outdated_notes, training_notes
    from nnunet_ssp.evaluation.volumes import implausible

    raw, prepared = _dataset_folders(dataset)
    home = next(f for f in (raw, prepared) if f is not None)
    labels = read_labels(home / "dataset.json", structures)
    ending = read_dataset(home / "dataset.json", ("file_ending",))["file_ending"]
    found = find_references(raw, prepared, ending, references)
    known = read_cases(home / "cases.csv") if (home / "cases.csv").is_file() else {}
    key = {} if raw is None else read_key(key_file(raw))
    origin = provenance_notes(folders, home.name, labels)
    pairs, notes = find_pairs(folders, found, ending, subject_names(known, key))
    for model, own in folders.items():
        masks = {pair.case: pair.prediction for pair in pairs if pair.model == model}
        notes += phase_notes(model, own, masks, known)
    about = _about_cases({pair.case for pair in pairs}, known, subject_pattern, home)
    own_references = found if references is None else find_references(raw, prepared, ending)
    notes += model_notes(folders, home.name)
    if prepared is not None and references is None:
        notes += outdated_notes(pairs, prepared, ending)
    notes += training_notes(folders, pairs, own_references, known, subject_pattern)

    scores = score_pairs(pairs, labels, workers)
    frames, slices, unlabelled = _with_cases(scores, about, labels)
    nominal = "the spacing is nominal (--spacing-unknown)" if spacing_unknown else ""
    if ending in WITHOUT_SPACING:
        nominal = f"{ending} files hold no spacing"
        notes.append(f"{nominal}: there are no distances and no volumes.")
    clinical, refused = _clinical(frames, labels, nominal)
    if nominal:
        frames[IN_ML_OR_MM] = float("nan")
    notes += [*unlabelled, *_too_few(frames), *_too_good(frames)]
    notes += [*overlooked(frames, pairs, labels), *implausible(clinical)]
    return Evaluation(
        dataset=home.name,
        models=folders,
        baseline=baseline,
        labels=labels,
        pairs=pairs,
        images=find_image_files(raw, ending),
        frames=frames,
        slices=slices,
        clinical=clinical,
        refused=refused,
        notes=worst_first(said_once([*origin, *notes])),
    )


def _refuse_folder(dataset: str) -> None:
    """Refuse a folder of predictions in the place of the dataset."""
    if not re.match(r"\d+$|Dataset\d{3}_", dataset) and path(dataset.rpartition("=")[2]).is_dir():
        raise ValueError(
            f"{dataset}: a folder, and the dataset comes first: nnunet-ssp evaluate DATASET FOLDER. "
            f"{datasets_there(dataset)}"
        )


# -- what to evaluate ------------------------------------------------------------------------------


def _name_models(predictions: Sequence[str]) -> dict[str, list[Path]]:
    """Resolve the folders of each model, from `FOLDER` and `NAME=FOLDER`."""
    models: dict[str, list[Path]] = {}
    for word in predictions:
        name, equals, place = word.partition("=")
        if not equals or path(word).is_dir():  # a folder may have an = in its name
            name, place = _folder_name(path(word).resolve()), word
            if name in models:
                raise ValueError(
                    f"`predictions` (={word}) must have a name of its own, {name} is taken: give "
                    "it as NAME=FOLDER."
                )
        elif not name or not place:
            raise ValueError(f"`predictions` (={word}) must be FOLDER or NAME=FOLDER.")
        folder = path(place).resolve()
        if any(folder in folders for folders in models.values()):
            raise ValueError(f"`predictions` (={word}) must be a folder that is not given twice.")
        models.setdefault(name, []).append(folder)
    return models


def _folder_name(folder: Path) -> str:
    """Return a folder's name, or trainer and fold of nnU-Net's `TRAINER__PLANS__2d/fold_0/validation`."""
    from nnunet_ssp.evaluation.provenance import is_validation

    if is_validation(folder):
        return f"{folder.parents[1].name.split('__')[0]} {folder.parent.name}"
    return folder.name


def _output_folder(
    output: Path | None, folders: Mapping[str, Sequence[Path]], references: Path | None
) -> Path:
    inputs = [folder for model in folders.values() for folder in model]
    if output is None and len(inputs) > 1:
        raise ValueError("`-o` must name the folder to write to when there are several models.")
    given = output is not None
    output = output or inputs[0].with_name(f"{inputs[0].name}_evaluation")
    raw = os.environ.get("nnUNet_raw")
    if raw and output.resolve().is_relative_to(Path(raw).resolve()):
        raise ValueError(
            f"`-o` (={output}) must lie outside nnUNet_raw, whose folders hold data for training."
            if given
            else f"{inputs[0]} lies in nnUNet_raw, whose folders hold data for training: name another place to write "
            "to with `-o`."
        )
    # nnU-Net writes a summary.json of its own beside the predictions.
    for folder in [*inputs, *([references] if references else [])]:
        if output.resolve() == folder.resolve():
            raise ValueError(f"`-o` (={output}) must be another folder than the label maps'.")
    require_place(output)  # said before minutes of scoring
    return output


def _dataset_folders(dataset: str | int) -> tuple[Path | None, Path | None]:
    """Find the dataset's folders in nnUNet_raw and nnUNet_preprocessed; one of the two is enough."""
    found: list[Path | None] = [None, None]
    errors: list[Exception] = []
    for place, variable in enumerate(("nnUNet_raw", "nnUNet_preprocessed")):
        try:
            folder = dataset_folder(nnunet_folder(variable), dataset)
            if not (folder / "dataset.json").is_file():
                raise FileNotFoundError(f"{folder / 'dataset.json'} is missing.")
            found[place] = folder
        except (FileNotFoundError, RuntimeError) as error:
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]
    return found[0], found[1]


def _about_cases(
    cases: set[str], known: Mapping[str, Case], pattern: str | None, home: Path
) -> pd.DataFrame:
    """Make one row per case with `subject` and `CASE_COLUMNS`; without cases.csv the columns are empty."""
    import pandas as pd

    unknown = sorted(cases - known.keys())
    if known and unknown:
        raise ValueError(f"{home / 'cases.csv'} must have a row for {unknown[0]}.")
    # Of the dataset, not of these cases: names have their prefix in all tables or in none.
    several_sources = len({case.source for case in known.values()}) > 1
    rows = []
    for case in sorted(cases):
        row: dict[str, object] = dict.fromkeys(CASE_COLUMNS, "")
        row |= {"case": case, "subject": subject_of(case, known, pattern)}
        if case in known:
            row |= {name: getattr(known[case], name) for name in CASE_COLUMNS}
            if not several_sources:  # then the code alone tells subjects apart
                row["subject"] = known[case].subject
        rows.append(row)
    return pd.DataFrame(rows)


# -- what was measured -----------------------------------------------------------------------------


def _with_cases(
    scores: Scores, about: pd.DataFrame, labels: Labels
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Add the columns of cases.csv to the tables of scores, and drop classes that are not labelled.

    A class that no reference has at a phase was not labelled there. Scoring its absence would measure the labelling.

    Returns:
        The frames, the slices, and notes on what was dropped.
    """
    keys = ["model", "seed", "subject", "case"]
    frames, slices = (
        table.merge(about, on="case")[
            [*keys, *CASE_COLUMNS, *(c for c in table.columns if c not in keys)]
        ]
        for table in scores
    )
    groups = frames.groupby(["class", "phase"], sort=False)["reference_ml"].max()
    unlabelled = [group for group, volume in groups.items() if volume == 0]
    if len(unlabelled) == len(groups):
        raise ValueError("No reference holds any class of the dataset: there is nothing to score.")
    notes = []
    for name in dict.fromkeys(name for name, _ in unlabelled):
        phases = [phase for own, phase in unlabelled if own == name]
        where = "" if name not in groups[groups > 0] else f" at {' and '.join(phases)}"
        notes.append(
            f"{labels.shown(name)} is in no reference{where}, so it is left out{where and ' there'}."
        )
        own = frames[(frames["class"] == name) & frames["phase"].isin(phases)]
        left = groups[groups > 0].index
        others = [labels.shown(other) for other, phase in left if phase in phases]
        if where and others:
            notes[-1] += (
                f" The mean over classes is that of {', '.join(dict.fromkeys(others))} there."
            )
        if predicted := int((own["predicted_ml"] > 0).sum()):
            notes[-1] += f" It is in {predicted} of {len(own)} predictions."

    def labelled(table: pd.DataFrame) -> pd.DataFrame:
        group = zip(table["class"], table["phase"], strict=True)
        return table[[key not in unlabelled for key in group]].reset_index(drop=True)

    from_base = slices["base"].map({"first": 1.0, "last": -1.0})  # NaN where it is unknown
    slices["position"] = (from_base * (slices["position"] - 0.5) + 0.5).where(from_base.notna())
    return labelled(frames), labelled(slices), notes


def _too_few(frames: pd.DataFrame) -> list[str]:
    """Say what is left out where no number has enough subjects; others are told of where they are shown."""
    from nnunet_ssp.evaluation.statistics import SUBJECTS_TO_INFER

    n = frames["subject"].nunique()
    if n >= SUBJECTS_TO_INFER:
        return []
    return [
        f"95 % CI, 95 % limits of agreement, r and p values take {SUBJECTS_TO_INFER} subjects and are left out: "
        f"{'this is' if n == 1 else 'these are'} {n}."
    ]


def _too_good(frames: pd.DataFrame) -> list[str]:
    """Doubt predictions that are the references, voxel by voxel."""
    equal = frames.groupby("model", sort=False)["dice"].min() == 1
    return [
        f"WARNING: {model}: every prediction is its reference voxel by voxel (Dice 1): are these copies of the "
        "references?"
        for model in equal[equal].index
    ]


def _clinical(
    frames: pd.DataFrame, labels: Labels, nominal: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Compute the clinical metrics.

    Args:
        frames: Table from `_with_cases`.
        labels: Labels with the structures.
        nominal: Why the spacing is unknown; empty if it is known.

    Returns:
        The metrics, and the reasons why subjects have none; the key `all` stands for every subject.
    """
    from nnunet_ssp.evaluation.volumes import METRIC_COLUMNS, clinical_metrics

    reason = ""
    if nominal:
        reason = f"{nominal}, so there are no volumes in ml"
    elif not labels.structures:
        reason = "no class is named like LV, MYO or RV; --lv, --myo and --rv say which they are"
    elif labels.overlap:
        reason = labels.overlap
    elif labels.ignore is not None:
        reason = "the dataset has an ignore label, and what is ignored may be part of a volume"
    elif (frames["phase"] == "").all():
        reason = "there is no cases.csv that says which frames are ED and ES"
    if not reason:
        return clinical_metrics(frames, labels.structures)
    import pandas as pd

    return pd.DataFrame(columns=METRIC_COLUMNS), {"all": reason}


# -- output ----------------------------------------------------------------------------------------


def _write(evaluation: Evaluation, output: Path, report: bool) -> None:
    # All is computed before anything is written, because the files of a folder belong together.
    summary, page = evaluation.summary(), None
    if report:
        from nnunet_ssp.evaluation.report import evaluation_page

        page = evaluation_page(evaluation)
    tables = {
        "metrics.csv": evaluation.frames.drop(columns="base"),
        "slices.csv": evaluation.slices,
        "clinical.csv": evaluation.clinical,
    }
    with write_together(output) as temporary:
        for name, table in tables.items():
            table.to_csv(temporary / name, index=False, float_format="%.6g", lineterminator="\n")
        write_json(temporary / "summary.json", summary)
        if page is not None:
            page.write(temporary / PAGE)
    if page is None:
        (output / PAGE).unlink(missing_ok=True)  # it would show other results than the tables
