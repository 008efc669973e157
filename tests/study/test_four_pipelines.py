"""The four pipelines of Kalapos and Gyires-Tóth's Figure 1, in miniature: the shipped study with less of everything."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.expansion import StrictLoader
from tests.natural_images import prepare_cine_and_images
from tests.own_folders import use_own_folders
from tests.warm import scripts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
    ),
]

PLANS = "figure1"
MODELS = (
    *("from scratch", "generalist, supervised", "generalist, self-supervised"),
    *("specialist", "hierarchical"),
)
SMALL = {
    "pretraining": {"num_epochs": 1, "iterations_per_epoch": 2, "batch_size": 4}
    | {"head_width": 16, "predictor_width": 16, "head_out": 8, "probe": False},
    "finetuning": {"num_epochs": 6, "iterations_per_epoch": 4, "val_iterations_per_epoch": 4}
    | {"initial_lr": 0.02},
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    with scripts(tmp_path_factory.mktemp("scripts")) as ready:
        yield ready.run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., str]) -> Iterator[Path]:
    """Cine (114) and natural images (150) under its plans; returns the folder of both."""
    base = tmp_path_factory.mktemp("pipelines")
    counts = {"labelled": 5, "unlabelled": 1, "testing": 2}
    source = write_mnms(base / "source", **counts, matrix=48, frames=4, slices=4)
    with pytest.MonkeyPatch.context() as patch:
        use_own_folders(patch, base, command, processes=1)
        prepare_cine_and_images(base, source, PLANS)
        yield base


def small_study() -> dict[str, Any]:
    """The shipped study with little data, short trainings, and tables of the smaller fold alone."""
    content = yaml.load((STUDIES / "kalapos.yaml").read_text("utf-8"), StrictLoader)
    content["make_folds"] = ["--subsets 2 --seeds 0"]
    content["folds"] = {"100 %": "5-fold-0", "10 %": "5-fold-0-nr2-seed{seed}"}
    content["seeds"] = [0]
    content["settings"] = SMALL
    content["predict"] = "--disable_tta"
    content["environment"] = {"nnUNet_n_proc_DA": 0, "nnUNet_npp": 0, "nnUNet_nps": 0}
    # The control hardly learns, so that every pipeline reaches its end.
    content["models"]["from scratch"]["settings"] = {"initial_lr": 1e-7}
    pipelines = content["by_size"]["pipelines"]
    for part in (*pipelines["tables"], *pipelines["figures"]):
        part["folds"] = "10 %"
    return content


def write_supervised(file: Path, plans: Path, seed: int) -> None:
    """Write the planned network with three channels of colour, as a training on natural images would leave it."""
    planned = json.loads(plans.read_text())["configurations"]["2d"]["architecture"]
    torch.manual_seed(seed)
    network = get_network_from_plans(
        planned["network_class_name"],
        planned["arch_kwargs"],
        planned["_kw_requires_import"],
        3,
        7,
        deep_supervision=False,
    )
    torch.save({"network_weights": network.state_dict()}, file)


def links(output: Path, model: str) -> list[dict[str, Any]]:
    """Return the trainings behind a fine-tuned model, the first one first."""
    (file,) = output.glob(f"runs/{model}/*/*/results/*/*/*/checkpoint_final.pth")
    chain: list[dict[str, Any]] = torch.load(file, weights_only=False)["ssp"].get("chain", [])
    return chain


def test_a_miniature_of_all_four(home: Path, command: Callable[..., str]) -> None:
    file = home / "kalapos.yaml"
    file.write_text(yaml.safe_dump(small_study(), sort_keys=False))
    output = home / "out"
    plans = home / "preprocessed" / "Dataset114_MNMs" / f"{PLANS}.json"
    own = ("-p", PLANS, "-o", output, "--device", "cpu", "--jobs", 2)
    words = ("nnunet-ssp", "study", file, "--size", "pipelines", "-d", 114, *own)
    with pytest.raises(AssertionError, match=r"supervised.pth is missing: .* ImageNet, supervised"):
        command(*words)
    output.mkdir(exist_ok=True)
    write_supervised(output / "supervised.pth", plans, seed=5)
    said = command(*words)
    assert "18 of 18 commands to run" in said
    assert "runs are missing" not in said

    # Each from where Figure 1 says.
    assert [link["counts"]["slices"] for link in links(output, "hierarchical")] == [9, 80]
    assert [link["counts"]["slices"] for link in links(output, "specialist")] == [80]
    (general,) = links(output, "generalist-self-supervised")
    assert (general["subjects"], general["counts"]["slices"]) == ([], 9)
    (log,) = output.glob("runs/generalist-supervised/*/*/train.log")
    assert "3 input channels summed" in log.read_text()

    # The tables hold what the runs' own files say.
    table = pd.read_csv(output / "tables" / "Convergence.csv").set_index(["model", "score"])
    for model in MODELS:
        folder = output / str(table.loc[(model, "iou"), "runs"])
        slices = pd.read_csv(folder / "evaluation" / "slices.csv")
        slices["iou"] = slices["dice"] / (2 - slices["dice"])
        frames = slices.groupby(["subject", "case", "class"])["iou"].mean()
        wanted = frames.groupby("subject").mean().mean()
        assert table.loc[(model, "iou"), "mean"] == pytest.approx(wanted, rel=1e-4)
        assert 0 <= wanted < 1
    ends = table.xs("steps", level="score")["mean"]
    assert set(ends.index) == set(MODELS)
    assert ends.notna().all()
    assert set(ends) <= {12, 16, 20, 24}
    shown = (output / "tables" / "Pipelines.md").read_text()
    assert all(model in shown for model in MODELS)

    # Another supervised file is another pretraining, of the same name, size and time.
    before = (output / "supervised.pth").stat()
    write_supervised(output / "supervised.pth", plans, seed=6)
    os.utime(output / "supervised.pth", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (output / "supervised.pth").stat().st_size == before.st_size
    with pytest.raises(AssertionError, match=r"1 of 8 runs are missing: generalist, supervised"):
        command(*words, "--results")


def figure_8() -> dict[str, Any]:
    """The shipped study's Figure 8 with two epochs of pretraining, and nothing else of it."""
    content = small_study()
    name = "BYOL, 25 epochs"
    content["pretraining"][name]["settings"] = {"num_epochs": 2, "snapshot_epochs": 1}
    content["models"]["BYOL, epochs: {epochs}"]["for"] = {"epochs": [1, 2]}
    del content["models"]["from scratch"]["settings"]
    content["settings"] = {**SMALL, "finetuning": {**SMALL["finetuning"], "num_epochs": 1}}
    for kind in ("tables", "figures"):
        parts = [part for part in content[kind] if part["title"] == "Epochs of pretraining"]
        assert len(parts) == 1
        models = ["from scratch", "BYOL, epochs: *"]
        content[kind] = [{**parts[0], "models": models, "folds": "10 %", "seeds": [0]}]
    return content


