"""Scores of segmentations and the pages that show them."""
