from nnunet_ssp.training.averaging import ScratchAveragedTrainer


class nnUNetTrainerScratchAveraged(ScratchAveragedTrainer):
    """Train from random weights, and export the moving average of the weights."""
