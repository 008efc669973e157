from nnunet_ssp.staged import ScratchWarmupTrainer


class nnUNetTrainerScratchWarmup(ScratchWarmupTrainer):
    """The control of nnUNetTrainerFinetuneWarmup: its learning rates, from random weights."""
