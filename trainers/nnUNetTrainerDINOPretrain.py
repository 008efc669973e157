from nnunet_ssp.methods import DINO
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerDINOPretrain(PretrainingTrainer):
    """DINO: predict from small crops a momentum teacher's output for large ones."""

    method_class = DINO
