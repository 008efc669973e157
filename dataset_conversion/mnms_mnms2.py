"""M&Ms and M&Ms-2 as one dataset, as de Mooij et al. 2024 (arXiv 2409.18100) used them.

    nnunet-ssp convert mnms+mnms2 -i FOLDER_OF_MNMS FOLDER_OF_MNMS2 -d 119

Subjects of M&Ms may be in M&Ms-2 again, under another number. They would be in its categories NOR, HCM
and LV, which are left out. The test subjects are those of the paper, whatever folder they lie in: from
M&Ms 15 per vendor, drawn from the rows of its CSV; from M&Ms-2 the numbers 281 to 360. All others are
for training. Names begin with the source: `mm1-A1D9Z7_frame05`, `mm2-101_frame00`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_ssp.cohort.published import PAPER, PUBLISHED, is_published
from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.subjects import Common
from nnunet_ssp.conversion.summary import Remarks
from nnunet_ssp.dataset_conversion import combined, command, mnms, mnms2
from nnunet_ssp.dataset_conversion.combined import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The overlap rule and the test subjects of the authors' code, qcardia-data (setup/test_splits.py).
OVERLAPPING = ("NOR", "HCM", "LV")
PER_VENDOR = 15
DRAW_SEED = 1234
TEST_NUMBERS = range(281, 361)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    command.add_arguments(
        parser,
        folder="the folder of M&Ms, then that of M&Ms-2, as for mnms and mnms2",
        name="MNMsAndMNMs2",
        test="the paper's",
        metavar=("MNMS", "MNMS2"),
        nargs=2,
    )


def convert(
    input_folder: Sequence[str | Path],
    dataset_id: int,
    name: str = "MNMsAndMNMs2",
    **common: Unpack[Common],
) -> Path:
    """Convert M&Ms and M&Ms-2; further arguments, result and errors are those of `combined.convert_sources`.

    Args:
        input_folder: The folders of M&Ms and of M&Ms-2.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        common: `test` lists names (`mm1-A1D9Z7`), by default the paper's; sources of `add` keep their own division.
    """
    folders = [Path(folder) for folder in input_folder]
    first = combined.open_source("mnms", folders[0])
    second, remarks = leave_out_overlap(combined.open_source("mnms2", folders[1]))
    published = common.get("test") is None
    if published:
        rows = mnms.read_rows(mnms.find_root(folders[0]))
        drawn, said = draw_test_subjects(rows)
        first = _divide(first, drawn)
        second = _divide(second, {f"{number:03d}" for number in TEST_NUMBERS})
        remarks += said
    return combined.convert_sources(
        [first, second],
        dataset_id=dataset_id,
        name=name,
        description="Cine of M&Ms (Campello et al. 2021, 10.1109/TMI.2021.3090082) and M&Ms-2 (Martin-Isla et al. "
        "2023, 10.1109/JBHI.2023.3267857)",
        options={"mnms2": str(folders[1].resolve())},
        **common,
        remarks=Remarks(remarks, compare_published if published else lambda splits: []),
    )


def leave_out_overlap(source: Source) -> tuple[Source, list[str]]:
    """Drop the subjects of M&Ms-2 that may be in M&Ms; also those whose category is unknown.

    Returns:
        The rest, and what to tell the user.
    """
    rows = mnms2.read_rows(mnms2.find_root(source.folder))
    disease = {row["SUBJECT_CODE"]: row["DISEASE"] for row in rows}
    dropped = {number for number in disease if disease[number].upper() in OVERLAPPING}
    refused = {number: why for number, why in source.refused.items() if number not in dropped}
    kept = []
    for task in source.tasks:
        if not disease.get(task.subject):
            refused[task.subject] = (
                f"{task.files[0].parent}: no DISEASE in the CSV, so it may be in M&Ms too."
            )
        elif task.subject not in dropped:
            kept.append(task)
    remark = (
        f"Left out of M&Ms-2, as they may be in M&Ms too: {len(dropped)} subjects of the categories "
        f"{', '.join(OVERLAPPING)}."
    )
    return replace(source, tasks=kept, refused=refused), [remark]


def draw_test_subjects(rows: Sequence[Mapping[str, str]]) -> tuple[set[str], list[str]]:
    """Draw M&Ms' test subjects as the authors did: pandas' `sample(15, random_state=1234)` of each vendor's rows.

    From a vendor with fewer than 30 subjects half are drawn, so that some are left for training. The published data
    have at least 50 of each.

    Args:
        rows: All rows of M&Ms' CSV, in its order.

    Returns:
        The codes, and what to tell the user.
    """
    vendors: dict[str, list[str]] = {}
    for row in rows:
        vendors.setdefault(row["Vendor"] or row["VendorName"], []).append(row["External code"])
    drawn: set[str] = set()
    remarks = []
    for vendor, codes in vendors.items():
        n = min(PER_VENDOR, len(codes) // 2)
        # This is what pandas' `sample` does; the legacy RandomState never changes.
        chosen = np.random.RandomState(DRAW_SEED).choice(len(codes), n, replace=False)
        drawn |= {codes[index] for index in chosen}
        if n < PER_VENDOR:
            remarks.append(
                f"WARNING: vendor {vendor} of M&Ms has {count_of(len(codes), 'subject')}, so {n} instead of "
                f"{PER_VENDOR} are for the test."
            )
    return drawn, remarks


def _divide(source: Source, test: set[str]) -> Source:
    tasks = [
        replace(task, split="test" if task.subject in test else "train") for task in source.tasks
    ]
    return replace(source, tasks=tasks)


def compare_published(splits: Mapping[str, str]) -> list[str]:
    """Say whether the converted subjects of both datasets are the published ones.

    Args:
        splits: The split of each subject; those of other sources do not count.
    """
    remarks = []
    ours = (f"{mnms.SOURCE}-", f"{mnms2.SOURCE}-")
    keys = {subject: split for subject, split in splits.items() if subject.startswith(ours)}
    for name, split in (("development", "train"), ("test", "test")):
        mine = [key for key in keys if keys[key] == split]
        n = PUBLISHED[name][0]
        if is_published(name, mine):
            remarks.append(f"{split}: the {n} subjects of {PAPER}.")
        else:
            remarks.append(
                f"WARNING: {split}: {len(mine)} subjects, which are not the {n} of {PAPER}."
            )
    if not any(key.startswith(f"{mnms2.SOURCE}-") and keys[key] == "test" for key in keys):
        remarks.append(
            f"WARNING: no subject of M&Ms-2 is for the test: {TEST_NUMBERS[0]} to {TEST_NUMBERS[-1]} are not there."
        )
    return remarks


if __name__ == "__main__":
    import sys

    sys.exit(command.main(__doc__, add_arguments, convert))
