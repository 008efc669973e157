"""The last step of a study that chooses: models are named first, and only these are scored on the test subjects.

`--choose` writes `chosen.json` with the models, all that decides how they are trained and scored, and a digest.
`--report` refuses to predict a test subject unless that file fits the study as it is now. A further choice has a file
of its own, which records the choices before it and the models that had seen the test subjects by then.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort.membership import subjects_of, test_subjects
from nnunet_ssp.console import count_of, nearest, some
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.study.data import Data, digest
from nnunet_ssp.study.runs import Run, Runs, find_trainer, resolved, slug
from nnunet_ssp.study.spec import CHOOSING, REPORT, Figure, Study, Table

CHOSEN = "chosen.json"  # names the models to report; further choices have names of their own
EARLIER, SEEN = "earlier", "reported_before"  # what such a file records of the time before it


def choose(
    study: Study,
    size: str | None,
    runs: Runs,
    names: Sequence[str],
    done: Collection[str],
    file: Path,
    folder: Path,
) -> dict[str, Any]:
    """Write the models that may be scored on the test subjects.

    Args:
        study: The study.
        size: Name of its size; None if it has but one.
        runs: Its runs.
        names: Models to report.
        done: Models of which a training is finished, among which the choice was made.
        file: File to write.
        folder: The study's folder, with its earlier choices and reports.

    Returns:
        The choice as the file holds it. If it was made before, the file stays as it is.

    Raises:
        FileExistsError: The file holds another choice.
        ValueError: A name is no model, the baseline of one is not among them, the study does not choose, or later
            choices would not find the file.
    """
    _must_choose(study)
    _check_names(study, names, "--choose")
    if file.suffix != ".json":
        raise ValueError(f"`--chosen` (={file}) must end in .json, by which later choices find it.")
    content = _described(study, size, runs, names) | {
        "chosen_from": [name for name in study.models if name in {*done, *names}],
        "tried_before": study.tried_before,
    }
    if file.is_file():
        before: dict[str, Any] = read_json(file, dict)
        if _differing(content, before):
            raise FileExistsError(_how_to_choose_again(file, before))
        return before
    earlier = [
        {"file": name, "digest": other["digest"], "models": [*other["models"]]}
        for name, other in _other_choices(file, folder)
    ]
    content |= {EARLIER: earlier, SEEN: _reported_models(study, folder)}
    content["digest"] = digest(content)
    write_json(file, content)
    return content


def _other_choices(file: Path, folder: Path, own: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return the choices beside a file and in the study's folder with their files' names, but for that of a digest."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place in dict.fromkeys((folder.resolve(), file.parent.resolve())):
        for other in sorted(place.glob("*.json")):
            try:
                content = read_json(other, dict)
            except (ValueError, OSError):
                if other.name.startswith(Path(CHOSEN).stem):
                    raise
                continue
            if _is_choice(content) and content["digest"] != own:
                found.setdefault(content["digest"], (other.name, content))
    return [*found.values()]


def _is_choice(content: dict[str, Any]) -> bool:
    known = isinstance(content.get("models"), dict) and isinstance(content.get("digest"), str)
    return known and "chosen_from" in content


def _how_to_choose_again(file: Path, before: dict[str, Any]) -> str:
    """Return a message on a file that cannot be written, with a name that is free."""
    numbers = itertools.count(2)
    stem = Path(CHOSEN).stem
    free = next(name for n in numbers if not (file.parent / (name := f"{stem}-{n}.json")).exists())
    held = "another choice" if _is_choice(before) else "no choice"
    return (
        f"{file} holds {held}. Name another file for this one: --chosen {free}. It records what was chosen and "
        "reported before, and its report says so."
    )


def _reported_models(study: Study, folder: Path) -> list[str]:
    """Return the models with predictions of test subjects in the study's folder, also of settings it had before."""
    places = sorted(folder.glob("runs/*/*/*/reported"))
    found = {place.relative_to(folder).parts[1] for place in places if any(place.iterdir())}
    known = {slug(name): name for name in study.models}
    return [*(known[key] for key in known if key in found), *sorted(found - known.keys())]


