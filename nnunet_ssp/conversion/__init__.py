"""Conversion of images, as hospitals and public data sets store them, to a folder of `nnUNet_raw`."""
