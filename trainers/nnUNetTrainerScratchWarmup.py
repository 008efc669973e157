from nnunet_ssp.training.staged import ScratchWarmupTrainer


class nnUNetTrainerScratchWarmup(ScratchWarmupTrainer):
    """The control of nnUNetTrainerFinetuneWarmup: its learning rates, from random weights."""
