"""`nnunet-ssp inspect`: the content of a checkpoint, and whether it fits a dataset's plans."""

from __future__ import annotations

import shlex
from pathlib import Path

from nnunet_ssp.cohort import privacy
from nnunet_ssp.console import count_of
from nnunet_ssp.files import checkpoints, saving
from nnunet_ssp.files.bundles import DRAWN, ENDING
from nnunet_ssp.files.contents import printable
from nnunet_ssp.files.names import is_plain, must_be_plain
from nnunet_ssp.files.nnunet import read_dataset, read_plans
from nnunet_ssp.launch import planning_command
from nnunet_ssp.network import is_alias, is_output_layer
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.training import chain, snapshots, transfer
from nnunet_ssp.training.adapters import Adaptation
from nnunet_ssp.training.evidence import gain_of
from nnunet_ssp.training.fitting import planned_network
from nnunet_ssp.training.two_files import inspect_two

_NOTHING = "  nothing about persons or the institution"


def inspect(
    checkpoint: str | Path,
    dataset: str | None = None,
    plans_name: str | None = None,
    configuration: str = "2d",
    trust: bool = False,
    private: bool = False,
    strip: str | Path | None = None,
    other: str | Path | None = None,
) -> int:
    """Print a checkpoint's record and, for a dataset, a table of the tensors that would be loaded.

    Args:
        checkpoint: The file; also a shared pretraining, or a file of safetensors.
        dataset: Id or name of the dataset.
        plans_name: Name of the dataset's plans; by default those of the checkpoint's name where the dataset has them,
            else nnU-Net's.
        configuration: Name of a configuration of these plans.
        trust: Whether to run code that the file or the dataset's plans ask for, see `checkpoints.load`.
        private: Whether to list only what the file reveals about persons and the institution.
        strip: New file for a checkpoint that does not reveal it; must not exist.
        other: A second file, to compare its tensors with, see `two_files.inspect_two`.

    Returns:
        1 when the checkpoint does not fit the dataset, holds NaN or infinity, or reveals what `strip` would remove;
        else 0.

    Raises:
        FileExistsError: The file to write exists.
        FileNotFoundError: The checkpoint, dataset or plans do not exist.
        ValueError: The file is not a checkpoint of nnU-Net's form, or the plans have no such configuration.
    """
    if other is not None:
        if private or strip is not None or dataset is not None:
            raise ValueError("inspect of two files takes no -d, --private or --strip.")
        return inspect_two(Path(checkpoint), Path(other), trust)
    if private or strip is not None:
        return reveal(Path(checkpoint), trust, None if strip is None else Path(strip))
    if Path(checkpoint).name in (snapshots.FOLDER, snapshots.BEFORE):
        return list_snapshots(Path(checkpoint), trust)
    pretrained = transfer.read(checkpoint, trust)
    name = None if dataset is None else _name_of(dataset)
    print("\n".join(map(printable, content_in_words(pretrained, name))))
    ranked = snapshots.beside(checkpoint, trust) if "method" in pretrained.ssp else []
    print("\n".join(map(printable, snapshots.ranking_in_words(ranked))), end="\n" * bool(ranked))
    if dataset is None:
        spoiled = checkpoints.non_finite(pretrained.weights)
        if spoiled:
            print(f"UNUSABLE: {checkpoints.non_finite_in_words(spoiled, len(pretrained.weights))}")
        return int(bool(spoiled))
    plans_name = plans_name or _plans_of(pretrained, dataset)
    comparison, adaptation = compare_with_dataset(
        pretrained, dataset, plans_name, configuration, trust
    )
    print(f"\nAgainst dataset {dataset}, {plans_name} {configuration}:")
    print("\n".join(f"  {line}" for line in comparison.table))
    verdicts = [f"DOES NOT FIT: {refusal}" for refusal in comparison.refusals] or ["fits"]
    if comparison.refusals and comparison.adaptable:
        verdicts.append(f"with adapt=yes: {adaptation.summary}")
    print("\n".join(f"  {line}" for line in [*map("note: {}".format, comparison.notes), *verdicts]))
    return int(bool(comparison.refusals))


def list_snapshots(folder: Path, trust: bool) -> int:
    """Print the snapshots in a folder, best linear probe first.

    Raises:
        FileNotFoundError: There are none.
    """
    ranked = snapshots.beside(folder, trust)
    if not ranked:
        raise FileNotFoundError(f"{folder} holds no snapshots of a pretraining.")
    print("\n".join(map(printable, snapshots.ranking_in_words(ranked))))
    return 0


def reveal(file: Path, trust: bool, strip: Path | None) -> int:
    """List what a checkpoint reveals about persons and the institution; write one without it, if `strip` is given.

    Returns:
        1 when there is something to strip that was not stripped, else 0.
    """
    if strip is not None and strip.exists():
        raise FileExistsError(f"{strip} exists already: choose another name for --strip.")
    content = checkpoints.load(file, trust)
    content.pop(DRAWN, None)
    found = privacy.findings(content)
    removed = [finding for finding in found if not finding.remains]
    lines = [f"{file}:", *(map(_line, found) if found else [_NOTHING])]
    if strip is not None:
        saving.save(strip, privacy.stripped(content))
        left = privacy.findings(checkpoints.load(strip, trust))
        lines += [
            f"{strip}, written without these; what it still reveals:",
            *(map(_line, left) if left else [_NOTHING]),
        ]
    elif removed:
        words = ("nnunet-ssp", "inspect", file, "--strip", file.with_stem(f"{file.stem}_stripped"))
        lines.append(f"To write a checkpoint without: {shlex.join(map(str, words))}")
    print("\n".join(map(printable, lines)))
    return int(bool(removed) and strip is None)


