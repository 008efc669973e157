"""`nnunet-ssp export`: what goes along, and what stays at home."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.files import checkpoints, saving
from nnunet_ssp.network import is_output_layer
from nnunet_ssp.sharing.gains import OTHERS
from nnunet_ssp.training import transfer
from tests.sharing.conftest import DATASET
from tests.training.test_inspection import make_plans, write_checkpoint


def texts(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        return "\n".join(
            f"{name}\n{archive.read(name).decode('latin1')}" for name in archive.namelist()
        )


def card_in(file: Path) -> dict:
    with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read("card.json"))


def export(checkpoint: Path, name: str, *options: str) -> Path:
    target = checkpoint.parents[3] / name
    assert main(["export", str(checkpoint), "-o", str(target), *options]) == 0
    return target if "--hub" in options else target.with_name(f"{name}.zip")


def test_weights_plans_and_record_come_back(checkpoint: Path, dataset: Path) -> None:
    got, want = transfer.read(export(checkpoint, "heart")), transfer.read(checkpoint)
    fresh = transfer.fresh_keys(want.weights)
    assert transfer.fresh_keys(got.weights) == fresh and fresh
    assert list(got.weights) == list(want.weights)
    for name, tensor in want.weights.items():
        assert got.weights[name].dtype == tensor.dtype and got.weights[name].shape == tensor.shape
        if name not in fresh and not is_output_layer(name):
            assert torch.equal(got.weights[name], tensor)
    assert got.ssp == want.ssp | {"weights_from": "checkpoint_final.pth"}
    plans = want.plans["configurations"]["2d"] | {"note": "plans"}
    assert got.plans["configurations"]["2d"] == plans


def test_no_name_and_no_path_leaves_the_house(checkpoint: Path, dataset: Path) -> None:
    content = texts(export(checkpoint, "heart"))
    for private in ("alice", "Alice", DATASET, "mm1-A", "A_frame"):
        assert private not in content
    assert "s1:" in content  # the hashes of the subjects


def test_the_card_says_what_was_seen(checkpoint: Path, dataset: Path, capsys) -> None:
    file = export(checkpoint, "heart", "--data-licence", "M&Ms: CC BY-NC-SA 4.0")
    card = card_in(file)
    assert card["data"] == {
        "counts": {"subjects": 2, "frames": 4, "slices": 20},
        "by_group": [
            {"source": "mm1", "vendor": v, "field": "1.5", "subjects": 1, "frames": 2, "slices": 10}
            for v in ("Philips", "Siemens")
        ],
        "licences": ["M&Ms: CC BY-NC-SA 4.0"],
    }
    assert card["last_values"] == {"train_losses": 0.25}
    assert card["epochs"] == 3
    assert [paper[:8] for paper in card["papers"]] == ["Somebody", "Isensee "]
    with zipfile.ZipFile(file) as archive:
        page = archive.read("card.md").decode()
        assert json.loads(archive.read("dataset_fingerprint.json")) == {
            "spacings": [[8.0, 1.5, 1.5]]
        }
    for words in ("MIM", "M&Ms: CC BY", "| mm1 | Philips | 1.5 | 1 | 2 | 10 |", "mask_ratio | 0.6"):
        assert words in page
    assert "note:" not in capsys.readouterr().out


def test_the_card_says_what_was_gained(checkpoint: Path, dataset: Path, monkeypatch) -> None:
    row = {"labelled": "5", "scratch": "0.625", "pretrained": "0.673"}
    monkeypatch.setattr(
        "nnunet_ssp.sharing.gains.read_measured", lambda: [{"method": "MIM", "settings": "", **row}]
    )
    file = export(checkpoint, "heart")
    assert card_in(file)["measured"] == {"of": OTHERS, "rows": [{"settings": "", **row}]}
    assert "| 5 | 0.625 | 0.673 |" in texts(file)
    assert main(["import", str(file)]) == 0


def test_names_only_on_demand(checkpoint: Path, dataset: Path, capsys) -> None:
    file = export(checkpoint, "heart", "--subjects")
    assert card_in(file)["data"]["subjects"] == ["mm1-A", "mm1-B"]
    assert "note: the card names the subjects" in capsys.readouterr().out


def test_names_that_are_not_known_here(checkpoint: Path, capsys) -> None:
    words = ["export", str(checkpoint), "-o", str(checkpoint.parents[3] / "x"), "--subjects"]
    assert main(words) == 1
    assert "the names of the subjects are not known" in capsys.readouterr().err


def test_without_the_dataset_it_says_so(checkpoint: Path, capsys) -> None:
    assert card_in(export(checkpoint, "heart"))["data"]["by_group"] == []
    assert "note: the card has no counts by source" in capsys.readouterr().out


def test_a_dataset_that_has_changed_since_is_not_counted(checkpoint: Path, dataset: Path) -> None:
    table = dataset / "cases.csv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith("A_frame03")]
    table.write_text("\n".join(lines) + "\n")
    assert card_in(export(checkpoint, "heart"))["data"]["by_group"] == []


def test_half(checkpoint: Path, dataset: Path) -> None:
    sizes = [export(checkpoint, n, *o).stat().st_size for n, o in (("a", []), ("b", ["--half"]))]
    assert sizes[1] < sizes[0]
    got, want = transfer.read(checkpoint.parents[3] / "b.zip"), transfer.read(checkpoint)
    assert transfer.fresh_keys(got.weights) == transfer.fresh_keys(want.weights)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(got.weights[name], want.weights[name].half().float())


def test_the_folder_for_a_hub(checkpoint: Path, dataset: Path) -> None:
    folder = export(checkpoint, "heart", "--hub")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "card.json",
        "dataset_fingerprint.json",
        "model.safetensors",
        "plans.json",
    ]
    page = (folder / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: nnunet-ssp\n") and "# heart" in page
    assert transfer.read(folder).ssp["method"] == "MIM"
    (folder / "README.md").write_text("edited on the hub")
    assert transfer.read(folder).ssp["method"] == "MIM"


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("transfers", ["encoder", "encoder+decoder"])
def test_a_checkpoint_is_equal_to_its_export(
    environment: Path, dataset: Path, capsys, transfers: str, hub: bool
) -> None:
    """What the export does not store is no difference: output layers, and a decoder that nobody trained."""
    folder = environment / "results" / "run" / "fold_0"
    file = write_checkpoint(folder / "x.pth", make_plans(), transfers)
    shared = export(file, "heart", *(["--hub"] if hub else []))
    capsys.readouterr()
    for pair in ((file, shared), (shared, file), (shared, shared)):
        assert main(["inspect", *map(str, pair)]) == 0
        said = capsys.readouterr().out
        whole = transfers == "encoder+decoder"
        assert "  output layers 4 not stored\n" in said and "changed" not in said
        assert ("  decoder 1     10 equal\n" in said) == whole
        assert ("  decoder 1     10 not stored\n" in said) != whole
        assert f"all {44 if whole else 24} are equal; {4 if whole else 24} are not stored" in said
    content = torch.load(file, weights_only=True)
    content["network_weights"]["encoder.stages.0.0.convs.0.norm.weight"][0] = 3  # 2 of a norm of 2
    saving.save(folder / "altered.pth", content)
    assert main(["inspect", str(folder / "altered.pth"), str(shared)]) == 1
    said = capsys.readouterr().out
    assert f"1 of {44 if whole else 24} tensors differ" in said
    assert "changed most: encoder.stages.0.0.convs.0.norm.weight, by " in said


@pytest.mark.parametrize("hub", [False, True])
def test_what_was_exported_is_inspected(checkpoint: Path, dataset: Path, capsys, hub) -> None:
    shared = export(checkpoint, "heart", *(["--hub"] if hub else []))
    capsys.readouterr()
    assert main(["inspect", str(shared)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{shared} (") and "method: MIM, pretrained on 2 subjects" in said
    assert "trained: encoder 24 tensors, decoder 0; fresh: 20 and the output layers" in said


def test_texts_of_a_card_stay_in_their_cells(checkpoint: Path, dataset: Path) -> None:
    export(checkpoint, "heart", "--data-licence", "a|b\n<script>")
    page = texts(checkpoint.parents[3] / "heart.zip")
    assert "a/b\\n&lt;script>" in page


def test_what_is_no_pretraining_is_refused(environment: Path, capsys) -> None:
    file = write_checkpoint(environment / "x.pth", make_plans(), ssp={"trainer": "T"})
    assert main(["export", str(file), "-o", str(environment / "y")]) == 1
    assert "is no pretraining of nnunet-ssp" in capsys.readouterr().err


def test_a_3d_network_is_refused(environment: Path, capsys) -> None:
    content = torch.load(write_checkpoint(environment / "x.pth", make_plans()), weights_only=True)
    content["init_args"]["plans"]["configurations"]["2d"]["patch_size"] = [8, 32, 32]
    saving.save(environment / "x.pth", content)
    assert main(["export", str(environment / "x.pth"), "-o", str(environment / "y")]) == 1
    assert "must be 2D: its patch is 8 x 32 x 32" in capsys.readouterr().err


def test_a_network_that_diverged_is_refused(environment: Path, capsys) -> None:
    content = checkpoints.load(write_checkpoint(environment / "x.pth", make_plans()))
    next(iter(content["network_weights"].values())).fill_(float("nan"))
    saving.save(environment / "x.pth", content)
    assert main(["export", str(environment / "x.pth"), "-o", str(environment / "y")]) == 1
    assert "that training diverged" in capsys.readouterr().err


def test_nothing_is_overwritten(checkpoint: Path, dataset: Path, capsys) -> None:
    file = export(checkpoint, "heart")
    assert main(["export", str(checkpoint), "-o", str(file)]) == 1
    assert f"{file} exists already" in capsys.readouterr().err
