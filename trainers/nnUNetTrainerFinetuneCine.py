from nnunet_ssp.training.augmentation import CineAugmentation
from nnunet_ssp.training.finetuning import FinetuningTrainer


class nnUNetTrainerFinetuneCine(FinetuningTrainer, CineAugmentation):
    """Fine-tune with de Mooij et al.'s augmentation in place of nnU-Net's."""
