"""Self-supervised pretraining of nnU-Net's planned 2D network, through nnU-Net's own commands."""

__version__ = "0.1.0"
