from nnunet_ssp.finetuning import FinetuneEncoderTrainer


class nnUNetTrainerFinetuneEncoder(FinetuneEncoderTrainer):
    """Fine-tune from the pretrained encoder alone, whatever else the file holds; control: nnUNetTrainerScratch."""
