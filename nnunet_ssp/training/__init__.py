"""The trainers that nnU-Net calls, and their parts."""
