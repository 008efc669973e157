"""From images as a hospital or a public data set has them to a folder of `nnUNet_raw`."""