def read_chosen(study: Study, size: str | None, runs: Runs, file: Path) -> dict[str, Any]:
    """Read the chosen models, and check that the study still is what they were chosen in.

    Raises:
        FileNotFoundError: Nothing was chosen.
        ValueError: The file was changed, or the study since.
    """
    _must_choose(study)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: only models chosen before are scored on test subjects. Name them with --choose."
        )
    content: dict[str, Any] = read_json(file, dict)
    known = {name: value for name, value in content.items() if name != "digest"}
    if content.get("digest") != digest(known):
        raise ValueError(f"{file} must be as --choose wrote it: its digest does not fit.")
    names = [*content["models"]]
    _check_names(study, names, str(file))
    now = _described(study, size, runs, names)
    if changed := _differing(now, known):
        raise ValueError(
            f"{file} must be of this study as it is now; since the choice changed: {some(changed)}."
        )
    return content


def only_chosen(study: Study, runs: Runs, names: Collection[str]) -> tuple[Study, Runs]:
    """Return the study of the chosen models alone, scored on the test subjects, and its runs."""
    models = {name: study.models[name] for name in study.models if name in names}
    used = {before.name for run in runs[1] if run.name in models for before in run.origin}

    def parts(shown: Sequence[Any]) -> list[Any]:
        kept = [
            (part, [name for name in study.entries(part)["models"] if name in models])
            for part in shown
        ]
        return [part.model_copy(update={"models": own}) for part, own in kept if own]

    tables: list[Table] = parts(study.tables)
    figures: list[Figure] = parts(study.figures)
    family = study.family
    if family is not None:
        own = [name for name in models if any(study.in_family(name, fold) for fold in study.folds)]
        family = family.model_copy(update={"models": own})
    reduced = study.model_copy(
        update={
            "evaluate": REPORT,
            "models": models,
            "pretraining": {n: p for n, p in study.pretraining.items() if n in used},
            "tables": tables,
            "figures": figures,
            "family": family,
        }
    )
    pretrainings, trainings = runs
    return reduced, (
        [run for run in pretrainings if run.name in used],
        [run for run in trainings if run.name in models],
    )


def split_in_words(study: Study, runs: Runs, data: Data) -> list[str]:
    """Describe who is trained on, chosen on and reported on."""
    cases = data.dataset.cases
    folds = [data.fold(run.fold)[1] for run in (*runs[0], *runs[1]) if not run.dataset]
    trained = subjects_of({name for fold in folds for name in fold.train}, cases)
    chosen_on = subjects_of({name for fold in folds for name in fold.val}, cases)
    reported = test_subjects(cases)
    seen = study.evaluate == REPORT
    return [
        f"Split: trained on {count_of(len(trained), 'subject')} (labels as each fold says); chosen on the masks of "
        f"{count_of(len(chosen_on), 'other')}: {some(sorted(chosen_on), 20)}; "
        f"{'reported here' if seen else 'to be reported, not predicted here,'} on {len(reported)}: "
        f"{some(sorted(reported), 20)}. "
        f"The choice used the masks of {count_of(len(chosen_on), 'subject')} besides the labels of the training."
    ]


def choice_in_words(content: dict[str, Any], file: Path, folder: Path) -> str:
    """Describe what was chosen, from how many, when it was fixed, and what was known of the test subjects by then.

    Args:
        content: The choice.
        file: File that holds it.
        folder: The study's folder, in which other choices may lie.
    """
    names, n = [*content["models"]], len(content["chosen_from"])
    before = content["tried_before"]
    more = f", and {before} more tried before" if before else ""
    commit = commit_of(file)
    fixed = f"commit {commit}" if commit else "not committed"
    chosen = f"Reported: {some(names, 20)}, chosen from {n} of this study{more}."
    return f"{chosen} Named in {file.name} ({fixed}, digest {content['digest']}) {_when(content, file, folder)}."


