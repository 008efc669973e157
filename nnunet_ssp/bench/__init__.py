"""Speed and memory of the trainers: `nnunet-ssp bench`."""
