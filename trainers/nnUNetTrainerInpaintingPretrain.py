from nnunet_ssp.methods import ContextRestoration
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerInpaintingPretrain(PretrainingTrainer):
    """Dominic et al.'s choice: context restoration, Poisson-disc squares of 32 px in a 256 px patch."""

    method_class = ContextRestoration
