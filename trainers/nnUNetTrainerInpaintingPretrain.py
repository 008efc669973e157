from nnunet_ssp.methods import ContextRestoration
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerInpaintingPretrain(PretrainingTrainer):
    """Alias of context restoration, the variant that Dominic et al. chose: squares of 32 px in a 256 px patch."""

    method_class = ContextRestoration
