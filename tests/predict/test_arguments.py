from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from nnunet_ssp.predict.arguments import add_arguments
from nnunet_ssp.predict.command import predict


def test_every_argument_is_one_of_the_function() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["-i", "a", "b", "-o", "out", "-m", "model", "-f", "0", "all", "--frames", "3", "12"]
    found = vars(parser.parse_args(words))
    parameters = dict(inspect.signature(predict).parameters)
    del parameters["again"]  # what was typed, which `cli` adds
    assert found.keys() == parameters.keys()
    assert found["inputs"] == [Path("a"), Path("b")]
    assert (found["folds"], found["frames"]) == (["0", "all"], [3, 12])
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty and name not in ("folds", "frames", "model"):
            assert found[name] == parameter.default or found[name] == list(parameter.default), name
