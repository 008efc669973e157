"""The record of the shared pretraining that plans came with, so that the next commands start from its weights."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import TEXT, check, read_json
from nnunet_ssp.launch import device_flag
from nnunet_ssp.settings import typed_before

RECORD = "imported.json"  # in the dataset's folder in nnUNet_preprocessed
FINETUNING = "nnUNetTrainerFinetune"


@dataclass(frozen=True)
class Imported:
    """A shared pretraining, as its card names it.

    Attributes:
        file: Absolute path of the zip or folder.
        configuration: Of its plans.
        trainer: By which the pretraining goes on; empty where the card names none.
        settings: Of `nnUNet_ssp_settings`, by which its weights fit; empty where they fit as they are.
        learned_by: Of the same variable, what it learned by; empty for its method's defaults.
    """

    file: str
    configuration: str
    trainer: str = ""
    settings: str = ""
    learned_by: str = ""

    def further(self, number: int, fold: int | str, plans: str) -> str:
        """Return the command that goes on with the pretraining, see `command`."""
        return self.command(number, fold, plans, self.trainer, self.learned_by)

    def command(
        self, number: int, fold: int | str, plans: str, trainer: str, settings: str = ""
    ) -> str:
        """Return the command that trains from these weights, as it works on this machine.

        Args:
            number: The dataset's id.
            fold: Number of the fold, or `all`.
            plans: Name of the plans.
            trainer: Name of the trainer.
            settings: Of `nnUNet_ssp_settings`, beside those by which the weights fit.
        """
        words = " ".join(filter(None, (settings, self.settings)))
        return (
            f"{typed_before(words)}nnUNetv2_train {number} {self.configuration} {fold} -p {shlex.quote(plans)} "
            f"-tr {trainer} -pretrained_weights {shlex.quote(self.file)}{device_flag()}"
        )


def record_import(folder: Path, plans: str, imported: Imported | None) -> None:
    """Note which pretraining plans came with.

    Args:
        folder: The dataset's folder in nnUNet_preprocessed.
        plans: Name of the plans.
        imported: The pretraining; None for plans that were made here, perhaps in place of imported ones.
    """
    known = _read(folder)
    entries = {name: entry for name, entry in known.items() if name != plans}
    if imported is not None:
        entries[plans] = asdict(imported)
    if entries != known:
        write_json(folder / RECORD, {"imported": entries})


def recorded_import(folder: Path, plans: str) -> Imported | None:
    """Return the pretraining that plans came with; None where they are of this dataset, or the record is damaged."""
    entry = _read(folder).get(plans, {})
    rules = {field.name: TEXT for field in fields(Imported)}
    try:
        check(entry, rules, str(folder / RECORD), tuple(rules))
    except (TypeError, ValueError):
        return None
    return Imported(**{name: entry[name] for name in rules})


def _read(folder: Path) -> dict[str, dict[str, str]]:
    try:
        entries = read_json(folder / RECORD, dict).get("imported")
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def next_lines(
    imported: Imported, number: int, fold: int | str, plans: str, labelled: bool, settings: str
) -> list[str]:
    """Return the lines that name what to train from the weights; a file that is gone is said to be.

    Args:
        imported: The pretraining that the plans came with.
        number: The dataset's id.
        fold: Number of the fold, or `all`.
        plans: Name of the plans.
        labelled: Whether there are labels to fine-tune with.
        settings: Of the fine-tuning.
    """
    if not Path(imported.file).exists():
        return [
            f"note: plans {plans} came with {imported.file}, which is gone: to train from its weights, import it again."
        ]
    ways = []
    if labelled:
        command = imported.command(number, fold, plans, FINETUNING, settings)
        ways.append(f"to fine-tune from {Path(imported.file).name}: {command}")
    if imported.trainer:
        command = imported.further(number, fold, plans)
        ways.append(f"to pretrain {Path(imported.file).name} further: {command}")
    return [f"{'Or' if place else 'Next'}, {way}" for place, way in enumerate(ways)]
