"""The trainers' phantom dataset, for tests that kill what trains on it."""

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
