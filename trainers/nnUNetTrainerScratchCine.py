from nnunet_ssp.training.augmentation import CineAugmentation
from nnunet_ssp.training.finetuning import ScratchTrainer


class nnUNetTrainerScratchCine(ScratchTrainer, CineAugmentation):
    """The control of nnUNetTrainerFinetuneCine: from random weights, with de Mooij et al.'s augmentation."""
