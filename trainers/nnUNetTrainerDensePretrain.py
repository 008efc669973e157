from nnunet_ssp.methods import Dense
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerDensePretrain(PretrainingTrainer):
    """Dense pretraining: find points of one view again in another, and tell from one frame what moves."""

    method_class = Dense
