from nnunet_ssp.training.averaging import AveragedTrainer


class nnUNetTrainerFinetuneAveraged(AveragedTrainer):
    """Fine-tune, and export the moving average of the weights; control: nnUNetTrainerScratchAveraged."""
