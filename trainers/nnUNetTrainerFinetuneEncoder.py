from nnunet_ssp.training.finetuning import FinetuneEncoderTrainer


class nnUNetTrainerFinetuneEncoder(FinetuneEncoderTrainer):
    """Fine-tune from the pretrained encoder alone, even if the file holds a decoder; control: nnUNetTrainerScratch."""
