from nnunet_ssp.training.augmentation import NoAugmentation
from nnunet_ssp.training.finetuning import ScratchTrainer


class nnUNetTrainerScratchNoDA(ScratchTrainer, NoAugmentation):
    """The control of nnUNetTrainerFinetuneNoDA: from random weights, without augmentation."""
