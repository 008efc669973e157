from nnunet_ssp.augmentation import CineAugmentation
from nnunet_ssp.finetuning import ScratchTrainer


class nnUNetTrainerScratchCine(ScratchTrainer, CineAugmentation):
    """The control of nnUNetTrainerFinetuneCine: from random weights, with de Mooij et al.'s augmentation."""
