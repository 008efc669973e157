from nnunet_ssp.training.staged import FrozenTrainer


class nnUNetTrainerFinetuneFrozen(FrozenTrainer):
    """Freeze the loaded weights first, then train everything (Dominic et al.); control: nnUNetTrainerScratchFrozen."""
