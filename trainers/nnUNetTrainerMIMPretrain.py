from nnunet_ssp.methods import MIM
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerMIMPretrain(PretrainingTrainer):
    """Masked image modelling: reconstruct the hidden blocks of an augmented slice."""

    method_class = MIM
