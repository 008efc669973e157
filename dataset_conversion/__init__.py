"""From public and hospital cine datasets, and from natural images, to nnU-Net's raw format.

A converter is a module of this package. For its command it has `add_arguments(parser)` and `convert`, whose arguments
have the same names. To be one of several sources of a dataset (`combined`) it also has:

    SOURCE                                     its name in `cases.csv`, short and without `-`
    LABELS                                     nnU-Net's label names
    list_tasks(folder) -> tasks, refused       finds the subjects (`conversion.Task`), and those that cannot be used
                                               with the reason
    read_subject(task) -> conversion.Cine      a function that other processes can import
    look(task) -> conversion.Look              if there is one, for a dry run; by default NIfTI headers are read
"""

from __future__ import annotations

import importlib
from types import ModuleType

# Commands of `nnunet-ssp convert`, with their help.
CONVERTERS = {
    "mnms": "M&Ms challenge: official tree or flattened folder",
    "mnms2": "M&Ms-2 challenge",
    "mnms+mnms2": "both, without subjects that may be in both, and the test subjects of de Mooij et al.",
    "acdc": "ACDC challenge, with or without the 4D images",
    "cine": "own cine: NIfTI or DICOM, unlabelled or partly labelled",
    "images": "natural images (PNG, JPEG, TIFF) to pretrain on first",
}
# Those of subjects, of which several make one dataset.
SOURCES = tuple(name for name in CONVERTERS if "+" not in name and name != "images")


def load_converter(converter: str) -> ModuleType:
    """Import the module of a converter, for example `mnms+mnms2`."""
    return importlib.import_module(f"{__name__}.{converter.replace('+', '_')}")
