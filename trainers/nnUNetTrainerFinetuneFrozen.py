from nnunet_ssp.training.staged import FrozenTrainer


class nnUNetTrainerFinetuneFrozen(FrozenTrainer):
    """Hold what was loaded still, then train everything (Dominic et al.); control: nnUNetTrainerScratchFrozen."""
