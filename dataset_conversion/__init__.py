"""From public and hospital cine data sets to nnU-Net's raw format."""
