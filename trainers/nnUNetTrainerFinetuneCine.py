from nnunet_ssp.augmentation import CineAugmentation
from nnunet_ssp.finetuning import FinetuningTrainer


class nnUNetTrainerFinetuneCine(FinetuningTrainer, CineAugmentation):
    """Fine-tune with de Mooij et al.'s augmentation in place of nnU-Net's."""
