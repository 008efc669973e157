#!/usr/bin/env bash
# Readers of the field take the spacing of one NIfTI file from different fields of its header.
#
# A header can give the spacing three times (sform, qform, pixdim) and names a unit. Valid files in which they differ:
#   acdc    spacing in qform and pixdim, sform of unit scales with code 2 (ACDC as distributed)
#   mnms2   spacing in the sform, pixdim 1 1 1 and no qform (as files of M&Ms-2)
#   metre   all three agree, in metres
#   code2   sform of code 2 and qform of code 1 with different places of the first voxel
# Seen (mm; SimpleITK 2.5.7, nibabel 5.4.2, MONAI 1.5.2 LoadImage, nnU-Net 2.8.1 SimpleITKIO / NibabelIO; slices first there):
#   acdc    SimpleITK 1.4 1.4 10, nibabel 1 1 1, MONAI 1 1 1, nnU-Net 10 1.4 1.4 / 1 1 1
#   mnms2   SimpleITK 1 1 1, nibabel 1.4 1.4 10, MONAI 1 1 1 (and it drops the place of the first voxel), nnU-Net 1 1 1 / 10 1.4 1.4
#   metre   SimpleITK 1.4 1.4 10, nibabel, MONAI 0.0014 0.0014 0.01, nnU-Net 10 1.4 1.4 / 0.01 0.0014 0.0014
#   code2   first voxel: SimpleITK the qform's, nibabel and MONAI the sform's
# So two readers of nnU-Net itself can plan one dataset for spacings that differ by a factor of ten or a thousand.
# The installation takes some minutes: MONAI and nnU-Net need PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nnunetv2==2.8.1 nibabel==5.4.2 SimpleITK==2.5.7
"$folder/venv/bin/pip" install --quiet --no-deps monai==1.5.2
export nnUNet_raw="$folder" nnUNet_preprocessed="$folder" nnUNet_results="$folder" OMP_NUM_THREADS=1
PATH="$folder/venv/bin:$PATH" python -W ignore - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.transforms import LoadImage
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

folder = Path(sys.argv[1])
voxels = np.arange(20 * 24 * 4, dtype=np.int16).reshape(20, 24, 4)
affine = np.diag([-1.4, -1.4, 10, 1])
affine[:3, 3] = 100, 80, -40
unit = affine / np.array([1.4, 1.4, 10, 1])


def save(name, sform, qform, zooms, codes, unit_of_length="mm"):
    image = nibabel.Nifti1Image(voxels, None)
    header = image.header
    header.set_qform(qform, codes[0])
    header.set_sform(sform, codes[1])
    header["pixdim"][1:4] = zooms
    header["qform_code"], header["sform_code"] = codes
    header.set_xyzt_units(unit_of_length)
    nibabel.save(nibabel.Nifti1Image(voxels, None, header), folder / f"{name}.nii")
    return folder / f"{name}.nii"


def metre(matrix):
    return np.diag([1e-3, 1e-3, 1e-3, 1]) @ matrix


elsewhere = affine.copy()
elsewhere[:3, 3] += 25
files = {
    "acdc": save("acdc", unit, affine, (1.4, 1.4, 10), (1, 2)),
    "mnms2": save("mnms2", affine, None, (1, 1, 1), (0, 1)),
    "metre": save("metre", metre(affine), metre(affine), (0.0014, 0.0014, 0.01), (1, 1), "meter"),
    "code2": save("code2", elsewhere, affine, (1.4, 1.4, 10), (1, 2)),
}
seen = {}
for name, file in files.items():
    by_itk, by_nibabel = sitk.ReadImage(str(file)), nibabel.load(file)
    monai = np.asarray(LoadImage(image_only=True)(str(file)).affine)
    spacings = {
        "SimpleITK": by_itk.GetSpacing(),
        "nibabel": np.linalg.norm(by_nibabel.affine[:3, :3], axis=0),
        "MONAI": np.linalg.norm(monai[:3, :3], axis=0),
        "nnU-Net SimpleITKIO": SimpleITKIO().read_images([str(file)])[1]["spacing"],
        "nnU-Net NibabelIO": NibabelIO().read_images([str(file)])[1]["spacing"],
    }
    lps = np.array([-1, -1, 1])
    places = {"SimpleITK": by_itk.GetOrigin() * lps, "nibabel": by_nibabel.affine[:3, 3], "MONAI": monai[:3, 3]}
    seen[name] = (spacings, places)
    for tool, spacing in spacings.items():
        place = f", first voxel at {np.round(places[tool], 3).tolist()}" if tool in places else ""
        print(f"{name:6} {tool:20} {' '.join(f'{s:.4g}' for s in spacing)}{place}")

true, ones, thousandth = (1.4, 1.4, 10), (1, 1, 1), (0.0014, 0.0014, 0.01)
expected = {
    "acdc": (true, ones, ones, true[::-1], ones),
    "mnms2": (ones, true, ones, ones, true[::-1]),
    "metre": (true, thousandth, thousandth, true[::-1], thousandth[::-1]),
    "code2": (true, true, true, true[::-1], true[::-1]),
}
for name, wanted in expected.items():
    for (tool, found), spacing in zip(seen[name][0].items(), wanted):
        assert np.allclose(found, spacing, rtol=1e-4), (name, tool, found)
places = seen["code2"][1]
assert np.allclose(places["SimpleITK"], affine[:3, 3]) and np.allclose(places["nibabel"], elsewhere[:3, 3])
assert np.allclose(places["MONAI"], elsewhere[:3, 3])
assert np.allclose(seen["mnms2"][1]["MONAI"], 0)
PYTHON
