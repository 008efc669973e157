from nnunet_ssp.methods import DINO
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerDINOPretrain(PretrainingTrainer):
    """DINO: predict from small crops what a momentum teacher sees in large ones."""

    method_class = DINO
