from nnunet_ssp.methods import PCL
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerPCLPretrain(PretrainingTrainer):
    """Positional contrastive learning: slices at nearly the same height of the heart are positives."""

    method_class = PCL
