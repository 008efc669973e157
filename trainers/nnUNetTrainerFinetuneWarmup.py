from nnunet_ssp.staged import WarmupTrainer


class nnUNetTrainerFinetuneWarmup(WarmupTrainer):
    """Warm up the decoder alone, then everything; control: nnUNetTrainerScratchWarmup."""
