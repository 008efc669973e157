from nnunet_ssp.training.augmentation import NoAugmentation
from nnunet_ssp.training.finetuning import FinetuningTrainer


class nnUNetTrainerFinetuneNoDA(FinetuningTrainer, NoAugmentation):
    """Fine-tune without augmentation and without mirroring in prediction (de Mooij et al., Table 4)."""
