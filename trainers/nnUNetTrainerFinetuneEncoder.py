from nnunet_ssp.training.finetuning import FinetuneEncoderTrainer


class nnUNetTrainerFinetuneEncoder(FinetuneEncoderTrainer):
    """Fine-tune from the pretrained encoder alone, whatever else the file holds; control: nnUNetTrainerScratch."""
