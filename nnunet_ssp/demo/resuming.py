"""The steps of a demo that are done, in a file by which an interrupted demo goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nnunet_ssp.demo.report import Layout, Step
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json

FILE = "steps.json"
WEIGHTS_FLAG = "-pretrained_weights"


class DoneSteps:
    """The finished steps of a demo with their seconds.

    Args:
        file: Holds them between two calls.
        call: What must be equal for a second call to go on.
    """

    def __init__(self, file: Path, call: Mapping[str, object]) -> None:
        self.file, self.call = file, dict(call)
        self.seconds: dict[str, float] = {}
        try:
            content = read_json(file, dict)
        except (ValueError, OSError):
            return
        seconds = content.get("seconds")
        if content.get("call") == self.call and isinstance(seconds, dict):
            self.seconds = {str(k): float(v) for k, v in seconds.items()}

    def add(self, step: Step, seconds: float) -> None:
        """Note that a step is done."""
        self.seconds[step.name] = seconds
        write_json(self.file, {"call": self.call, "seconds": self.seconds})

    def forget(self) -> None:
        """Let the next call start over."""
        self.file.unlink(missing_ok=True)


def continued(step: Step, layout: Layout) -> Step:
    """Return the step that goes on with an interrupted training: nnU-Net's `--c` in place of weights to start from.

    Any other step is returned as it is.
    """
    words = list(step.command)
    if words[0] != "nnUNetv2_train":
        return step
    folder = layout.fold(words[words.index("-tr") + 1])
    if not any(folder.glob("checkpoint_*.pth")):
        return step
    if WEIGHTS_FLAG in words:
        at = words.index(WEIGHTS_FLAG)
        del words[at : at + 2]
    return replace(step, command=(*words, "--c"))
