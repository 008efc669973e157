"""Subjects, cases and folds: who is in a dataset, and who is trained, validated and tested on."""
