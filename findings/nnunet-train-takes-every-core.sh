#!/usr/bin/env bash
# nnU-Net 2.8.1: `nnUNetv2_train -device cpu` computes with a thread for every core, whatever OMP_NUM_THREADS says.
#
# The command sets PyTorch's number of threads to multiprocessing.cpu_count() before it makes the trainer. So trainings
# that are to run side by side, each with OMP_NUM_THREADS=1, take all cores each, and so do jobs that a scheduler gave
# some cores of a node. (`-device cuda` sets one thread.) A trainer may set the number again.
#
# Seen on two cores: OMP_NUM_THREADS=1, PyTorch alone 1 thread, in the training 2 threads. Needs two cores or more.
# The installation takes some minutes: nnU-Net needs PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nnunetv2==2.8.1 nibabel==5.4.2
export nnUNet_raw="$folder/raw" nnUNet_preprocessed="$folder/preprocessed" nnUNet_results="$folder/results"
export OMP_NUM_THREADS=1 nnUNet_def_n_proc=1 nnUNet_n_proc_DA=1 nnUNet_extTrainer="$folder/trainers"
PATH="$folder/venv/bin:$PATH"
mkdir "$folder/trainers"
cat >"$folder/trainers/nnUNetTrainerSaysThreads.py" <<'PYTHON'
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerSaysThreads(nnUNetTrainer):
    """Say with how many threads a training would compute, and train nothing."""

    def run_training(self):
        print("threads in training:", torch.get_num_threads())

    def perform_actual_validation(self, save_probabilities=False):
        pass

    def load_checkpoint(self, filename_or_checkpoint):
        pass
PYTHON
python - <<'PYTHON'
import json
import os
from pathlib import Path

import nibabel
import numpy as np

dataset = Path(os.environ["nnUNet_raw"]) / "Dataset001_Threads"
for name in ("imagesTr", "labelsTr"):
    (dataset / name).mkdir(parents=True)
affine = np.diag([1.4, 1.4, 8, 1])
mask = np.zeros((64, 64, 5), np.uint8)
mask[16:48, 16:48] = 1
image = (mask * 100 + np.random.default_rng(0).normal(200, 20, mask.shape)).astype(np.float32)
for case in "abcde":
    nibabel.save(nibabel.Nifti1Image(image, affine), dataset / "imagesTr" / f"{case}_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), dataset / "labelsTr" / f"{case}.nii.gz")
content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}, "numTraining": 5, "file_ending": ".nii.gz"}
(dataset / "dataset.json").write_text(json.dumps(content))
PYTHON
nnUNetv2_plan_and_preprocess -d 1 -c 2d -np 1 -npfp 1 >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
python -c 'import os, torch; print("cores:", os.cpu_count()); print("threads of PyTorch alone:", torch.get_num_threads())'
nnUNetv2_train 1 2d 0 -tr nnUNetTrainerSaysThreads -device cpu >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
grep "threads in training" "$folder/log"
cores=$(python -c 'import os; print(os.cpu_count())')
test "$cores" -ge 2 || { echo "one core: nothing to see"; exit 1; }
grep -qx "threads in training: $cores" "$folder/log"