def test_figure_8_comes_from_one_pretraining(home: Path, command: Callable[..., str]) -> None:
    file, output = home / "figure8.yaml", home / "figure8"
    file.write_text(yaml.safe_dump(figure_8(), sort_keys=False))
    own = ("-p", PLANS, "-o", output, "--device", "cpu", "--jobs", 2)
    said = command("nnunet-ssp", "study", file, "--size", "planned", "-d", 114, *own)
    assert "10 of 10 commands to run" in said and "runs are missing" not in said
    snapshots = sorted(output.glob("pretraining/*/*/results/*/*/*/snapshots/*.pth"))
    assert [snapshot.name for snapshot in snapshots] == ["epoch_0001.pth", "epoch_0002.pth"]
    weights = [
        torch.load(snapshot, weights_only=False)["network_weights"] for snapshot in snapshots
    ]
    key = "encoder.stages.1.0.convs.0.conv.weight"
    assert not torch.equal(weights[0][key], weights[1][key])
    for epochs, snapshot in enumerate(snapshots, 1):
        (record,) = output.glob(f"runs/BYOL-epochs-{epochs}/*/*/train.json")
        assert json.loads(record.read_text())["command"].endswith(
            f"-pretrained_weights {snapshot.relative_to(output)}"
        )
    # The table holds what the runs' own files say; the figure stands beside it.
    table = pd.read_csv(output / "tables" / "Epochs-of-pretraining.csv")
    table = table.set_index(["model", "score"])
    for model in ("from scratch", "BYOL, epochs: 1", "BYOL, epochs: 2"):
        scores = output / str(table.loc[(model, "dice"), "runs"]) / "evaluation" / "metrics.csv"
        wanted = pd.read_csv(scores).groupby("case")["dice"].mean().mean()
        assert table.loc[(model, "dice"), "mean"] == pytest.approx(wanted, rel=1e-4)
    assert len(list((output / "figures").glob("Epochs-of-pretraining*"))) >= 2
