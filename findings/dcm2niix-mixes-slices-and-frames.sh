#!/usr/bin/env bash
# dcm2niix 1.0.20260724 mixes the slices and frames of a classic MR cine whose images are numbered slice by slice.
#
# Input: one series of 4 slices x 12 frames, a file for each. InstanceNumber counts all frames of the first slice, then
# those of the second. ImagePositionPatient and TriggerTime of every file are right; DICOM attaches no meaning to the
# order of InstanceNumber (PS3.3, C.7.6.1). With Manufacturer SIEMENS or CANON_MEC the NIfTI file has the right shape, but
# its third axis does not hold the slices: each "volume" has several frames of one slice. Exit status 0; one warning asks
# to check whether slices are flipped. With GE, without Manufacturer, or numbered frame by frame, the same images are right.
#
# Seen: 4D (20, 24, 4, 12); in the first volume of the SIEMENS file slices [0, 0, 0, 0] of frames [3, 2, 1, 0].
# So check the order before such files are used for training: neighbouring slices then change like neighbouring frames.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dcm2niix==1.0.20260724 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6
PATH="$folder/venv/bin:$PATH" python - "$folder" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROOT = Path(sys.argv[1])
COLUMNS, ROWS, SLICES, FRAMES = 20, 24, 4, 12
NORMAL = np.array([-1, 1, -1]) / np.sqrt(3)
ALONG_ROW = np.cross(NORMAL, [0, 0, 1]) / np.linalg.norm(np.cross(NORMAL, [0, 0, 1]))
ALONG_COLUMN = np.cross(NORMAL, ALONG_ROW)


def write_cine(folder: Path, manufacturer: str, slice_by_slice: bool) -> None:
    """Every pixel of slice z in frame t is 100 z + t."""
    folder.mkdir()
    study, series, reference = generate_uid(), generate_uid(), generate_uid()
    for z, t in np.ndindex(SLICES, FRAMES):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.SeriesNumber = reference, 7
        image.InstanceNumber = z * FRAMES + t + 1 if slice_by_slice else t * SLICES + z + 1
        image.PatientID, image.Modality, image.Manufacturer = "phantom", "MR", manufacturer
        image.ProtocolName, image.PatientPosition = "cine", "HFS"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.AcquisitionDate, image.AcquisitionTime = "20200101", f"1010{z:02d}.000000"
        image.TriggerTime = f"{40.5 * t:.1f}"
        image.ImagePositionPatient = [f"{v:.6f}" for v in 8 * z * NORMAL]
        image.ImageOrientationPatient = [f"{v:.8f}" for v in (*ALONG_ROW, *ALONG_COLUMN)]
        image.PixelSpacing, image.SliceThickness = [1.4, 1.4], 8
        image.Rows, image.Columns, image.SamplesPerPixel = ROWS, COLUMNS, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = np.full((ROWS, COLUMNS), 100 * z + t, np.uint16).tobytes()
        image.save_as(folder / f"{z:02d}_{t:02d}.dcm", enforce_file_format=True)


for manufacturer, slice_by_slice, right in (
    ("SIEMENS", True, False),
    ("CANON_MEC", True, False),
    ("SIEMENS", False, True),
    ("GE MEDICAL SYSTEMS", True, True),
):
    name = f"{manufacturer.split()[0]}, numbered {'slice by slice' if slice_by_slice else 'frame by frame'}"
    folder = ROOT / name.replace(" ", "_")
    write_cine(folder, manufacturer, slice_by_slice)
    command = ["dcm2niix", "-z", "n", "-f", "cine", "-o", str(ROOT), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (file,) = ROOT.glob("cine*.nii")
    values = np.asarray(nibabel.load(file).dataobj)[0, 0]
    file.unlink()
    print(f"{name}: {values.shape}, first volume has slices {(values[:, 0] // 100).tolist()} of frames {(values[:, 0] % 100).tolist()}")
    z, t = np.meshgrid(np.arange(SLICES), np.arange(FRAMES), indexing="ij")
    # The slices may be stored in either direction.
    found = any(np.array_equal(values, 100 * order + t) for order in (z, z[::-1]))
    assert found == right, "dcm2niix behaves differently now"
PYTHON
