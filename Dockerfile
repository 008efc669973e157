# nnunet-ssp with nnU-Net and PyTorch; see docs/platforms.md. Written without a way to build it: linted by hadolint, untested.
FROM python:3.12-slim

# `cpu` takes PyTorch without CUDA: 1.8 GB in place of 6.5.
ARG TORCH=cuda

WORKDIR /opt/nnunet-ssp
COPY pyproject.toml README.md LICENSE ./
COPY nnunet_ssp nnunet_ssp
COPY trainers trainers
COPY dataset_conversion dataset_conversion

# nnU-Net's dependencies have no wheel for some platforms, so a compiler is there while they are installed.
# Which versions work together is said in pyproject.toml.
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ \
    && if [ "$TORCH" = cpu ]; then \
         pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu; \
       fi \
    && pip install --no-cache-dir '.[study]' \
    && apt-get purge -y gcc g++ \
    && apt-get autoremove -y \
    && rm -rf /var/lib/apt/lists/*

ENV nnUNet_raw=/data/nnUNet_raw \
    nnUNet_preprocessed=/data/nnUNet_preprocessed \
    nnUNet_results=/data/nnUNet_results \
    nnUNet_extTrainer=/usr/local/lib/python3.12/site-packages/nnunet_ssp/trainers

RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
CMD ["nnunet-ssp", "doctor"]
