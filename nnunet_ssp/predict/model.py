"""A trained nnU-Net, checked before anything of it is used: a folder of results, or an exported zip."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_ssp.evaluation.for_new_patients import segments
from nnunet_ssp.evaluation.labels import Labels, read_labels
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.atomic import TEMPORARY
from nnunet_ssp.files.contents import shown
from nnunet_ssp.files.digests import add_file
from nnunet_ssp.files.names import is_plain, must_be_plain
from nnunet_ssp.files.nnunet import configuration_of, read_dataset, read_plans
from nnunet_ssp.nnunet import dataset_folder, nnunet_folder

FOLD = re.compile(r"fold_(all|\d{1,4})")
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class TrainedModel:
    """A trained model that fits short-axis cine."""

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    labels: Labels
    # Equal for equal weights, plans and folds, wherever they are
    digest: str


@dataclass(frozen=True)
class Wanted:
    """The choice among several models, as in `nnUNetv2_predict`; None leaves it open."""

    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None

    def fits(self, name: str) -> bool:
        """Whether a folder's name, `TRAINER__PLANS__CONFIGURATION`, is that of the model."""
        parts = name.split("__")
        wanted = (self.trainer, self.plans, self.configuration)
        return len(parts) == 3 and all(
            want is None or want == part for want, part in zip(wanted, parts, strict=True)
        )


def results_folder(dataset: str, wanted: Wanted) -> Path:
    """Return the folder of a dataset's only model of that kind in nnUNet_results.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    base = dataset_folder(nnunet_folder("nnUNet_results"), dataset)
    held = sorted(f.name for f in base.iterdir() if f.is_dir() and (f / "plans.json").is_file())
    fitting = [name for name in held if wanted.fits(name) and (wanted.trainer or segments(name))]
    return base / _only_one(fitting, held, base)


def _only_one(fitting: Sequence[str], held: Sequence[str], where: Path) -> str:
    if not fitting:
        raise FileNotFoundError(
            f"{where}: no trained model that -tr, -p and -c name; found {', '.join(held) or 'none'}."
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{where}: -tr, -p and -c must name one trained model of {', '.join(fitting)}; {_words(fitting[0])} "
            "names the first."
        )
    return fitting[0]


def _words(name: str) -> str:
    """Return the options that name a model, by its folder `TRAINER__PLANS__CONFIGURATION`."""
    return shlex.join(chain(*zip(("-tr", "-p", "-c"), name.split("__"), strict=True)))


def models_in_words() -> str:
    """Return the trained models in nnUNet_results, each as the options that name it."""
    base = os.environ.get("nnUNet_results")
    files = Path(base).glob("Dataset[0-9][0-9][0-9]_*/*/plans.json") if base else ()
    names = sorted((file.parts[-3][7:10], file.parts[-2]) for file in files)
    kept = [(n, name) for n, name in names if Wanted().fits(name) and segments(name)]
    listed = [f"-d {int(number)} {_words(name)}" for number, name in kept]
    return f"in nnUNet_results are: {'; '.join(listed) or 'none'}"


def refuse_fold(path: Path, typed: str) -> None:
    """Refuse a fold's folder or checkpoint in place of the model's folder.

    Args:
        path: As `-m` named it.
        typed: The command, as a POSIX shell takes it.

    Raises:
        ValueError: Names the folder above, and the command with it.
    """
    file = path.suffix == ".pth" and path.is_file()
    place = (path.parent if file else path).resolve()
    fold, above = FOLD.fullmatch(place.name), place.parent
    if not fold or not (above / "plans.json").is_file():
        if file:
            raise ValueError(
                f"{path}: a checkpoint alone; -m takes a folder of nnUNet_results, TRAINER__PLANS__CONFIGURATION, "
                "in which are plans.json, dataset.json and fold_0."
            )
        return
    words = shlex.split(typed)
    words = [str(above) if Path(word).expanduser() == path else word for word in words]
    if not {"-f", "--folds"} & {*words}:
        words += ["-f", fold[1]]
    if file and path.name != "checkpoint_final.pth" and "-chk" not in words:
        words += ["-chk", path.name]
    kind = "a checkpoint" if file else "the folder of one fold"
    raise ValueError(f"{path}: {kind}; -m takes the folder above {place.name}: {shlex.join(words)}")


@contextmanager
def model_folder(path: Path, wanted: Wanted, scratch: Path) -> Iterator[Path]:
    """Yield the folder of a trained model; that of a zip is there until the block ends.

    Args:
        path: The folder, or a zip of `nnUNetv2_export_model_to_zip`.
        wanted: Which model of the zip.
        scratch: Existing folder for what the zip holds.

    Raises:
        FileNotFoundError: There is no such folder or zip, or no such model in the zip.
        ValueError: The zip is damaged or names files outside of its folder.
    """
    if path.is_dir():
        yield path
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no trained model here, neither a folder nor a zip.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: must be a folder of nnUNet_results or an exported zip.")
    with TemporaryDirectory(prefix=f"{TEMPORARY}-model-", dir=scratch) as temporary:
        try:
            folder = _unpack(path, wanted, Path(temporary))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"{path}: the zip is damaged ({error}).") from error
        yield folder


def _unpack(path: Path, wanted: Wanted, target: Path) -> Path:
    """Unpack what prediction needs of one model; nothing else of the zip is written."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        for info in members:
            parts = info.filename.split("/")
            if not all(is_plain(part) for part in parts):
                raise ValueError(
                    f"{path}: holds {shown(info.filename)}, and every name must stay in its folder."
                )
        held = sorted(
            {parent for info in members for parent in [info.filename.rpartition("/")[0]]
             if info.filename.endswith("/plans.json")}
        )  # fmt: skip
        fitting = [name for name in held if wanted.fits(name.rpartition("/")[2])]
        inside = _only_one(fitting, held, path)
        pattern = re.compile(
            rf"{re.escape(inside)}/(plans\.json|dataset\.json|{FOLD.pattern}/[^/]+\.pth)"
        )
        kept = [info for info in members if pattern.fullmatch(info.filename)]
        if any(info.flag_bits & 1 for info in kept):
            raise ValueError(f"{path}: must not be encrypted.")
        needed, free = sum(info.file_size for info in kept), shutil.disk_usage(target).free
        if needed > free:
            raise ValueError(
                f"{path}: unpacked it needs {needed / 1e9:.1f} GB, and {target.parent} has {free / 1e9:.1f} GB left."
            )
        for info in kept:
            file = target / info.filename.removeprefix(f"{inside}/")
            file.parent.mkdir(exist_ok=True)
            with archive.open(info) as packed, open(file, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, CHUNK)
    return target


