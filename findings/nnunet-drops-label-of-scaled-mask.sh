#!/usr/bin/env bash
# nnU-Net 2.8.1 turns a class into background, in silence, when nibabel 5.4.2 stored its mask under a uint8 header.
#
# A float64 mask with labels 0, 1, 2 that nibabel saves with the uint8 header of another image is scaled to the range of
# uint8: 1 is stored as 127 and reads as 127 * 2 / 255 = 0.996. nnU-Net's reader hands on 0.996 as float32, and its
# preprocessor casts to int8, which cuts off: class 1 becomes 0. Nothing is printed. (`--verify_dataset_integrity` finds it.)
# Under an int16 header 1 reads as 1.00002, which survives the cast.
#
# Seen: read values [0, 0.9960785, 2]; after DefaultPreprocessor labels [0, 2].
# The installation takes some minutes: nnU-Net needs PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nnunetv2==2.8.1 nibabel==5.4.2 SimpleITK==2.5.7
export nnUNet_raw="$folder/raw" nnUNet_preprocessed="$folder/preprocessed" nnUNet_results="$folder/results"
export OMP_NUM_THREADS=1 nnUNet_def_n_proc=1 nnUNet_n_proc_DA=1
PATH="$folder/venv/bin:$PATH"
python - <<'PYTHON'
import json
import os
from pathlib import Path

import nibabel
import numpy as np

dataset = Path(os.environ["nnUNet_raw"]) / "Dataset001_Scaled"
for name in ("imagesTr", "labelsTr"):
    (dataset / name).mkdir(parents=True)
affine = np.diag([1.4, 1.4, 8, 1])
mask = np.zeros((64, 64, 5))
mask[16:48, 16:48], mask[24:40, 24:40] = 1, 2
header = nibabel.Nifti1Image(mask.astype(np.uint8), affine).header
image = (mask * 100 + np.random.default_rng(0).normal(200, 20, mask.shape)).astype(np.float32)
for case in ("a", "b"):
    nibabel.save(nibabel.Nifti1Image(image, affine), dataset / "imagesTr" / f"{case}_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine, header), dataset / "labelsTr" / f"{case}.nii.gz")
content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "myocardium": 1, "cavity": 2},
           "numTraining": 2, "file_ending": ".nii.gz"}
(dataset / "dataset.json").write_text(json.dumps(content))
PYTHON
nnUNetv2_plan_and_preprocess -d 1 -c 2d -np 1 -npfp 1 >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
python - <<'PYTHON'
import os
from pathlib import Path

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

mask, _ = SimpleITKIO().read_seg(str(Path(os.environ["nnUNet_raw"]) / "Dataset001_Scaled/labelsTr/a.nii.gz"))
print("nnU-Net reads", np.unique(mask).tolist())
folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_Scaled/nnUNetPlans_2d"
_, prepared, _, _ = nnUNetDatasetBlosc2(str(folder), ["a"]).load_case("a")
labels = np.unique(np.asarray(prepared[:])).tolist()
print("after preprocessing", labels)
assert np.allclose(np.unique(mask), [0, 0.9960785, 2]) and 1 not in labels and 2 in labels
PYTHON
