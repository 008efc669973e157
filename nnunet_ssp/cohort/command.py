"""`nnunet-ssp folds`: list a dataset's folds, append new ones, compare them with the published, look for leaks.

nnU-Net knows a fold by its number alone. So folds are only appended, and a fold with results is not changed unasked.
 `cohort.folds` makes the folds, `cohort.leaks` looks for leaks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_ssp.cohort import few as few_patients
from nnunet_ssp.cohort import folds as splits
from nnunet_ssp.cohort import published, split_files
from nnunet_ssp.cohort.consistency import (
    HOLDS_NOBODY_OUT,
    differing_tables,
    require_known_names,
    unknown_names,
)
from nnunet_ssp.cohort.dataset import Dataset, check_plain, open_dataset
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.membership import is_trainable, subjects_of
from nnunet_ssp.cohort.recommending import pretraining_line
from nnunet_ssp.cohort.removal import without
from nnunet_ssp.cohort.splits import (
    copy_tables,
    read_copy,
    read_splits,
    trained_folds,
    write_splits,
)
from nnunet_ssp.console import count_of, nearest
from nnunet_ssp.files.atomic import remove_half_written
from nnunet_ssp.files.lock import locked_dataset
from nnunet_ssp.launch import training_command
from nnunet_ssp.nnunet import dataset_id, nnunet_folder


def folds(
    dataset: str | int,
    *,
    paper: bool = False,
    few: bool = False,
    files: Sequence[Path] = (),
    amounts: Sequence[int | float] = (),
    unit: str | None = None,
    seeds: Sequence[int] | None = None,
    base: str | None = None,
    vendors: Sequence[str] = (),
    phase: str | None = None,
    verify: bool = False,
    check: bool = False,
    subject_pattern: str | None = None,
    different: Sequence[Sequence[str]] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    remove: Sequence[int] = (),
) -> int:
    """Append the folds asked for, if any, and print all; or remove, verify, or check them.

    Args:
        dataset: Id or name of the dataset.
        paper: Append the folds of de Mooij et al.
        few: Append the folds of the study `acdc-few`.
        files: Append a fold for each of these split files.
        amounts: Append label subsets, see `folds.subsets`.
        unit: What `amounts` count; `subjects` by default.
        seeds: Seeds of the subsets; 0, 1 and 2 by default.
        base: Number or name of the fold to draw from or to restrict; 0 by default.
        vendors: Restrict that fold to these vendors.
        phase: Restrict that fold to `ED` or `ES`.
        verify: Compare the subjects with the published lists, and write nothing.
        check: Look for leaks, also between subjects that look alike.
        subject_pattern: Finds the subject in a case's name when a dataset without `cases.csv` is checked.
        different: Pairs of subjects that `check` takes for different people, though they look alike.
        dry_run: Write nothing.
        overwrite: Replace folds of the same name, also when results were trained on them.
        remove: Remove these folds, the last ones.

    Returns:
        The exit status: 1 when `verify` or `check` found something.

    Raises:
        FileExistsError: Results were trained on a fold that would change.
        FileNotFoundError: No such dataset, or it has no `cases.csv`.
        RuntimeError: Another process works on this dataset.
        ValueError: Options that do not fit each other or the dataset, or a fold that names what is no case.
    """
    wanted = _Wanted(paper, few, files, amounts, unit, seeds, base, vendors, phase)
    wanted.check(remove, ["--verify"] * verify + ["--check"] * check)
    dry_run = dry_run or verify
    if check and not (wanted.any or verify) and (plain := _plain_home(dataset)):
        return int(check_plain(plain, subject_pattern, different))
    _refuse_of_check(subject_pattern, () if check else different)
    data = open_dataset(dataset)
    with ExitStack() as lock:
        if (wanted.any or remove) and not dry_run:
            lock.enter_context(locked_dataset(data.raw, data.prepared))
            data = open_dataset(dataset)  # another process may have changed it
            remove_half_written(data.raw)
            remove_half_written(data.prepared)
            notes = _repair(data, overwrite)
        else:
            notes = _try_to_repair(data, overwrite, dry_run)
        new, said = wanted.make(data)
        merged = without(splits.merge(data.folds, new, overwrite), remove, data.results)
        changed = _changed(data.folds, merged)
        notes += [*said, *_faults(data, merged, refuse=bool(new))]
        replaced = _write_tables(data, merged, overwrite, dry_run) if changed or remove else []
    after = replace(data, folds=merged)
    if new or not (verify or check):
        print("\n".join(_table_of_folds(after, changed)))
    notes += [_outcome(changed, dry_run, data, remove)] if new or remove else []
    print("".join(f"{line}\n" for line in notes), end="")
    if not (dry_run and changed):  # else its commands name folds that are not there
        _print_advice(after, wanted, replaced)
    return int(any([verify and _verify(after), check and _report_leaks(after, different)]))


@dataclass(frozen=True)
class _Wanted:
    """The new folds that a call asks for, if any; the fields are arguments of `folds`."""

    paper: bool
    few: bool
    files: Sequence[Path]
    amounts: Sequence[int | float]
    unit: str | None
    seeds: Sequence[int] | None
    base: str | None
    vendors: Sequence[str]
    phase: str | None

    @property
    def derives(self) -> bool:
        """Whether the folds are parts of an existing one."""
        return bool(self.amounts or self.vendors or self.phase)

    @property
    def any(self) -> bool:
        """Whether any fold is asked for."""
        return self.paper or self.few or bool(self.files) or self.derives

    @property
    def given(self) -> dict[str, str]:
        """The options that append, as they were typed, by what cannot come together."""
        parts = (
            f"{option} {' '.join(map(str, values))}"
            for option, values in (("--subsets", self.amounts), ("--vendors", self.vendors))
            if values
        )
        derived = " ".join([*parts, *([f"--phase {self.phase}"] if self.phase else [])])
        found = {
            "--paper": "--paper" * self.paper,
            "--few": "--few" * self.few,
            "--from": f"--from {' '.join(map(str, self.files))}" if self.files else "",
            "--subsets": derived,
        }
        return {kind: typed for kind, typed in found.items() if typed}

    def check(self, remove: Sequence[int], others: Sequence[str]) -> None:
        """Refuse options that do not fit each other.

        Args:
            remove: Folds to remove.
            others: Options that verify or check.
        """
        if remove and (self.any or others):
            raise ValueError(
                f"--remove {' '.join(map(str, remove))} must come without options that append, verify or check: "
                f"{', '.join([*self.given.values(), *others])}."
            )
        if len(self.given) > 1:
            raise ValueError(
                f"{' and '.join(self.given.values())}: choose one of --paper, --few, --from and (--subsets, --vendors, "
                "--phase) at a time."
            )
        if (self.unit or self.seeds) and not self.amounts:
            typed = [f"--unit {self.unit}"] if self.unit else []
            typed += [f"--seeds {' '.join(map(str, self.seeds))}"] if self.seeds else []
            raise ValueError(f"{' and '.join(typed)} must come with --subsets.")
        if self.base and not self.derives:
            raise ValueError(f"--of {self.base} must come with --subsets, --vendors or --phase.")

    def make(self, data: Dataset) -> tuple[list[Fold], list[str]]:
        """Return the folds, with remarks."""
        if self.paper or self.files:
            return _published(data, self.files)
        if self.few:
            return few_patients.few_folds(data.cases), []
        if not self.derives:
            return [], []
        base, seeds, phase = self.base or "0", self.seeds or (0, 1, 2), self.phase or ""
        return _derive(data, base, self.vendors, phase, self.amounts, self.unit, seeds), []


def _changed(before: Sequence[Fold], after: Sequence[Fold]) -> set[int]:
    """Return the numbers of folds that are new or other than before."""
    return {n for n, fold in enumerate(after) if n >= len(before) or fold != before[n]}


def _refuse_of_check(pattern: str | None, different: Sequence[Sequence[str]]) -> None:
    """Refuse options that only a check takes."""
    if pattern is not None:
        raise ValueError(
            f"--subject-pattern {pattern!r} must come with --check, for a dataset without cases.csv."
        )
    if different:
        raise ValueError(f"--different {' '.join(different[0])} must come with --check.")


def _print_advice(data: Dataset, wanted: _Wanted, replaced: Sequence[int]) -> None:
    """Say which fold to pretrain on, and which folds have results of another division."""
    if wanted.few:
        number, fold = _find(data, few_patients.FEW)
        command = pretraining_line(data, number, at_most=max(few_patients.SIZES))
        print(
            f"Pretrain on fold {number} ({fold.name}), fine-tune on any of its subsets:\n{command}"
        )
    if wanted.paper or wanted.vendors:
        number, fold = _find(data, "paper" if wanted.paper else wanted.base or "0")
        print(
            f"Pretrain on fold {number} ({fold.name}): on a fold of some vendors, pretraining sees the validation "
            "subjects of the others. Fine-tune on any.\n"
            + pretraining_line(data, number, paper=wanted.paper)
        )
    if replaced:
        listed = ", ".join(map(str, replaced))
        print(f"WARNING: {data.results} holds results of fold {listed} as it was before.")


# -- the dataset -----------------------------------------------------------------------------------


def _plain_home(dataset: str | int) -> Path | None:
    """Return the folder of a dataset that no converter of ours has made; None for any other."""
    for home in nnunet_folder("nnUNet_raw").glob(f"Dataset{dataset_id(dataset):03d}_*"):
        if not any((home / name).is_file() for name in ("cases.csv", "convert.json")):
            return home
    return None


def _try_to_repair(data: Dataset, overwrite: bool, dry_run: bool) -> list[str]:
    """Repair the copies for a call that needs them for nothing else; say what keeps it from doing so."""
    differing = differing_tables(data.raw, data.prepared) if data.prepared.is_dir() else []
    if not differing:
        return []
    said = f"{' and '.join(differing)} in {data.prepared} and {data.raw} differ"
    if dry_run:
        return [f"WARNING: {said}; nothing was written."]
    try:
        with locked_dataset(data.raw, data.prepared):
            return _repair(data, overwrite)
    except (OSError, RuntimeError) as error:
        return [f"WARNING: {said}: {error}"]


def _repair(data: Dataset, overwrite: bool) -> list[str]:
    """Bring the copies beside the prepared data up to date, which a killed run may have left as they were.

    Returns:
        What was done, in words.

    Raises:
        FileExistsError: Results were trained on a fold that would change.
    """
    differing = differing_tables(data.raw, data.prepared) if data.prepared.is_dir() else []
    if not differing:
        return []
    trained = copy_tables(data.raw, data.prepared, data.results, overwrite)
    said = [f"Repaired: {' and '.join(differing)} in {data.prepared}, as in {data.raw}."]
    if trained:
        listed = ", ".join(map(str, trained))
        said.append(f"WARNING: {data.results} holds results of fold {listed} as it was before.")
    return said


def _published(data: Dataset, files: Sequence[Path]) -> tuple[list[Fold], list[str]]:
    """Return the folds of split files or, without any, of de Mooij et al., with remarks."""
    _require_labels(data)
    if not files:
        return published.paper_folds(data.cases)
    new, notes = [], []
    for file in files:
        fold, said = split_files.fold_from_file(file, data.cases)
        new.append(fold)
        notes += said
    return new, notes


def _require_labels(data: Dataset) -> None:
    if not any(map(is_trainable, data.cases.values())):
        raise ValueError(
            f"{data.home}: no training subject has labels, so there are no folds; pretrain on `all`."
        )


def _faults(data: Dataset, folds: Sequence[Fold], refuse: bool) -> list[str]:
    """Say what is wrong with folds: names that are no cases, and nobody to validate on.

    Raises:
        ValueError: There are such names, and `refuse` is set.
    """
    known = {name for name, case in data.cases.items() if is_trainable(case)}
    sides = [{"train": fold.train, "val": fold.val} for fold in folds]
    if refuse:
        require_known_names(data.home / "splits_final.json", sides, known)
    wrong = [(n, line) for n, fold in enumerate(sides) for line in unknown_names(fold, known)]
    wrong += [(n, HOLDS_NOBODY_OUT) for n, fold in enumerate(sides) if not fold["val"]]
    return [f"WARNING: fold {number}: {line}." for number, line in wrong]


def _write_tables(
    data: Dataset, merged: Sequence[Fold], overwrite: bool, dry_run: bool
) -> list[int]:
    """Write both copies of the tables.

    Returns:
        The numbers of the folds that changed although results were trained on them.
    """
    new = [{"train": list(fold.train), "val": list(fold.val)} for fold in merged]
    old = read_copy(data.prepared)
    if old is None:
        old = read_splits(data.home / "splits_final.json")
    trained = trained_folds(new, old, data.results)
    if trained and not overwrite:
        raise FileExistsError(
            f"{data.results}: results were trained on another fold {', '.join(map(str, trained))}; "
            "--overwrite replaces the fold."
        )
    if not dry_run:
        names, sources = [fold.name for fold in merged], [fold.source for fold in merged]
        write_splits(data.home, new, data.cases, names, sources)
        if data.prepared.is_dir() and data.prepared != data.home:
            copy_tables(data.raw, data.prepared, data.results, overwrite=True)
    return trained


def _derive(
    data: Dataset,
    base: str,
    vendors: Sequence[str],
    phase: str,
    amounts: Sequence[int | float],
    unit: str | None,
    seeds: Sequence[int],
) -> list[Fold]:
    """Return a restricted fold, or subsets of it."""
    _require_labels(data)
    _, fold = _find(data, base)
    if unknown := sorted({*fold.train, *fold.val} - data.cases.keys()):
        raise ValueError(f"fold {base}: {unknown[0]} must be in {data.home}/cases.csv.")
    if vendors or phase:
        fold = splits.restrict(fold, data.cases, vendors, phase)
    if not amounts:
        return [fold]
    n_slices = None
    if unit == "slices":
        n_slices = data.n_slices
        if missing := [name for name in fold.train if name not in n_slices]:
            raise FileNotFoundError(
                f"{data.raw}: {missing[0]} has no readable image to count the slices of."
            )
    return splits.subsets(fold, data.cases, amounts, seeds, n_slices)


def _find(data: Dataset, wanted: str) -> tuple[int, Fold]:
    for number, fold in enumerate(data.folds):
        if wanted in (str(number), fold.name):
            return number, fold
    raise ValueError(
        f"`--of` (={wanted}) must be the number or name of one of the "
        f"{count_of(len(data.folds), 'fold')}."
        f"{nearest(wanted, [f.name for f in data.folds])} nnunet-ssp folds {data.home.name} lists them."
    )


# -- what is printed -------------------------------------------------------------------------------


def _table_of_folds(data: Dataset, marked: Collection[int]) -> list[str]:
    """Return lines with all folds and their numbers; those marked begin with `+`."""
    subjects = {case.subject_key: case.split for case in data.cases.values()}
    tests = sum(split == "test" for split in subjects.values())
    lines = [
        f"{data.home.name}: {count_of(len(subjects) - tests, 'subject')} to train on, {tests} to test on",
        "",
    ]
    if not data.folds:
        return [*lines, "No folds: train on `all`."]
    width = max(4, *(len(fold.name) for fold in data.folds))
    columns = f"{'subjects':>9}{'frames':>7}{'slices':>7}"
    lines += [
        f"{'':{width + 7}} {'train':^23}  {'val':^23}".rstrip(),
        f"{'fold':>6} {'name':{width}} {columns}  {columns}  from",
    ]
    for number, fold in enumerate(data.folds):
        counts = "  ".join(
            f"{len({_subject(name, data) for name in names}):9}{len(names):7}{_slice_count(names, data):>7}"
            for names in (fold.train, fold.val)
        )
        mark = "+" if number in marked else ""
        lines.append(f"{mark:2}{number:4} {fold.name:{width}} {counts}  {fold.source}")
    return [*lines, ""]


def _subject(name: str, data: Dataset) -> str:
    """Return a case's subject; a case that is in no table counts as one, and `--check` reports it."""
    return data.cases[name].subject_key if name in data.cases else name


