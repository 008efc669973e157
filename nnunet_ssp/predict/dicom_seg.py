"""DICOM Segmentations of a predicted mask, one object for each frame of the cine, written by highdicom.

One object for the whole cine is in the standard, too. But highdicom refuses several images at one place, and a user of
OHIF saw one phase over all of them (https://github.com/ImagingDataCommons/highdicom/issues/369,
https://github.com/OHIF/Viewers/issues/4789). An object of one volume asks neither.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp import __version__
from nnunet_ssp.dataset_conversion.cine_files import CineTask, stem_of
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.files.grids import Array
from nnunet_ssp.predict.inputs import InputCine
from nnunet_ssp.predict.page import PAINT

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from nnunet_ssp.conversion.dicom.headers import Image

# Names and codes of SNOMED CT as DICOM has them: PS3.16, contexts 7151 and 12305, by pydicom's keywords.
SEGMENTS = {
    "LV": ("left ventricle", "LeftVentricle"),
    "MYO": ("myocardium", "LeftVentricleMyocardium"),
    "RV": ("right ventricle", "RightVentricle"),
}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
PLACE = "FrameOfReferenceUID"
# Of patient and study: an archive files the object by them, so that they are copied as they are, valid or not.
COPIED = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "StudyDate", "StudyTime"),
    *("StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
)
SERIES_NUMBER = 1000  # above those of the scanner
MAKER = "nnunet-ssp"


@dataclass(frozen=True)
class Source:
    """An image, and what its object needs of the header."""

    image: Image
    header: Dataset


def check_installed() -> None:
    """Raise an error that says what to install where highdicom is missing."""
    if importlib.util.find_spec("highdicom") is None:
        raise RuntimeError(
            "`--dicom-seg` needs highdicom, which is not installed: pip install 'nnunet-ssp[dicom]' "
            "(from a checkout: pip install '.[dicom]')"
        )


def without_dicom(tasks: Iterable[CineTask]) -> dict[str, str]:
    """Return the subjects that are not DICOM, with the reason for which they have no segmentation of that kind."""
    return {
        task.subject: f"{task.place}: NIfTI, and `--dicom-seg` needs DICOM images to refer to."
        for task in tasks
        if stem_of(task.images[0])
    }


def read_sources(study: InputCine) -> list[list[Source]]:
    """Read the headers of the images of a cine, by slice and frame.

    Raises:
        ValueError: A header lacks what a DICOM Segmentation needs; names the file and the rule.
    """
    from nnunet_ssp.conversion.dicom.opening import open_dicom, tolerant
    from nnunet_ssp.conversion.dicom.values import value_of

    files = dict.fromkeys(image.file for row in study.sources for image in row)
    headers: dict[Path, Dataset] = {}
    with tolerant():
        for file in files:
            header = open_dicom(
                file, stop_before_pixels=True, specific_tags=[*NEEDED, *COPIED, PLACE]
            )
            missing = [keyword for keyword in NEEDED if not value_of(header, keyword)]
            if missing:
                raise ValueError(f"{file}: no {missing[0]}, which a DICOM Segmentation needs.")
            headers[file] = header
    studies = {str(header.StudyInstanceUID) for header in headers.values()}
    if len(studies) > 1:
        raise ValueError(
            f"{next(iter(files)).parent}: images of {len(studies)} StudyInstanceUIDs; a DICOM Segmentation is of one."
        )
    return [[Source(image, headers[image.file]) for image in row] for row in study.sources]


def write_segmentations(
    folder: Path, mask: Array, sources: Sequence[Sequence[Source]], labels: Labels
) -> None:
    """Write the objects of a cine as one series, `frame_000.dcm` and so on, each whole or not at all.

    Args:
        folder: Where to; created.
        mask: (X, Y, Z, T), label values, columns and rows as in the images.
        sources: From `read_sources`.
        labels: Meaning of the values.
    """
    from highdicom import UID

    from nnunet_ssp.conversion.dicom.opening import tolerant

    structures = [name for name in SEGMENTS if name in labels.structures]
    numbered = np.zeros(mask.shape, np.uint8)
    for number, structure in enumerate(structures, 1):
        numbered[np.isin(mask, labels.classes[labels.structures[structure]])] = number
    series, n_frames = UID(), mask.shape[3]
    for t in range(n_frames):
        with tolerant():
            made = _segmentation(
                numbered[..., t].transpose(2, 1, 0),
                [row[t] for row in sources],
                structures,
                content_label=f"FRAME_{t}",
                content_description=f"Frame {t} of 0 to {n_frames - 1}",
                series_instance_uid=series,
                instance_number=t + 1,
            )
            with atomic_write(folder / f"frame_{t:03d}.dcm") as temporary:
                made.save_as(temporary)


def _segmentation(
    pixels: Array, sources: Sequence[Source], structures: Sequence[str], **described: Any
) -> Dataset:
    """Make the object of one frame.

    Args:
        pixels: (slices, rows, columns), segment numbers.
        sources: The images, by slice.
        structures: Of the segments, in the order of their numbers.
        described: Further arguments of highdicom.
    """
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentationTypeValues

    stand_ins = _stand_ins(sources)
    made = Segmentation(
        stand_ins,
        pixels,
        SegmentationTypeValues.BINARY,
        [_segment(number, name) for number, name in enumerate(structures, 1)],
        series_number=SERIES_NUMBER,
        sop_instance_uid=UID(),
        manufacturer=MAKER,
        manufacturer_model_name=f"{MAKER} predict",
        software_versions=__version__,
        device_serial_number="0",  # must not be empty
        series_description="Segmentation of the cine, for research",
        specific_character_set=None,
        omit_empty_frames=bool(pixels.any()),  # it omits no frame of an empty object, and says so
        **described,
    )
    by_uid = {
        str(made_up.SOPInstanceUID): source
        for made_up, source in zip(stand_ins, sources, strict=True)
    }
    _refer_to_sources(made, by_uid)
    made.ContentCreatorName = ""  # nobody, but the standard wants the tag (type 2)
    for keyword in COPIED:
        if keyword in sources[0].header:
            made[keyword] = sources[0].header[keyword]
    return made


def _segment(number: int, structure: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from matplotlib.colors import to_rgb
    from pydicom.sr.codedict import codes

    name, keyword = SEGMENTS[structure]
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=getattr(codes.SCT, keyword),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"{MAKER} predict, nnU-Net",
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
        ),
        display_color=CIELabColor.from_rgb(*(255 * part for part in to_rgb(PAINT[structure]))),
    )


def _stand_ins(sources: Sequence[Source]) -> list[Dataset]:
    """Return single images of one series for highdicom, which takes no frames of an enhanced file one by one.

    They also leave out what it refuses in real headers: dates of 00000000, a series for each slice, directions that
    differ in the last digit, no frame of reference. Identity and references are put right afterwards.
    """
    from highdicom import UID
    from pydicom.dataset import Dataset
    from pydicom.uid import MRImageStorage

    first, series = sources[0], UID()
    found = []
    for source in sources:
        made_up = Dataset()
        for keyword in COPIED:
            setattr(made_up, keyword, "")
        made_up.StudyInstanceUID = first.header.StudyInstanceUID
        made_up.FrameOfReferenceUID = first.header.get(PLACE) or series
        made_up.SOPClassUID, made_up.SOPInstanceUID = MRImageStorage, UID()
        made_up.SeriesInstanceUID, made_up.Modality = series, "MR"
        made_up.Rows, made_up.Columns = source.image.shape
        made_up.ImagePositionPatient = [f"{edge:.10g}" for edge in source.image.position]
        made_up.ImageOrientationPatient = [f"{part:.10g}" for part in first.image.directions]
        made_up.PixelSpacing = [f"{edge:.10g}" for edge in first.image.spacing]
        made_up.SliceThickness = f"{_thickness(sources):.10g}"
        found.append(made_up)
    return found


def _thickness(sources: Sequence[Source]) -> float:
    """Return the distance of the slices in mm; of a single slice what the header says."""
    first, last = sources[0].image, sources[-1].image
    if len(sources) == 1:
        return first.thickness or 1.0
    between = np.subtract(last.position, first.position) @ first.axes[2]
    return abs(float(between)) / (len(sources) - 1)


def _refer_to_sources(made: Dataset, sources: Mapping[str, Source]) -> None:
    """Let references to stand-ins name the true images, and their frames in enhanced files."""
    from pydicom.dataset import Dataset

    items = [
        item
        for group in made.PerFrameFunctionalGroupsSequence
        for derivation in group.DerivationImageSequence
        for item in derivation.SourceImageSequence
    ]
    # Segments of one slice share their item
    for item in {id(item): item for item in [*items, *made.SourceImageSequence]}.values():
        source = sources[str(item.ReferencedSOPInstanceUID)]
        item.update(_reference(source))
        if source.image.frame is not None:
            item.ReferencedFrameNumber = source.image.frame + 1
    series: dict[str, dict[str, Dataset]] = {}
    for source in sources.values():
        instances = series.setdefault(str(source.header.SeriesInstanceUID), {})
        instances[str(source.header.SOPInstanceUID)] = _reference(source)
    made.ReferencedSeriesSequence = []
    for uid, instances in series.items():
        entry = Dataset()
        entry.SeriesInstanceUID, entry.ReferencedInstanceSequence = uid, [*instances.values()]
        made.ReferencedSeriesSequence.append(entry)


def _reference(source: Source) -> Dataset:
    from pydicom.dataset import Dataset

    entry = Dataset()
    entry.ReferencedSOPClassUID = source.header.SOPClassUID
    entry.ReferencedSOPInstanceUID = source.header.SOPInstanceUID
    return entry
