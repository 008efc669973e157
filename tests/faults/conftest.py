"""Phantom dataset of the trainers, for tests that kill a training."""

from tests.training.conftest import (  # noqa: F401
    command,
    log,
    own_copy,
    prepared,
    preprocessed,
    pretrained,
    pretrained_once,
    runs,
)