def _slice_count(names: Collection[str], data: Dataset) -> str:
    known = data.n_slices
    return str(sum(known[name] for name in names)) if all(n in known for n in names) else "-"


def _outcome(
    changed: Collection[int], dry_run: bool, data: Dataset, removed: Collection[int]
) -> str:
    if removed:
        done = "Would remove" if dry_run else "Removed"
        return f"{done} fold {', '.join(map(str, sorted(set(removed))))}."
    if not changed:
        return "Nothing to do: all these folds are there already."
    numbers = sorted(changed)
    listed = ", ".join(map(str, numbers))
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        listed = f"{numbers[0]} to {numbers[-1]}"
    noun = "fold" if len(numbers) == 1 else "folds"
    if dry_run:
        return f"Would write {noun} {listed}; nothing was written."
    command = training_command(data.prepared, numbers[0], "nnUNetTrainerScratch")
    return f"Wrote {noun} {listed}. To train from scratch on the first: {command}"


def _verify(data: Dataset) -> bool:
    """Print how the dataset's subjects and folds compare with the published lists.

    Returns:
        Whether a list differs.
    """
    cases = data.cases
    lists = published.published_lists(published.development_subjects(cases))
    lists["test"] = published.published_test_subjects(cases)
    places = {
        which: (name, side)
        for name, (train, valid, phase) in reversed(published.PAPER_FOLDS.items())
        if not phase
        for which, side in ((train, "train"), (valid, "val"))
    }
    print(f"Lists of {published.PAPER}, and what their procedure makes of {data.home.name}:\n")
    print(f"{'list':12}{'published':>10}{'here':>6}  {'published':18}{'here':18}{'':9}in fold")
    differs = False
    for name, (n, digest) in published.PUBLISHED.items():
        here = lists.get(name)
        same = here is not None and published.is_published(name, here)
        fold, in_fold = _in_fold(here or (), places.get(name), data)
        differs |= not (same and in_fold)
        print(
            f"{name:12}{n:10}{'-' if here is None else len(here):>6}  {digest:18}"
            f"{'-' if here is None else published.checksum(here):18}{'match' if same else 'differs':9}{fold}".rstrip()
        )
    print("\nThe numbers are first digits of the SHA-256 of the sorted subjects, one a line.")
    return differs


def _in_fold(
    subjects: Collection[str], place: tuple[str, str] | None, data: Dataset
) -> tuple[str, bool]:
    """Return the fold that holds a list, how much of it if not all, and whether that is as it should be."""
    if place is None:
        return "", True
    for number, fold in enumerate(data.folds):
        if fold.name == place[0]:
            names = fold.train if place[1] == "train" else fold.val
            held = {_subject(name, data) for name in names}
            if held == set(subjects):
                return str(number), True
            labelled = subjects_of(
                (n for n, c in data.cases.items() if is_trainable(c)), data.cases
            )
            if held == set(subjects) & labelled:
                return f"{number}, the {len(held)} with labels", True
            return f"{number} holds other subjects", False
    return "none", True


def _report_leaks(data: Dataset, different: Sequence[Sequence[str]]) -> bool:
    """Print what leaks from training into validation or test; return whether anything does."""
    from nnunet_ssp.cohort.leaks import report

    return report(data.raw, data.prepared, data.cases, data.folds, different=different)
