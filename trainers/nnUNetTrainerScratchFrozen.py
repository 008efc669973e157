from nnunet_ssp.training.staged import ScratchFrozenTrainer


class nnUNetTrainerScratchFrozen(ScratchFrozenTrainer):
    """The control of nnUNetTrainerFinetuneFrozen: its learning rates, from random weights."""
