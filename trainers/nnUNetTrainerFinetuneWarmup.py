from nnunet_ssp.training.staged import WarmupTrainer


class nnUNetTrainerFinetuneWarmup(WarmupTrainer):
    """Warm up the decoder alone, then everything; control: nnUNetTrainerScratchWarmup."""
