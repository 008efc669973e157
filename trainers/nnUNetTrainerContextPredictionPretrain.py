from nnunet_ssp.methods import ContextPrediction
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerContextPredictionPretrain(PretrainingTrainer):
    """Context prediction (Dominic et al.): fill in squares that are set to the mean."""

    method_class = ContextPrediction
