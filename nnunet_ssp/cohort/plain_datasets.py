"""nnU-Net datasets without a `cases.csv`: cases, subjects and images as their folders tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssp.cohort.cases import Case, subject_of
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_all_be_plain
from nnunet_ssp.files.nifti import Array, read_nifti
from nnunet_ssp.files.soundness import check_sound


@dataclass(frozen=True)
class PlainCase(Case):
    """A case with known name, subject, folder and image, and nothing else."""

    image: Path = Path()

    @property
    def labelled(self) -> bool:
        """Whether nnU-Net has a mask of it; a test case counts as labelled, too."""
        return self.image.parent.name != "imagesUn"

    @property
    def subject_key(self) -> str:
        """The subject; there is one source only."""
        return self.subject


def read_plain_cases(raw: Path, pattern: str | None) -> dict[str, Case]:
    """List the cases of imagesTr (or of `dataset.json`), imagesUn and imagesTs.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        pattern: Regular expression that finds the subject in a case's name; None takes each case for a subject.

    Raises:
        FileNotFoundError: There is no `dataset.json`.
        ValueError: It is none of nnU-Net's, or the pattern does not match a case.
    """
    file = raw / "dataset.json"
    try:
        content = read_json(file, dict)
        ending = str(content["file_ending"])
        named = {
            case: raw / entry["images"][0] for case, entry in content.get("dataset", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: not a dataset.json of nnU-Net ({error!r}).") from error
    found: dict[str, Case] = {}
    for part in ("imagesTs", "imagesUn", "imagesTr"):
        images = {
            image.name.removesuffix(ending)[:-5]: image
            for image in sorted((raw / part).glob(f"[!.]*_0000{ending}"))
        }
        must_all_be_plain(named, "case", str(file))
        for case, image in (named or images if part == "imagesTr" else images).items():
            found[case] = _plain_case(case, image, part, pattern)
    return found


def _plain_case(case: str, image: Path, part: str, pattern: str | None) -> PlainCase:
    return PlainCase(
        case=case,
        subject=subject_of(case, {}, pattern),
        source="",
        source_frame=0,
        split="test" if part == "imagesTs" else "train",
        frame=0,
        n_frames=1,
        phase="",
        base="unknown",
        vendor="",
        centre="",
        scanner="",
        field="",
        pathology="",
        image=image,
    )


def read_stack(image: Path) -> tuple[Array, Array]:
    """Read an image of any of nnU-Net's formats as a stack of slices.

    Returns:
        The first volume (X, Y, Z), and its spacing (3,); Z is 1 for a 2D image, whose colours become one mean.

    Raises:
        ValueError: The file cannot be read.
    """
    if image.name.endswith((".nii", ".nii.gz")):
        voxels, affine = read_nifti(image)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    else:
        import SimpleITK

        try:
            check_sound(image)
            read = SimpleITK.ReadImage(str(image))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{image}: the image cannot be read.") from error
        array = SimpleITK.GetArrayFromImage(read)
        if read.GetNumberOfComponentsPerPixel() > 1:
            array = array.mean(axis=-1)
        voxels, spacing = array.T, np.array([*read.GetSpacing()[:3], 1.0][:3])
    while voxels.ndim > 3:
        voxels = voxels[..., 0]
    return voxels.reshape(*voxels.shape, *[1] * (3 - voxels.ndim)), spacing
