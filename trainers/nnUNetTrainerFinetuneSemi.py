from nnunet_ssp.training.semisupervised import SemiTrainer


class nnUNetTrainerFinetuneSemi(SemiTrainer):
    """Fine-tune on labelled and, by a teacher's labels, unlabelled slices; control: nnUNetTrainerFinetuneAveraged."""