def check_model(
    folder: Path,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    named: Mapping[str, str | None] | None = None,
    trust: bool = False,
) -> TrainedModel:
    """Check that a trained model is whole and fits short-axis cine.

    Args:
        folder: With `plans.json`, `dataset.json` and the folds.
        folds: Numbers or `all`; by default every numbered fold that has the checkpoint, else `all`.
        checkpoint: File name in each fold.
        named: Class of `LV`, `MYO` and `RV`; None finds it by the name.
        trust: Whether a checkpoint may run code and plans may name any class.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the model does not fit; names the file and the rule.
    """
    must_be_plain(checkpoint, "-chk")
    plans = read_plans(folder / "plans.json", trust)
    dataset = read_dataset(folder / "dataset.json", ("labels", "file_ending"))
    chosen = _folds(folder, folds, checkpoint)
    files = [folder / f"fold_{fold}" / checkpoint for fold in chosen]
    configurations = {_check_checkpoint(file, trust) for file in files}
    if len(configurations) > 1:
        raise ValueError(f"{folder}: the folds must be of one configuration and trainer.")
    ((configuration, _),) = configurations
    resolved = configuration_of(plans, configuration, str(folder / "plans.json"))
    if resolved.get("previous_stage"):
        raise ValueError(
            f"{folder}: a cascade, which needs the masks of {shown(resolved['previous_stage'])} as input; "
            "predict takes a model of images alone."
        )
    channels = dataset.get("modality") or dataset.get("channel_names") or {}
    if len(channels) != 1:
        names = ", ".join(map(shown, channels.values()))
        raise ValueError(
            f"{folder / 'dataset.json'}: {len(channels)} channels ({names}); a cine has one."
        )
    labels = read_labels(folder / "dataset.json", named)
    if "LV" not in labels.structures:
        raise ValueError(
            f"{folder / 'dataset.json'}: no class is named like the left ventricle (classes: "
            f"{', '.join(map(shown, labels.classes))}); --lv NAME says which it is."
        )
    if labels.overlap:
        raise ValueError(f"{folder / 'dataset.json'}: {labels.overlap}.")
    described = [folder / "plans.json", folder / "dataset.json"]
    return TrainedModel(folder, chosen, checkpoint, labels, _digest([*described, *files], chosen))


def _folds(folder: Path, wanted: Sequence[str] | None, checkpoint: str) -> tuple[str, ...]:
    matches = [FOLD.fullmatch(f.name) for f in folder.iterdir() if (f / checkpoint).is_file()]
    there = sorted((m[1] for m in matches if m), key=lambda fold: (fold == "all", len(fold), fold))
    if wanted:
        missing = [fold for fold in wanted if fold not in there]
        if missing or len(set(wanted)) < len(wanted):
            raise ValueError(
                f"`-f` (={' '.join(wanted)}) must name folds with {checkpoint} in {folder}, each once: "
                f"{', '.join(there) or 'there are none'}."
            )
        return tuple(wanted)
    numbered = [fold for fold in there if fold != "all"]
    if not there:
        raise FileNotFoundError(f"{folder}: no fold_0, fold_1, ... or fold_all with {checkpoint}.")
    return tuple(numbered or there)


def _check_checkpoint(file: Path, trust: bool) -> tuple[str, str]:
    """Check a checkpoint without running what it may hold; return its configuration and trainer."""
    content: dict[str, Any] = checkpoints.load(file, trust, mmap=True)
    arguments = content.get("init_args", {})
    for name, value in (
        ("trainer_name", content.get("trainer_name")),
        ("init_args.configuration", arguments.get("configuration")),
    ):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{file}: `{name}` is missing.")
    if not content["trainer_name"].isidentifier():
        raise ValueError(
            f"{file}: `trainer_name` (={shown(content['trainer_name'])}) must be that of a class."
        )
    if "method" in content.get("ssp", {}):
        raise ValueError(f"{file}: a pretraining, which segments nothing; fine-tune it first.")
    checkpoints.refuse_non_finite(file, content["network_weights"])
    return arguments["configuration"], content["trainer_name"]


def _digest(files: Sequence[Path], folds: Sequence[str]) -> str:
    digest = hashlib.blake2b(" ".join(folds).encode(), digest_size=16)
    for file in files:
        add_file(digest, file)
    return digest.hexdigest()
