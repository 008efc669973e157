from nnunet_ssp.methods import ContextRestoration
from nnunet_ssp.training.pretraining import PretrainingTrainer


class nnUNetTrainerInpaintingPretrain(PretrainingTrainer):
    """Alias of context restoration, the task that Dominic et al. chose.

    In MRI they chose squares of 32 px in slices of 512 px, a sixteenth of the side. The default is an eighth of the
    planned patch (32 px of 256), as large as theirs in pixels; `mask_patch=16` is their share of 256.
    """

    method_class = ContextRestoration
