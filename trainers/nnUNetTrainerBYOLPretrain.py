from nnunet_ssp.methods import BYOL
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerBYOLPretrain(PretrainingTrainer):
    """BYOL: predict from one crop a momentum teacher's projection of another."""

    method_class = BYOL
