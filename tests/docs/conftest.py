"""The phantom dataset and the commands of the trainers' tests."""

from tests.training.conftest import command as command
from tests.training.conftest import prepared as prepared
from tests.training.conftest import preprocessed as preprocessed
