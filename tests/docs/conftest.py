"""The phantom dataset and the commands of the trainers' tests."""

from tests.trainers.conftest import prepared as prepared
from tests.trainers.conftest import preprocessed as preprocessed
