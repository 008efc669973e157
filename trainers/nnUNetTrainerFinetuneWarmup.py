from nnunet_ssp.training.staged import WarmupTrainer


class nnUNetTrainerFinetuneWarmup(WarmupTrainer):
    """Warm up the decoder alone, then warm up and train everything; control: nnUNetTrainerScratchWarmup."""
