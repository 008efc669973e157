from nnunet_ssp.methods import ContextRestoration
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerContextRestorationPretrain(PretrainingTrainer):
    """Context restoration (Dominic et al.): put back squares that have swapped places."""

    method_class = ContextRestoration
