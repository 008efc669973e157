"""The trainers that nnU-Net calls, and what they are made of."""
