from nnunet_ssp.training.semisupervised import ScratchSemiTrainer


class nnUNetTrainerScratchSemi(ScratchSemiTrainer):
    """nnUNetTrainerFinetuneSemi from random weights; control: nnUNetTrainerScratchAveraged."""
