"""Properties of all methods, and of the list of them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

import nnunet_ssp.methods
from nnunet_ssp.methods import METHODS, SETTINGS, Dense, Method
from nnunet_ssp.settings import PretrainingSettings

FOLDER = Path(nnunet_ssp.methods.__file__).parent


def concrete_methods() -> set[type[Method]]:
    """Every method in a file of the folder that a trainer could use."""
    modules = [
        import_module(f"nnunet_ssp.methods.{file.stem}") for file in FOLDER.glob("[a-z]*.py")
    ]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)
    }


def depth_below(cls: type, base: type) -> int:
    """Number of classes on the longest way from a class to its base."""
    if cls is base:
        return 0
    return 1 + max(depth_below(b, base) for b in cls.__bases__ if issubclass(b, base))


def run(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_method_is_listed() -> None:
    assert set(METHODS) == concrete_methods()
    assert set(SETTINGS) == {method.settings_class for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_complete(method: type[Method]) -> None:
    assert method.transfers in ("encoder", "encoder+decoder")
    assert method.paper
    assert issubclass(method.settings_class, PretrainingSettings)
    assert set(method.references) <= {*method.curves, *method.train_curves, *method.val_curves}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_in_its_own_file(method: type[Method]) -> None:
    """Nothing stands between it and the contract but one class of helpers."""
    assert depth_below(Method, nn.Module) == 1
    assert depth_below(method, Method) <= 2
    assert depth_below(method.settings_class, PretrainingSettings) <= 2
    assert {"draw", "forward"} <= vars(method).keys()


@pytest.mark.parametrize("method", METHODS)
def test_where_pictures_go_and_when(method: type[Method]) -> None:
    pictures = method.pictures
    assert pictures.change == method.reconstructs  # views do not change
    folder = "movement" if method is Dense else "reconstructions"
    file = f"{folder}/epoch_007.png" if method.reconstructs else "views.png"
    assert pictures.file.format(epoch=7) == file
    assert ("means nothing: no loss" in pictures.caption) == (method.__name__ == "MIM")
    words = "after 7 epochs" if method.reconstructs else "as the encoder sees them"
    assert (
        pictures.title.format(slices="validation", epochs="7 epochs")
        == f"validation slices {words}"
    )


def test_methods_import_no_nnunet() -> None:
    code = "import sys; from nnunet_ssp.methods import MIM; print(MIM.__name__, 'nnunetv2' in sys.modules)"
    assert run(code) == "MIM False"


def test_settings_of_methods_are_known_before_any_method_is_imported() -> None:
    code = (
        "import sys; from nnunet_ssp.settings import FinetuningSettings, override\n"
        "override(FinetuningSettings(), 'num_epochs=3'); print('nnunet_ssp.methods' in sys.modules)\n"
        "print(override(FinetuningSettings(), 'mask_ratio=0.6 teacher_momentum=1')[1])"
    )
    assert run(code) == "False\n['mask_ratio', 'teacher_momentum']"
