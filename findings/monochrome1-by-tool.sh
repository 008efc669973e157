#!/usr/bin/env bash
# The same MONOCHROME1 image (large stored values are dark) is positive or negative, depending on the tool that reads it.
#
# SimpleITK 2.5.7 (GDCM) returns MONOCHROME2 values: 2^BitsStored - 1 - stored. dcm2niix 1.0.20260724 and pydicom 3.0.2's
# pixel_array keep the stored values; dcm2niix writes nothing about it into the NIfTI file or its JSON. A cohort of which a
# part went through dcm2niix and a part through SimpleITK therefore holds negatives of the heart, in silence.
#
# Seen, first pixels of a row that is stored as 0, 1, 2 with 12 bits:
#   SimpleITK 4095, 4094, 4093 - pydicom 0, 1, 2 - dcm2niix 0, 1, 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dcm2niix==1.0.20260724 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6 SimpleITK==2.5.7
PATH="$folder/venv/bin:$PATH" python - "$folder" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

root = Path(sys.argv[1])
(root / "in").mkdir()
stored = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20)
study, series = generate_uid(), generate_uid()
for z in range(3):
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.SeriesNumber, image.InstanceNumber, image.PatientID = 7, z + 1, "phantom"
    image.Modality, image.Manufacturer, image.ProtocolName = "MR", "GE MEDICAL SYSTEMS", "cine"
    image.ImageType, image.PatientPosition = ["ORIGINAL", "PRIMARY", "M"], "HFS"
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 8 * z], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [1.4, 1.4], 8
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME1"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = stored.tobytes()
    image.save_as(root / "in" / f"{z}.dcm", enforce_file_format=True)

first = root / "in" / "0.dcm"
by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(first)))[0].astype(int)
by_pydicom = pydicom.dcmread(first).pixel_array.astype(int)
command = ["dcm2niix", "-z", "n", "-f", "cine", "-o", str(root), str(root / "in")]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
# dcm2niix stores rows from the bottom up.
by_dcm2niix = np.asarray(nibabel.load(root / "cine.nii").dataobj)[:, ::-1, 0].T.astype(int)
for name, pixels in (("SimpleITK", by_itk), ("pydicom", by_pydicom), ("dcm2niix", by_dcm2niix)):
    print(name, pixels[0, :3].tolist())
assert np.array_equal(by_itk, 4095 - stored.astype(int))
assert np.array_equal(by_pydicom, stored)
assert np.array_equal(by_dcm2niix, stored)
assert "MONOCHROME1" not in (root / "cine.json").read_text()
PYTHON