def _when(content: dict[str, Any], file: Path, folder: Path) -> str:
    """Say what came before a choice: by its record or, where an earlier version wrote none, by what lies beside it."""
    never = "before any test subject was predicted"
    if EARLIER in content:
        earlier = _listed((known["file"], known) for known in content[EARLIER])
        if seen := content[SEEN]:
            by = f"after the test subjects had been seen by: {some(seen, 20)}"
            return f"{by} ({earlier or 'no earlier choice lies in the folder'})"
        return (
            f"{never} in this folder, but after an earlier choice ({earlier})" if earlier else never
        )
    others = [
        (name, other)
        for name, other in _other_choices(file, folder, own=content["digest"])
        if content["digest"] not in {known["digest"] for known in other.get(EARLIER, ())}
    ]
    if not others:  # earlier versions wrote a first choice, of this name alone
        unknown = "without a record of what had been reported by then"
        return never if file.name == CHOSEN else unknown
    if file.name == CHOSEN:
        return f"beside another choice ({_listed(others)}); no file tells which was first"
    unknown = "whether test subjects had been seen by then is not recorded"
    return f"after an earlier choice ({_listed(others)}); {unknown}"


def _listed(choices: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """List choices, such as `chosen.json, digest 0123456789abcdef`."""
    return "; ".join(f"{name}, digest {choice['digest']}" for name, choice in choices)


def commit_of(file: Path) -> str:
    """Return the commit of a file as it is; empty if it is in no repository, or not committed."""
    git = ["git", "-C", str(file.parent)]
    try:
        clean = subprocess.run(
            [*git, "status", "--porcelain", "--ignored", "--", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
        log = subprocess.run(
            [*git, "log", "-1", "--format=%h", "--", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "" if clean.stdout.strip() else log.stdout.strip()


def _must_choose(study: Study) -> None:
    if study.evaluate != CHOOSING:
        raise ValueError(
            f"--choose and --report must be of a study with evaluate: {CHOOSING} (={study.evaluate})."
        )


def _check_names(study: Study, names: Sequence[str], place: str) -> None:
    for name in names:
        if name not in study.models:
            raise ValueError(
                f"{place} (={name}) must be one of models: {', '.join(study.models)}.{nearest(name, study.models)}"
            )
        baseline = study.baseline_of(name)
        if baseline is not None and baseline not in names:
            raise ValueError(f"{place} must name {baseline}, the baseline of {name}, too.")


def _described(study: Study, size: str | None, runs: Runs, names: Sequence[str]) -> dict[str, Any]:
    """Return all that decides how models are trained and scored, as JSON holds it."""
    shared = study.model_dump(include={"title", "plans", "predict", "evaluation", "tests", "seeds"})
    family = None if study.family is None else study.family.model_dump()
    return {
        **shared,
        "size": size,
        "family": family,
        "models": {name: _model(runs[1], name) for name in study.models if name in names},
    }


def _model(trainings: Sequence[Run], name: str) -> dict[str, Any]:
    own = [run for run in trainings if run.name == name]
    weights = own[0].weights
    folds = {
        run.label: {
            "seeds": [other.seed for other in own if other.label == run.label],
            "settings": resolved(run),
        }
        for run in own
    }
    before = None
    if weights is not None:
        snapshot = {} if own[0].snapshot is None else {"snapshot": own[0].snapshot}
        before = {**snapshot, **_weights(weights)}
    plans = {"plans": own[0].plans} if own[0].plans else {}
    return {"trainer": own[0].trainer, **plans, "folds": folds, "pretraining": before}


def _weights(run: Run) -> dict[str, Any]:
    """Describe what weights come from; more entries only if it is not one pretraining on the study's dataset."""
    if run.file:
        return {"file": run.file, "digest": run.digest}
    about: dict[str, Any] = {"trainer": run.trainer, "fold": run.fold, "seed": run.seed}
    if run.dataset:
        about["dataset"] = run.dataset
    if run.plans:
        about["plans"] = run.plans
    if run.weights is not None:
        about["pretraining"] = _weights(run.weights)
    return {**about, "settings": resolved(run)}


def _differing(
    now: dict[str, Any], before: dict[str, Any], place: str = "", trainer: str = ""
) -> list[str]:
    """Name the places at which two descriptions differ; settings that came later count as their defaults."""
    found = []
    trainer = now.get("trainer", trainer)
    for name in now:
        where = f"{place}{name}"
        one, other = now[name], before.get(name)
        if name == "settings" and trainer and isinstance(other, dict):
            usual = asdict(find_trainer(trainer).defaults)
            other = {n: value for n, value in usual.items() if n in one} | other
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            found += _differing(one, other, f"{where}.", trainer)
        elif one != other:
            found.append(where)
    return found
