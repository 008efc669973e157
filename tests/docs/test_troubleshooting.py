"""The messages that `docs/troubleshooting.md` quotes are ones that the code prints, ours or the installed nnU-Net's."""

from __future__ import annotations

import ast
import re
import zipfile
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nnunetv2.utilities.utils
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import join, load_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ssp.files.bundles import CARD

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
IN_A_ZIP = "file in archive is not in a subdirectory"
PYTORCH = ("CUDA out of memory", "Found no NVIDIA driver", IN_A_ZIP)  # written in C++
# Messages of others whose rows begin with the remedy.
OTHERS = (
    "Could not find requested nnunet trainer ...",
    "`torch.jit.interface` is deprecated",
    "Key ... is missing in the pretrained model weights",
)
HOLE = "\0"  # a value in an f-string


def strings(file: Path) -> list[str]:
    """The texts of a file but for docstrings, with f-strings' values left open."""
    found = []
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    alone = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if node in alone:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else HOLE for p in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def source(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """All texts of this package, and those of the files of others that print what the page quotes."""
    own = [
        file
        for folder in ("nnunet_ssp", "dataset_conversion")
        for file in (ROOT / folder).rglob("*.py")
    ]
    others = [
        source(name)
        for name in (
            "nnunetv2.utilities.dataset_name_id_conversion",
            "nnunetv2.utilities.find_objects",
            "nnunetv2.run.load_pretrained_weights",
            "nnunetv2.run.run_training",
            "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
            "torch.jit._script",
            "batchgenerators.dataloading.nondet_multi_threaded_augmenter",
        )
    ]
    return {
        whose: "\n".join(text for file in files for text in strings(file))
        for whose, files in (("ours", own), ("others'", others))
    }


def quoted() -> list[tuple[str, str]]:
    """Each message of the page, with whose it is as the page says: ours, others' or Python's."""
    rows = re.findall(r"^\| (`.+?) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for message, remedy in rows:
        message = message.strip("`").strip()
        theirs = message in OTHERS or remedy.startswith(("nnU-Net's:", "nnU-Net's,"))
        python = remedy.startswith("Python's")
        found.append((message, "others'" if theirs else "Python's" if python else "ours"))
        found += [(own, "others'") for own in re.findall(r"nnU-Net's `([A-Z][^`]*ID)`", remedy)]
    return found


def is_printed(message: str, printed: str) -> bool:
    pattern = "[^\n]*".join(map(re.escape, message.split("...")))
    return re.search(pattern, printed) is not None


@pytest.mark.parametrize(("message", "whose"), quoted())
def test_messages_are_printed(message: str, whose: str, printed: dict[str, str]) -> None:
    if message not in PYTORCH and whose != "Python's":
        assert is_printed(message, printed[whose]), f"{whose}: {message}"


def test_pytorch_says_it_of_a_shared_pretraining(tmp_path: Path) -> None:
    """Stock nnU-Net gives the file of `-pretrained_weights` to PyTorch as it is."""
    with zipfile.ZipFile(tmp_path / "heart.zip", "w") as archive:
        archive.writestr(CARD, "{}")
    assert "torch.load(fname" in source("nnunetv2.run.load_pretrained_weights").read_text("utf-8")
    with pytest.raises(RuntimeError, match=IN_A_ZIP):
        torch.load(tmp_path / "heart.zip", weights_only=False)
    with pytest.raises(IsADirectoryError):
        torch.load(tmp_path, weights_only=False)


def test_pythons_messages_are_those_of_a_wrong_fold_in_nnunets_prediction(tmp_path: Path) -> None:
    """`nnUNetv2_predict` catches neither, so its traceback ends in them."""
    no_folder, word, no_fold, no_model, _ = (
        message for message, whose in quoted() if whose == "Python's"
    )
    code = source("nnunetv2.inference.predict_from_raw_data").read_text(encoding="utf-8")
    assert "args.f = [i if i == 'all' else int(i) for i in args.f]" in code
    assert "torch.load(join(model_training_output_dir, f'fold_{f}', checkpoint_name)" in code
    assert "checkpoint_name: str = 'checkpoint_final.pth'" in code
    assert "load_json(join(model_training_output_dir, 'dataset.json'))" in code
    with pytest.raises(TypeError) as unset:
        join(None, "Dataset114_X")  # type: ignore[call-overload]
    assert is_printed(no_folder, str(unset.value))
    with pytest.raises(FileNotFoundError) as untrained:
        load_json(str(tmp_path / "T__P__2d" / "dataset.json"))
    assert is_printed(no_model, str(untrained.value))
    with pytest.raises(ValueError) as wrong:
        int("zero")
    assert is_printed(word, str(wrong.value))
    with pytest.raises(FileNotFoundError) as missing:
        torch.load(tmp_path / "fold_9" / "checkpoint_final.pth")
    assert is_printed(no_fold, str(missing.value))


def test_pythons_message_is_that_of_images_without_a_channel_in_nnunets_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net lists a case without files, and takes the name of the first."""
    *_, no_channel = (message for message, whose in quoted() if whose == "Python's")
    monkeypatch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)
    (tmp_path / "patient7.nii.gz").touch()
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.dataset_json = {"file_ending": ".nii.gz"}
    with pytest.raises(IndexError) as unnumbered:
        predictor._manage_input_and_output_lists(str(tmp_path), str(tmp_path / "out"))
    assert is_printed(no_channel, str(unnumbered.value))


def test_the_check_sees_what_is_not_printed(printed: dict[str, str]) -> None:
    whose = [who for _, who in quoted()]
    assert whose.count("ours") > 50 and whose.count("others'") > 6
    assert not is_printed("the features have ... evaporated", printed["ours"])
    assert not is_printed("One or more background workers are no longer alive", printed["ours"])
    assert not is_printed("the features have collapsed", printed["others'"])
