"""Conversion of images, as hospitals and public datasets store them, to a folder of `nnUNet_raw`."""
