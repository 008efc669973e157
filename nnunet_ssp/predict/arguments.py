"""From new short-axis cines to masks, volumes and ejection fraction, with doubts flagged.

    nnunet-ssp predict -i FOLDER -m MODEL -o OUT

-i takes DICOM studies, 4D NIfTI files, folders of 3D frames, or a folder of such subjects: all that `convert cine`
reads (see its --help), by the same rules. -m is a trained nnU-Net, as nnUNetv2_train left it in nnUNet_results or as
nnUNetv2_export_model_to_zip packed it; -d, -tr, -p and -c name one in nnUNet_results instead.

OUT gets for each subject a mask on the grid of its images, <subject>_seg.nii.gz, and for all of them phases.csv
(volumes of each frame), volumes.csv (ED, ES, volumes, EF, mass, flags) and report.html. Names are those of the input,
and may identify patients. Run again after an interruption: it goes on at the first frame that is not done.

For research. This is no medical device: a person who can judge them must look at the masks.
"""

from __future__ import annotations

import argparse

from nnunet_ssp.console import path, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp predict`, the keywords of `command.predict`."""
    parser.add_argument(
        "-i",
        dest="inputs",
        metavar="INPUT",
        type=path,
        nargs="+",
        required=True,
        help="files or folders, see above",
    )
    parser.add_argument(
        "-o", dest="output", metavar="OUT", type=path, required=True, help="folder to write to"
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="of DICOM also write DICOM Segmentations, one for each frame: <subject>_seg_dicom/ (needs highdicom)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what another model has written to OUT"
    )
    _add_model(parser.add_argument_group("model"))
    _add_metrics(parser.add_argument_group("metrics"))
    _add_reading(parser.add_argument_group("reading"))


def _add_model(model: argparse._ArgumentGroup) -> None:
    model.add_argument("-m", dest="model", metavar="MODEL", type=path, help="folder or zip")
    model.add_argument("-d", dest="dataset", metavar="DATASET", help="instead of -m: id or name")
    model.add_argument("-tr", dest="trainer", metavar="TRAINER", help="where there are several")
    model.add_argument("-p", dest="plans", metavar="PLANS", help="where there are several")
    model.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION", help="where there are several"
    )
    model.add_argument(
        "-f",
        "--folds",
        dest="folds",
        metavar="FOLD",
        nargs="+",
        help="folds to average, or all (default: every fold_0, fold_1, ... there is)",
    )
    model.add_argument(
        "-chk",
        dest="checkpoint",
        metavar="FILE",
        default="checkpoint_final.pth",
        help="in each fold (default: %(default)s)",
    )
    model.add_argument(
        "-device",
        dest="device",
        choices=("cpu", "cuda", "mps"),
        help="default: cuda if there is a GPU",
    )
    model.add_argument(
        "--disable_tta",
        dest="mirror",
        action="store_false",
        help="without averaging over mirrored images: faster, less accurate",
    )
    model.add_argument(
        "--postprocessing",
        metavar="FILE",
        type=path,
        help="postprocessing.json of nnUNetv2_find_best_configuration",
    )
    model.add_argument(
        "--trust",
        action="store_true",
        help="also open a checkpoint that runs code when it is opened: one that you made yourself",
    )
    for flag, structure in (
        ("--lv", "left ventricle's cavity"),
        ("--myo", "myocardium"),
        ("--rv", "right ventricle's cavity"),
    ):
        model.add_argument(
            flag, metavar="CLASS", help=f"the class that is the {structure} (default: by its name)"
        )


def _add_metrics(metrics: argparse._ArgumentGroup) -> None:
    metrics.add_argument(
        "--frames",
        metavar=("ED", "ES"),
        type=whole,
        nargs=2,
        help="the frames of ED and ES, from 0 (default: by the LV's volume curve)",
    )
    metrics.add_argument(
        "--fixed-base",
        action="store_true",
        help="count the same slices in all frames: from the first to the last with LV at both ED and ES",
    )


def _add_reading(reading: argparse._ArgumentGroup) -> None:
    reading.add_argument(
        "--by-patient-id",
        action="store_true",
        help="tell DICOM subjects apart by PatientID, wherever their files lie",
    )
    reading.add_argument(
        "--series",
        metavar="NUMBER|UID|FOLDER",
        nargs="+",
        default=[],
        help="the DICOM series to take as the short axis, see convert cine --help",
    )
    reading.add_argument(
        "-np",
        dest="workers",
        metavar="N",
        type=whole,
        help="N processes that read headers (default: cores, max. 8)",
    )
