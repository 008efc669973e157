"""The files of own cine, sorted by subject before any image is read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_ssp.console import count_of, some
from nnunet_ssp.conversion.subjects import Task
from nnunet_ssp.dataset_conversion.phase_names import (
    are_two_phases,
    phase_of,
    time_of,
    without_frame,
)
from nnunet_ssp.files.nifti import has_packed_copy, read_header
from nnunet_ssp.parallel import process

_NIFTI = re.compile(r"(?P<stem>.+)\.nii(\.gz)?", re.IGNORECASE)
MASK = re.compile(r"(?P<subject>.+?)(_sa)?(_frame(?P<frame>\d+))?_gt", re.IGNORECASE)
# Words that people and tools write for a mask
MASK_WORD = re.compile(
    r"(?<![a-z])(gt|segs?|segmentations?|segmented|masks?|labels?|rois?|contours?|annotations?|manual)(?![a-z])",
    re.IGNORECASE,
)
_SHORT_AXIS = re.compile("_sa$", re.IGNORECASE)
_PHASE = re.compile(
    r"(?P<name>.+)_t(?P<ms>\d+)"
)  # as dcm2niix names Philips' phases after the first
MIN_PHASES = 3
TWO_VISITS = " Cines of several visits: a folder for each, and folds that keep them on one side (folds --from FILE)."
# What stands before the number of a frame in the name of a file: patient001_frame01
_FRAME = re.compile(r"(?P<subject>.+?)(_sa)?_frame(?P<frame>\d+)", re.IGNORECASE)
# Public sets by what their folders hold, each with its converter
_ACDC_MASK = "patient[0-9][0-9][0-9]_frame[0-9][0-9]_gt.nii*"
_PUBLIC = (
    ("acdc", "ACDC", "patient*/Info.cfg"),
    ("acdc", "ACDC", _ACDC_MASK),
    ("acdc", "ACDC", f"patient*/{_ACDC_MASK}"),
    ("mnms", "M&Ms", "*M&Ms_Dataset_information*.csv"),
    ("mnms2", "M&Ms-2", "dataset_information.csv"),
)
# Formats that a user may expect to be read
OTHER_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mat", ".npy", ".npz", ".h5")


@dataclass(frozen=True)
class Found:
    """The images of a subject, before they are read."""

    name: str
    place: Path
    images: tuple[Path, ...]
    # Or, without images, why there are none
    note: str = ""
    # The name is the PatientID
    by_id: bool = False
    # --series chose the images
    chosen: bool = False
    # Further files or folders that are this subject's, by the names that their masks have
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class CineTask(Task):
    """A subject's files; `files` are the images, then the masks."""

    # One 4D NIfTI, 3D NIfTI in order of time, or DICOM in any order
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    # The folder or file it was found at, for messages
    place: Path
    label_names: tuple[str, ...]
    # On the subject's name and further files
    notes: tuple[str, ...]
    # Why it may be no stack
    hint: str
    # The user says that the images are the short axis
    chosen: bool = False
    # Of the masks, in the order of `label_names`; by default 1, 2, ...
    label_values: tuple[int, ...] = ()
    # The number of the first frame in the names of masks; by default unknown, and taken as 0
    frames_from: int | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether the subject is refused without labels: never, own cine may be there to be predicted."""
        return False


def refuse_public(
    root: Path, names_own_labels: bool = False, dataset_id: int | None = None
) -> None:
    """Refuse a public dataset, whose labels, phases and test subjects only its own converter knows.

    Args:
        root: Folder to convert.
        names_own_labels: Whether the user has named the labels; files that are only called as in ACDC pass then.
        dataset_id: Number of the dataset that it was to become, if known.

    Raises:
        ValueError: The folder, or one in it, is laid out like a public dataset.
    """
    for converter, name, pattern in _PUBLIC:
        by_name = pattern.endswith(_ACDC_MASK)
        if by_name and names_own_labels:
            continue
        way = "name its labels: --label-names LVBP LVM RV" if by_name else "move {} elsewhere"
        for place in (pattern, f"*/{pattern}", f"*/*/{pattern}"):
            for sign in root.glob(place):
                raise ValueError(
                    f"{root} is laid out as {name} ({sign.relative_to(root)}), whose labels or test subjects are not "
                    f"those of own cine. If it is your own data, {way.format(sign.name)}. "
                    + _own_command(converter, sign, dataset_id)
                )


def _own_command(converter: str, sign: Path, dataset_id: int | None) -> str:
    """Return in words the command that converts a public set, by a file that it was recognised by."""
    folder: Path | None = sign.parent  # M&Ms and M&Ms-2: that of the table
    if converter == "acdc":
        near = [*sign.absolute().parents][:2]  # of the patients' folders, or of their files
        folder = next((p.parent for p in near if p.name in ("training", "testing")), None)
    if folder is None:
        return (
            "Its own converter, nnunet-ssp convert acdc, takes a folder with training/ or testing/, which hold the "
            "patients' folders."
        )
    number = "ID" if dataset_id is None else dataset_id
    return f"Its own converter: nnunet-ssp convert {converter} -i {shlex.quote(str(folder))} -d {number}"


def find_cines(
    root: Path, masks: Path, by_patient_id: bool, workers: int, one_frame: bool = True
) -> list[Found]:
    """Find the subjects in a folder.

    Args:
        root: The folder.
        masks: Folder of the masks, which is no subject.
        by_patient_id: Whether PatientID tells DICOM subjects apart.
        workers: Number of processes for reading DICOM headers.
        one_frame: Whether a 3D file directly in the folder is a subject; else it may be a frame of one.
    """
    # Here, because every command would import pydicom.
    from nnunet_ssp.conversion.dicom.headers import patient_id
    from nnunet_ssp.conversion.dicom.opening import is_dicom

    found = []
    flat: dict[str, Path] = {}  # NIfTI files directly in the folder
    dicom: list[Path] = []  # whose subject only the header tells
    for entry in sorted(root.iterdir()):
        stem = stem_of(entry)
        if entry.name.startswith(".") or entry.resolve() == masks.resolve():
            continue
        if has_packed_copy(entry):
            continue
        if entry.is_dir():
            files = _files_below(entry)
            nifti = [file for file in files if stem_of(file) and not MASK.fullmatch(stem_of(file))]
            others = tuple(file for file in files if not stem_of(file))
            if nifti:
                images, note = choose_nifti(entry, nifti)
                dropped = [file for file in others if is_dicom(file)] if images else []
                if dropped:
                    more = f"left out {count_of(len(dropped), 'DICOM file')}, the first {dropped[0].name}"
                    note = f"{note}; {more}" if note else more
                found.append(Found(entry.name, entry, images, note))
            elif by_patient_id:
                dicom += others
            elif others or not files:  # a folder of masks alone is no subject
                note = "" if others else "no file in it."
                found.append(Found(entry.name, entry, others, note))
        elif not stem:
            dicom.append(entry)
        elif not MASK.fullmatch(stem):
            flat[stem] = entry
    found += _flat_subjects(flat, root, one_frame, beside=len(found))
    patients: dict[str, list[Path]] = {}
    ids = process(patient_id, dicom, workers, "Reading headers", "file")
    for file, patient in zip(dicom, ids, strict=True):
        if patient is not None:
            patients.setdefault(patient, []).append(file)
        elif file.suffix.lower() in OTHER_IMAGES and file.parent == root:
            note = "neither NIfTI nor DICOM; save it as .nii.gz."
            found.append(Found(file.name, file, (), note))
    if len(patients) == 1:
        (files,) = patients.values()
        return [*found, Found(root.resolve().name, root, tuple(files))]
    named = "named after its PatientID"
    return found + [
        Found(patient, root, tuple(files), named, by_id=True) for patient, files in patients.items()
    ]


def _flat_subjects(files: dict[str, Path], root: Path, one_frame: bool, beside: int) -> list[Found]:
    """Sort the NIfTI files of a folder by subject: a 4D file is a subject, 3D files may be the frames of one.

    Args:
        files: The files by their names without ending.
        root: Their folder.
        one_frame: Whether a 3D file is a subject, too.
        beside: Number of subjects that have a folder of their own there.
    """
    groups: dict[str, list[str]] = {}
    told = {(_subject_of_frame(stem), phase_of(stem)) for stem in files}
    for stem in files:
        # All but the last number, with the name of a subject where the name is plainly that of a frame or phase.
        subject = _subject_of_frame(stem)
        if not (_FRAME.fullmatch(stem) or {(subject, "ED"), (subject, "ES")} <= told):
            subject = ""  # alice_ES_01, alice_ES_02: no two phases
        key = f"{subject}\0" if subject else re.sub(r"\d+(\D*)$", r"#\1", stem)
        groups.setdefault(key, []).append(stem)
    note = ""
    if not one_frame and 2 * len(files) <= beside:
        note = (
            f"a file beside {count_of(beside, 'folder')} of subjects, taken as a subject of its own"
        )
    cines = (
        {}
        if one_frame
        else _cines_of_frames(files, [key[:-1] for key in groups if key[-1] == "\0"])
    )
    taken = {stem for stems in cines.values() for stem in stems}
    found = []
    for key, stems in groups.items():
        stems = [stem for stem in stems if stem not in taken]
        images = [files[stem] for stem in stems]
        if not one_frame and key[-1] == "\0" and (stems[1:] or key[:-1] in cines):
            found.append(
                _of_frames(key[:-1], root, images, [files[s] for s in cines.get(key[:-1], ())])
            )
        elif one_frame or len(stems) < 2 or any(n_frames_of(image) != 1 for image in images):
            found += [
                Found(_SHORT_AXIS.sub("", stem), files[stem], (files[stem],), note)
                for stem in stems
            ]
        else:
            found.append(
                Found(
                    stems[0],
                    root,
                    (),
                    f"{count_of(len(stems), 'file')} of one frame each, {images[0].name} to {images[-1].name}, differ "
                    "only in a number: frames of one subject, or several subjects? Frames of one: put them into a "
                    "folder of its own, or call them <subject>_frame<number>.nii.gz. Several: a folder for each.",
                    others=tuple(_SHORT_AXIS.sub("", stem) for stem in stems[1:]),
                )
            )
    return found


def _subject_of_frame(stem: str) -> str:
    """Return the subject of a file called as a frame of one, by number or phase; empty for any other name."""
    frame = _FRAME.fullmatch(stem)
    name = frame["subject"] if frame else stem if phase_of(stem) else ""
    return _SHORT_AXIS.sub("", without_frame(name)) if phase_of(name) else name


def _cines_of_frames(files: Mapping[str, Path], subjects: Sequence[str]) -> dict[str, list[str]]:
    """Return, by subjects with files of frames, the 4D files called after them: `p1` and `p1_4d` of `p1`."""
    cines: dict[str, list[str]] = {}
    for stem, file in files.items():
        owners = [name for name in subjects if re.match(rf"{re.escape(name)}($|[ ._-])", stem)]
        if owners and not _subject_of_frame(stem) and n_frames_of(file) > 1:
            cines.setdefault(max(owners, key=len), []).append(stem)
    return cines


def _of_frames(subject: str, root: Path, frames: Sequence[Path], cines: Sequence[Path]) -> Found:
    """Make one subject of files called after its frames or phases; refuse it where others hold its cine, too."""
    whole = [*cines, *(file for file in frames if n_frames_of(file) > 1)]
    names = [stem_of(file) for file in frames]
    others = tuple(_SHORT_AXIS.sub("", name) for name in names if phase_of(name))
    if whole:
        phases = some([file.name for file in frames])
        called = f"called {subject}_frame<number>" if not others else f"of one name ({phases})"
        return Found(
            subject,
            root,
            (),
            f"{count_of(len(frames), 'file')} {called}, and more than one frame in "
            f"{some([file.name for file in whole])}: one patient as several subjects? Keep the frames alone, or the "
            f"4D file alone, called {subject}.nii.gz. If they are of several subjects: a folder for each.",
            others=others,
        )
    if others and len({*map(time_of, names)}) < len(names):
        return Found(
            subject,
            root,
            (),
            f"{some([file.name for file in frames])} are of one name and phase: two visits? Names must tell them "
            "apart.",
            others=others,
        )
    # A damaged file is a frame by its name; reading it tells what is wrong.
    ordered = sorted(frames, key=lambda file: _place_in_time(stem_of(file)))
    return Found(subject, root, tuple(ordered), others=others)


def _place_in_time(name: str) -> tuple[int, str]:
    """Return what sorts the names of frames: the last number of `_frame<number>`, else the phase."""
    return (int(re.findall(r"\d+", name)[-1]), "") if _FRAME.fullmatch(name) else time_of(name)


def n_frames_of(file: Path) -> int:
    """Return the number of frames that the header tells; 0 of a damaged file."""
    try:
        shape, _ = read_header(file)
    except ValueError:
        return 0
    return max(shape[3:], default=1)


def keep_series(found: Sequence[Found], series: Sequence[str], workers: int) -> list[Found]:
    """Leave only the series that the user names to the subjects that have them."""
    from nnunet_ssp.conversion.dicom.named_series import choose_series

    files = {
        (entry.place, entry.name): [file for file in entry.images if not stem_of(file)]
        for entry in found
    }
    chosen = choose_series(files, series, workers)
    result = []
    for entry in found:
        mine = chosen.get((entry.place, entry.name))
        if mine:
            rest = count_of(len(entry.images) - len(mine), "file")
            note = f"the series of --series, without {rest} of others"
            note = f"{entry.note}; {note}" if entry.note else note
            entry = replace(entry, images=tuple(mine), note=note, chosen=True)
        result.append(entry)
    return result


def with_shared_patients(found: Sequence[Found], root: Path) -> set[str]:
    """Return the subjects whose folder holds DICOM of a patient who has another folder, too."""
    from nnunet_ssp.conversion.dicom.headers import patient_id

    folders: dict[str, list[str]] = {}
    for entry in found:
        if entry.place.is_dir() and entry.place != root:
            first = [file for file in entry.images[:5] if not stem_of(file)]
            patients = [patient for patient in map(patient_id, first) if patient is not None]
            for patient in patients[:1]:
                folders.setdefault(patient, []).append(entry.name)
    return {name for names in folders.values() if len(names) > 1 for name in names}


def _files_below(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    return sorted(file for file in files if not has_packed_copy(file))


def stem_of(file: Path) -> str:
    """Return the name of a NIfTI file without its ending; empty for any other file."""
    match = _NIFTI.fullmatch(file.name)
    return match["stem"] if match else ""


def choose_nifti(folder: Path, files: Sequence[Path]) -> tuple[tuple[Path, ...], str]:
    """Return the files of one cine, frames in order of time; none, with the reason, if they are not clear."""
    if phases := _philips_phases(files):
        return phases, ""
    names = (folder.name, f"{folder.name}_sa", "sa")
    called = {name.casefold() for name in names}
    named = [file for file in files if stem_of(file).casefold() in called]
    if len(named) == 1:
        others = [file for file in files if file != named[0]]
        said = f"left out {', '.join(file.name for file in others)}"
        if any(sounds_like_a_mask(file) for file in others):
            said += f"; a mask of {named[0].name} is called {stem_of(named[0])}_gt.nii.gz"
        return (named[0],), said if others else ""
    if len(files) == 1:
        return (files[0],), ""
    if are_two_phases(map(stem_of, files)) and all(n_frames_of(file) == 1 for file in files):
        return tuple(sorted(files, key=lambda file: time_of(stem_of(file)))), ""
    paths = [file.relative_to(folder).as_posix() for file in files]
    if len({re.sub(r"\d+", "#", path) for path in paths}) == 1:
        numbers = np.array([[int(text) for text in re.findall(r"\d+", path)] for path in paths])
        return tuple(files[index] for index in np.lexsort(numbers.T[::-1])), ""
    if all(holds_one_slice(file) for file in files):
        return tuple(files), ""  # their geometry tells the order
    return (), (
        f"must hold one 4D file called {' or '.join(names)}, or 3D frames whose names differ "
        f"only in numbers, not {paths[0]} and {paths[-1]}."
        + " Names of masks end in _gt." * any(map(sounds_like_a_mask, files))
        + TWO_VISITS * (sum(n_frames_of(file) > 1 for file in files) > 1)
    )


def sounds_like_a_mask(file: Path) -> bool:
    """Whether the name of a NIfTI file has a word that people write for a mask.

    >>> [sounds_like_a_mask(Path(f"{stem}.nii.gz")) for stem in ("p1_seg", "LabelsOf p1", "p1_2ch")]
    [True, False, False]
    """
    return bool(MASK_WORD.search(stem_of(file)))


def _philips_phases(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return files called NAME, NAME_t40, NAME_t80, ... in order of time; empty if they have other names."""
    times: dict[int, Path] = {}
    names = set()
    for file in files:
        match = _PHASE.fullmatch(stem_of(file))
        if match and int(match["ms"]):
            times[int(match["ms"])] = file
            names.add((file.parent, match["name"]))
        else:
            times[0] = file
    # Each time occurs once, and one file of the same name has no time.
    if len(times) < len(files) or len(files) <= MIN_PHASES or 0 not in times:
        return ()
    if names != {(times[0].parent, stem_of(times[0]))}:
        return ()
    return tuple(file for _, file in sorted(times.items()))


