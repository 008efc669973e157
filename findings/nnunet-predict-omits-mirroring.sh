#!/usr/bin/env bash
# nnU-Net 2.8.1 keeps the arguments of a prediction beside the masks, but not those that decide about the labels.
#
# `predict_from_raw_data_args.json` is to tell "what was used to generate the prediction". It holds the arguments of
# `predict_from_files`: folders, numbers of processes, parts. Mirroring (`--disable_tta`), `-step_size`, folds and
# checkpoint are arguments of the predictor and are not in it, nor in the two files beside it. So two folders of masks,
# one with mirroring and one without, cannot be told apart, and a comparison of two models may be one of two options.
#
# Seen: the three JSON files of both predictions are equal but for the name of the output folder; the probabilities of one
# case differ by up to 0.65, with random weights.
# The installation takes some minutes: nnU-Net needs PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nnunetv2==2.8.1 nibabel==5.4.2
export nnUNet_raw="$folder/raw" nnUNet_preprocessed="$folder/preprocessed" nnUNet_results="$folder/results"
export OMP_NUM_THREADS=1 nnUNet_def_n_proc=1 nnUNet_n_proc_DA=1 nnUNet_compile=f
quietly() { "$@" >>"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }; }
PATH="$folder/venv/bin:$PATH"
python - <<'PYTHON'
import json
import os
from pathlib import Path

import nibabel
import numpy as np

dataset = Path(os.environ["nnUNet_raw"]) / "Dataset001_Plain"
for name in ("imagesTr", "labelsTr"):
    (dataset / name).mkdir(parents=True)
random = np.random.default_rng(0)
mask = np.zeros((64, 64, 5), np.uint8)
mask[16:48, 16:40] = 1
for case in "abcde":
    image = (mask * 100 + random.normal(200, 20, mask.shape)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1.4, 1.4, 8, 1])), dataset / "imagesTr" / f"{case}_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([1.4, 1.4, 8, 1])), dataset / "labelsTr" / f"{case}.nii.gz")
content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}, "numTraining": 5,
           "file_ending": ".nii.gz"}
(dataset / "dataset.json").write_text(json.dumps(content))
PYTHON
quietly nnUNetv2_plan_and_preprocess -d 1 -c 2d -np 1 -npfp 1
quietly python - <<'PYTHON'
# The weights are random: they need no training to tell mirroring.
import json
import os
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

prepared = Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_Plain"
plans, dataset = (json.loads((prepared / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
torch.manual_seed(0)
trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
trainer.initialize()
trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # as a training does: mirroring along both axes
base = Path(trainer.output_folder_base)
for name, content in (("plans.json", plans), ("dataset.json", dataset)):
    (base / name).write_text(json.dumps(content))
trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
PYTHON
predict=(nnUNetv2_predict -i "$nnUNet_raw/Dataset001_Plain/imagesTr" -d 1 -c 2d -f 0 -device cpu -npp 1 -nps 1
         --save_probabilities)
quietly "${predict[@]}" -o "$folder/one"
quietly "${predict[@]}" -o "$folder/two" --disable_tta
python - "$folder/one" "$folder/two" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

one, other = map(Path, sys.argv[1:])
files = sorted(file.name for file in one.glob("*.json"))
print("kept:", ", ".join(files))
for name in files:
    texts = [(folder / name).read_text().replace(str(folder), "OUT") for folder in (one, other)]
    assert texts[0] == texts[1], name
assert "mirror" not in (one / "predict_from_raw_data_args.json").read_text()
with_mirroring, without = (np.load(folder / "a.npz")["probabilities"] for folder in (one, other))
print("largest difference in probability:", float(np.abs(with_mirroring - without).max()))
assert np.abs(with_mirroring - without).max() > 0.01
PYTHON
