from nnunet_ssp.augmentation import NoAugmentation
from nnunet_ssp.finetuning import ScratchTrainer


class nnUNetTrainerScratchNoDA(ScratchTrainer, NoAugmentation):
    """The control of nnUNetTrainerFinetuneNoDA: from random weights, without any augmentation."""
