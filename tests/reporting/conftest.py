"""Fixtures of evaluations, whose pages and figures are drawn here."""

from tests.evaluation.conftest import dataset, nnunet, predict

__all__ = ["dataset", "nnunet", "predict"]
