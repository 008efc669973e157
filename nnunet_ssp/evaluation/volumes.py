"""Clinical metrics of the ventricles from voxel volumes, and the agreement of two methods on them.

Volumes are taken at the end-diastolic (ED) and end-systolic (ES) frames of the reference: EDV and
ESV; stroke volume SV = EDV - ESV; ejection fraction EF = SV / EDV; the mass is that of the left
ventricular myocardium at ED.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from nnunet_ssp.evaluation.statistics import SUBJECTS_TO_INFER
from nnunet_ssp.reporting.wording import one_warning

if TYPE_CHECKING:
    import pandas as pd

MYOCARDIUM_G_PER_ML = 1.05
# Beyond these a number is no heart's: means of subjects, and errors that are also larger than the heart, in ml or g.
LARGEST, FAR_OFF = 1000, 100
NO_RESULT = (
    "Such numbers come from a wrong spacing in the files, or from a model that has learned nothing, as a pretraining "
    "without its fine-tuning; they are no result."
)

UNITS = {
    "LV EDV": "ml",
    "LV ESV": "ml",
    "LV SV": "ml",
    "LV EF": "%",
    "LV mass": "g",
    "RV EDV": "ml",
    "RV ESV": "ml",
    "RV EF": "%",
}
METRIC_COLUMNS = (
    *("model", "seed", "subject", "figure", "unit"),
    *("reference", "predicted", "error", "percent_error"),
)


Ml = TypeVar("Ml", float, "pd.Series[float]")


def stroke_volume(edv: Ml, esv: Ml) -> Ml:
    """Return the stroke volume in ml."""
    return edv - esv


def ejection_fraction(edv: Ml, esv: Ml) -> Ml:
    """Return the ejection fraction in %; NaN where the end-diastolic volume is 0."""
    if isinstance(edv, float):
        return 100 * stroke_volume(edv, esv) / edv if edv > 0 else float("nan")
    return 100 * stroke_volume(edv, esv) / edv.where(edv > 0)


def myocardial_mass(ml: Ml) -> Ml:
    """Return the mass in g of a volume of myocardium."""
    return MYOCARDIUM_G_PER_ML * ml


def clinical_metrics(
    frames: pd.DataFrame, structures: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Compute the clinical metrics of each subject, by prediction and by reference.

    A structure that the reference lacks at a frame is not labelled there. Metrics that need it are NaN, and left out if
    they are NaN for all subjects. A structure that only the prediction lacks has 0 ml.

    Args:
        frames: Columns `model, seed, subject, case, phase, class, reference_ml, predicted_ml`.
        structures: Class of LV, MYO and RV, as far as there are such.

    Returns:
        A table with one row per `model, seed, subject, figure` and the columns `unit, reference, predicted, error,
        percent_error`; and the refused subjects with the reason. The column `figure` holds the metric's name.
    """
    import pandas as pd

    frames = frames[frames["class"].isin(structures.values())]
    refused = _refused(frames)
    frames = frames[frames["phase"].isin(("ED", "ES")) & ~frames["subject"].isin(refused)]
    volumes = frames.pivot(
        index=["model", "seed", "subject"],
        columns=["class", "phase"],
        values=["reference_ml", "predicted_ml"],
    )
    # `pivot` sorts; the models and subjects keep their order.
    volumes = volumes.reindex(pd.MultiIndex.from_frame(frames[volumes.index.names]).unique())

    def metrics(kind: str) -> pd.Series[float]:
        def volume(structure: str, phase: str) -> pd.Series[float]:
            name = structures.get(structure), phase
            if ("reference_ml", *name) not in volumes:
                return pd.Series(float("nan"), volumes.index)
            return volumes[(f"{kind}_ml", *name)].where(volumes[("reference_ml", *name)] > 0)

        lv_edv, lv_esv = volume("LV", "ED"), volume("LV", "ES")
        rv_edv, rv_esv = volume("RV", "ED"), volume("RV", "ES")
        table = pd.DataFrame(
            {
                "LV EDV": lv_edv,
                "LV ESV": lv_esv,
                "LV SV": stroke_volume(lv_edv, lv_esv),
                "LV EF": ejection_fraction(lv_edv, lv_esv),
                "LV mass": myocardial_mass(volume("MYO", "ED")),
                "RV EDV": rv_edv,
                "RV ESV": rv_esv,
                "RV EF": ejection_fraction(rv_edv, rv_esv),
            }
        )
        long = table.melt(ignore_index=False, var_name="figure", value_name=kind)
        return long.set_index("figure", append=True)[kind]

    table = pd.concat([metrics("reference"), metrics("predicted")], axis=1).reset_index()
    table.insert(4, "unit", table["figure"].map(UNITS))
    table["error"] = table["predicted"] - table["reference"]
    table["percent_error"] = (
        100 * table["error"] / table["reference"].where(table["reference"] != 0)
    )
    labelled = table.groupby("figure")["reference"].transform("count") > 0
    return table[labelled].reset_index(drop=True), refused


