from nnunet_ssp.training.finetuning import ScratchTrainer


class nnUNetTrainerScratch(ScratchTrainer):
    """The control of fine-tuning: stock nnU-Net from random weights, with the same settings."""
