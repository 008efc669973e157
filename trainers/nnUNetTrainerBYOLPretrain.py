from nnunet_ssp.methods import BYOL
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerBYOLPretrain(PretrainingTrainer):
    """BYOL: predict from one crop what a momentum teacher makes of another."""

    method_class = BYOL
