from nnunet_ssp.staged import ScratchFrozenTrainer


class nnUNetTrainerScratchFrozen(ScratchFrozenTrainer):
    """The control of nnUNetTrainerFinetuneFrozen: its learning rates, from random weights."""
