"""In what precision a study's runs compute: its file's, the call's, and what this processor has instructions for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnunet_ssp.console import count_of

if TYPE_CHECKING:
    from nnunet_ssp.study.runs import Run
    from nnunet_ssp.study.spec import Study

OPTION = "--precision"
PRECISIONS = ("fp32", "bf16", "fp16")  # without auto, which would differ by machine


def computing_in(study: Study, precision: str) -> Study:
    """Return the study with all of its runs in one precision, in place of those that its file names."""

    def without(settings: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in settings.items() if name != "precision"}

    parts = {
        kind: {
            name: part.model_copy(update={"settings": without(part.settings)})
            for name, part in getattr(study, kind).items()
        }
        for kind in ("pretraining", "models")
    }
    shared = {"finetuning": {}, **study.settings}
    if any(part.trainer for part in study.pretraining.values()):
        shared.setdefault("pretraining", {})
    settings = {kind: own | {"precision": precision} for kind, own in shared.items()}
    return study.model_copy(update={**parts, "settings": settings})


def in_one_precision(settings: str, device: str) -> str:
    """Name fp32 on a CPU if the study names no precision: `auto` would choose by a trial on each machine.

    >>> in_one_precision("num_epochs=5", "cpu"), in_one_precision("precision=bf16", "cpu")
    ('num_epochs=5 precision=fp32', 'precision=bf16')
    """
    named = any(word.startswith("precision=") for word in settings.split())
    return settings if named or device != "cpu" else f"{settings} precision=fp32"


def emulated(runs: Iterable[Run]) -> str:
    """Say how many of these runs name bfloat16 where the processor has no instructions for it; empty if none."""
    from nnunet_ssp.training.precision import EMULATED, has_bf16

    n = sum("precision=bf16" in run.settings.split() for run in runs)
    if not n or has_bf16():
        return ""
    return (
        f"{count_of(n, 'run')} would compute in bfloat16 (precision=bf16), for which this processor has no "
        f"instructions: {EMULATED}. Add {OPTION} fp32; it gives the runs folders of their own, so keep it in every "
        f"call of this study. {OPTION} bf16 goes on with it."
    )
