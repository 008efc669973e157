from nnunet_ssp.training.finetuning import FinetuningTrainer


class nnUNetTrainerFinetune(FinetuningTrainer):
    """Fine-tune a pretrained network with all weights trainable at once."""
