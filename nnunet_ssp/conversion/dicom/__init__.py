"""The short-axis cine in the DICOM files of a visit."""