def _line(finding: privacy.Finding) -> str:
    return f"  {finding.what:8s} {finding.text}"


def content_in_words(pretrained: transfer.Pretrained, dataset: str | None = None) -> list[str]:
    """Return lines that describe the content of a checkpoint; a dataset to fine-tune on decides which gain is told."""
    fresh = transfer.fresh_keys(pretrained.weights)
    names = [k for k in pretrained.weights if not is_alias(k) and not is_output_layer(k)]
    kept = [name for name in names if name not in fresh]
    file = pretrained.file
    files = file.iterdir() if file.is_dir() else [file]
    size = sum(part.stat().st_size for part in files) / 1e6
    lines = [f"{pretrained.file} ({size:.0f} MB)"]
    ssp = pretrained.ssp
    if not ssp:
        alone = file.suffix == ENDING
        what = "weights alone, without a record" if alone else pretrained.origin
        lines.append(what if fresh else f"{what}: every tensor counts as trained")
    if "method" in ssp:
        seen = chain.data_in_words(ssp) or "unknown data"
        gain = gain_of(ssp, pretrained.epochs, pretrained.plans.get("dataset_name"), dataset)
        lines += [f"method: {ssp['method']}, pretrained on {seen}", gain]
    elif ssp:
        trainer, source = (ssp.get(name, "unknown") for name in ("trainer", "weights_from"))
        average = ", averaged weights" if ssp.get("exported") == "average" else ""
        lines += [f"{trainer}, started from {source}{average}"]
    if (snapshot := snapshots.described(file, ssp)) is not None:
        lines.append(f"a snapshot after {snapshot.epochs} of {snapshot.of} epochs")
    if "adapted" in ssp:
        lines.append(f"adapted to these plans: {ssp['adapted']}")
    if ssp.get("chain"):
        links = chain.links_of(ssp)
        lines.append(f"chain of {len(links)} trainings, this one the last:")
        lines += [f"  {line}" for line in chain.chain_in_words(links)]
        lines.append(f"  {count_of(len(chain.subjects_seen(links)), 'subject')} seen in all")
    encoder = sum(name.startswith("encoder.") for name in kept)
    rest = f"fresh: {len(names) - len(kept)} and the output layers"
    if pretrained.encoder_alone:
        rest = "the file holds no decoder"
    lines.append(f"trained: encoder {encoder} tensors, decoder {len(kept) - encoder}; {rest}")
    if pretrained.plans:
        lines.append(f"plans: {_plans_in_words(pretrained)}")
    if ssp.get("settings"):
        lines.append(
            "settings: " + " ".join(f"{k}={as_word(v)}" for k, v in ssp["settings"].items())
        )
    if ssp.get("versions"):
        lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in ssp["versions"].items()))
    cited = [*ssp.get("papers", ssp.get("pretraining", {}).get("papers", []))]
    for link in ssp.get("chain", []):
        cited += link.get("papers", [])
    lines += [f"cite: {paper}" for paper in dict.fromkeys(cited)]
    return lines


def _plans_in_words(pretrained: transfer.Pretrained) -> str:
    """Return dataset, name and configuration of a checkpoint's plans, or why one of them is not known."""
    dataset, name = (pretrained.plans.get(key) for key in ("dataset_name", "plans_name"))
    if not name:  # nnssl
        return (
            f"{pretrained.configuration}, without a name in the file; -d DATASET -p PLANS compares it with plans of "
            "yours"
        )
    if not dataset:
        return (
            f"{name} {pretrained.configuration}; shared and stripped files leave out the dataset's name, -d DATASET "
            "compares with one of yours"
        )
    return f"{dataset}, {name} {pretrained.configuration}"


def _name_of(dataset: str) -> str:
    """Return the full name of a prepared dataset."""
    return dataset_folder(nnunet_folder("nnUNet_preprocessed"), dataset).name


def _plans_of(pretrained: transfer.Pretrained, dataset: str) -> str:
    """Return the checkpoint's own plans' name if the dataset has plans of this name, else nnU-Net's."""
    folder = dataset_folder(nnunet_folder("nnUNet_preprocessed"), dataset)
    own = (pretrained.plans or {}).get("plans_name")
    there = isinstance(own, str) and is_plain(own) and (folder / f"{own}.json").is_file()
    return str(own) if there else "nnUNetPlans"


def compare_with_dataset(
    pretrained: transfer.Pretrained,
    dataset: str,
    plans_name: str,
    configuration: str,
    trust: bool = False,
) -> tuple[transfer.Comparison, Adaptation]:
    """Compare a checkpoint with the network that a dataset's plans describe, and fit it to that network."""
    folder = dataset_folder(nnunet_folder("nnUNet_preprocessed"), dataset)
    file = folder / f"{must_be_plain(plans_name, '-p')}.json"
    if not file.is_file():
        own = (pretrained.plans or {}).get("plans_name")
        way = f"make it with {planning_command(dataset_id(dataset), plans_name)}"
        if isinstance(own, str) and is_plain(own) and (folder / f"{own}.json").is_file():
            way = f"use the checkpoint's own plans, which this dataset has, with -p {own}"
        raise FileNotFoundError(f"{file} is missing: {way}")
    content = read_plans(file, trust)
    dataset_json = read_dataset(folder / "dataset.json")
    planned = planned_network(content, configuration, dataset_json, str(file))
    adaptation = transfer.adapted(pretrained, planned.network, dataset_json, encoder_only=False)
    return planned.compare(pretrained), adaptation