def holds_one_slice(file: Path) -> bool:
    """Whether a file holds several frames of one slice."""
    try:
        shape, _ = read_header(file)
    except ValueError:
        return False
    return len(shape) > 3 and shape[:3].count(1) == 1 and max(shape[3:]) > 1


def nothing_in(folders: Iterable[Path]) -> str:
    """Say what folders must hold in which there is no image, and that what they hold are masks."""
    folders = list(folders)
    files = sorted(
        f for folder in folders for pattern in ("*", "*/*") for f in folder.glob(pattern)
    )
    masks = [file.name for file in files if MASK.fullmatch(stem_of(file))]
    if masks:
        return f"{folders[0]}: holds masks alone ({some(masks, 3)}); give the folder of the images."
    return f"{folders[0]}: must hold NIfTI files, DICOM files or a folder of each subject."


def find_masks(folder: Path) -> dict[str, list[Path]]:
    """Find the masks of each subject: those in its folder, and those named after it."""
    masks: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            for file in _files_below(entry):
                if MASK.fullmatch(stem_of(file)):
                    masks.setdefault(entry.name, []).append(file)
        elif (match := MASK.fullmatch(stem_of(entry))) and not has_packed_copy(entry):
            masks.setdefault(match["subject"], []).append(entry)
    return masks