def _refused(frames: pd.DataFrame) -> dict[str, str]:
    """Find the subjects without exactly one ED and one ES frame, with the reason."""
    reasons = {}
    for subject, own in frames.groupby("subject", sort=False):
        counts = own.drop_duplicates("case")["phase"].value_counts()
        wrong = []
        for phase in ("ED", "ES"):
            if phase not in counts:
                wrong.append(f"no {phase} frame")
            elif counts[phase] > 1:
                wrong.append(f"{counts[phase]} {phase} frames")
        if wrong:
            reasons[str(subject)] = " and ".join(wrong)
    return reasons


def implausible(clinical: pd.DataFrame) -> list[str]:
    """Warn of volumes and masses that no heart has, and of errors larger than the heart.

    Args:
        clinical: Table from `clinical_metrics`.
    """
    found = []
    for row in agreement(clinical).to_dict("records"):
        if row["unit"] not in ("ml", "g"):
            continue
        figure, unit, bias = row["figure"], row["unit"], row["bias"]
        if max(row["reference"], row["predicted"]) > LARGEST or (
            abs(bias) > FAR_OFF and abs(bias) > row["reference"]
        ):
            found.append(
                f"{row['model']}: {figure} is {row['predicted']:.0f} {unit} on average, {row['reference']:.0f} {unit} "
                "in the references."
            )
    if len(found) == 1:
        found = [f"{found[0]} {NO_RESULT}"]
    return one_warning(
        f"volumes or masses that no heart has, or far from those of the references. {NO_RESULT}",
        found,
    )


def agreement(clinical: pd.DataFrame) -> pd.DataFrame:
    """Compute how the predicted metrics agree with the reference, over subjects.

    Each number is computed over the subjects of a seed, then averaged over seeds, so that the limits are those of one
    trained model.

    Args:
        clinical: Table from `clinical_metrics`.

    Returns:
        One row per `model, figure`: `unit`; `n_subjects`; the means of `reference` and `predicted`; the mean error
        `bias`, the sample standard deviation `sd` of the errors, and the 95 % limits of agreement `lower` and `upper`,
        bias ± 1.96 sd (Bland and Altman 1986); the mean absolute error `mae`; the mean `percent_error`; and Pearson's
        `correlation`. Limits and correlation are NaN where a seed has fewer than 6 subjects.
    """
    import pandas as pd

    def one_seed(own: pd.DataFrame) -> dict[str, float]:
        own = own.dropna(subset="error")
        bias, sd = own["error"].mean(), own["error"].std()
        constant = min(own["reference"].nunique(), own["predicted"].nunique()) < 2
        return {
            "n_subjects": len(own),
            "reference": own["reference"].mean(),
            "predicted": own["predicted"].mean(),
            "bias": bias,
            "sd": sd,
            "lower": bias - 1.96 * sd,
            "upper": bias + 1.96 * sd,
            "mae": own["error"].abs().mean(),
            "percent_error": own["percent_error"].mean(),
            "correlation": float("nan") if constant else own["reference"].corr(own["predicted"]),
        }

    rows = []
    for (model, metric), own in clinical.groupby(["model", "figure"], sort=False):
        seeds = pd.DataFrame([one_seed(seed) for _, seed in own.groupby("seed")])
        key = {"model": model, "figure": metric, "unit": UNITS[str(metric)]}
        n_subjects = int(seeds["n_subjects"].min())
        row = key | seeds.mean().to_dict() | {"n_subjects": n_subjects}
        if n_subjects < SUBJECTS_TO_INFER:
            row |= dict.fromkeys(("lower", "upper", "correlation"), float("nan"))
        rows.append(row)
    return pd.DataFrame(rows)
