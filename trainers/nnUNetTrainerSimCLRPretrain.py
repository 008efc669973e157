from nnunet_ssp.methods import SimCLR
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerSimCLRPretrain(PretrainingTrainer):
    """SimCLR: contrast the two views of a slice with all other views of the batch."""

    method_class = SimCLR
