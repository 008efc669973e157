"""JSON files of any origin: errors name file, place and rule, and names never lead outside their folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnunet_ssp
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.leaks import leaks_in_store
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.conversion import convert as conversion
from nnunet_ssp.conversion.record import read_marker as read_marker_of
from nnunet_ssp.evaluation.labels import read_labels
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import DEEPEST, read_json
from nnunet_ssp.files.nnunet import read_dataset, read_plans
from nnunet_ssp.preparation import prepared
from nnunet_ssp.slices.store import read_index, store_folder, write_case
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.report import Written, _remove_earlier


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"not a JSON file \(line 1, column 1"),
    "text": (b"hello", "not a JSON file"),
    "half": (b'{"labels": {"a": 1', "not a JSON file"),
    "comma": (b'{"a": 1,\n}', r"not a JSON file \(line [12], column"),
    "latin": ('{"ü": 1}'.encode("latin-1"), r"not a JSON file \(byte 2 is no UTF-8 text\)"),
    "utf-16": ("{}".encode("utf-16"), "not a JSON file"),
    "marked": (b"\xef\xbb\xbf{}", "not a JSON file"),
    "binary": (bytes(range(256)), "not a JSON file"),
    "deep": (nested(100_000).encode(), "must not nest more than"),
    "deep dict": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "must not nest more than"),
    "rather deep": (f'{{"a": {nested(DEEPEST)}}}'.encode(), "must not nest more than"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "not a JSON file that can be read"),
    "list": (b"[1, 2]", r"must hold names with values"),
    "number": (b"7", "must hold names with values"),
    "null": (b"null", "must hold names with values"),
}


def read_marker(file: Path) -> Any:
    return read_marker_of(file.rename(file.with_name("convert.json")).parent)


def read_stored(file: Path) -> Any:
    return read_index(file.rename(file.with_name("index.json")).parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "json": lambda file: read_json(file, dict),
    "dataset": read_dataset,
    "plans": read_plans,
    "labels": read_labels,
    "marker": read_marker,
    "index": read_stored,
    "leaks": lambda file: list(leaks_in_store(file, {})),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_json_of_its_kind(tmp_path, reader, name):
    content, message = CONTENTS[name]
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        READERS[reader](file)
    assert "json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CONTENTS if name not in ("list", "rather deep")])
def test_splits_refuse_the_same(tmp_path, name):
    content, message = CONTENTS[name]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("names with values", "a list")):
        read_splits(tmp_path / "a.json")


@pytest.mark.parametrize("name", CONTENTS)
def test_records_of_ours_that_are_damaged_count_as_none(tmp_path, name):
    content, _ = CONTENTS[name]
    for file in (tmp_path / "a.json", tmp_path / prepared.RECORD):
        file.write_bytes(content)
    assert read_record(tmp_path / "a.json") == {}
    assert prepared.recorded(tmp_path) == set()
    assert conversion._read_done(tmp_path / "a.json") is None


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "x" * 300])
def test_names_are_checked_in_every_table(tmp_path, name):
    header = "case,subject,source,source_frame,split,frame,n_frames,phase,base,vendor,centre,scanner,field,pathology"
    for column, row in {"case": f"{name},s", "subject": f"c,{name}"}.items():
        (tmp_path / "cases.csv").write_text(f"{header}\n{row},mm1,0,train,0,9,ED,first,,,,,\n")
        with pytest.raises(ValueError, match=rf"cases\.csv, row 2: `{column}` .* one plain name"):
            read_cases(tmp_path / "cases.csv")
    write_json(tmp_path / "splits_final.json", [{"train": ["a"], "val": [name]}])
    with pytest.raises(
        ValueError, match=r"splits_final\.json, fold 0, `val`: `case` .* plain name"
    ):
        read_splits(tmp_path / "splits_final.json")
    entry = {"shape": [1, 1, 2, 2], "first_slice": 0, "n_slices": 1, "source": []}
    write_json(tmp_path / "index.json", {"preprocessing": {}, "cases": {name: entry}})
    with pytest.raises(ValueError, match=r"index\.json is damaged .*`case` .* one plain name"):
        read_index(tmp_path)
    with pytest.raises(ValueError, match=r"`data_identifier` .* must be one plain name"):
        store_folder(tmp_path, name)
    with pytest.raises(ValueError, match=r"`case` .* must be one plain name"):
        write_case(tmp_path / "store", name, np.zeros((1, 1, 2, 2)))
    assert not (tmp_path / "store").exists()


# -- what is removed -------------------------------------------------------------------------------


def test_a_study_removes_its_own_tables_and_figures_only(tmp_path):
    output, outside = tmp_path / "study", tmp_path / "outside.csv"
    kept = [
        outside,
        output / "notes.csv",
        output / "tables" / "own.txt",
        output / "tables" / "b.csv",
    ]
    gone = [output / "tables" / "a.csv", output / "figures" / "a.png"]
    for file in (*kept, *gone):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    listed = [
        str(outside),
        "../outside.csv",
        "tables/../../outside.csv",
        "notes.csv",
        "tables/own.txt",
    ]
    write_json(output / ".written.json", [*listed, 3, None, "tables/a.csv", "figures/a.png"])
    _remove_earlier(output, Written(""), ["tables/b.csv"])
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)


def test_no_module_reads_json_or_checkpoints_by_itself():
    """A separate reader would have separate rules."""
    package = Path(nnunet_ssp.__file__).parent
    readers = ("contents.py", "checkpoints.py", "tensors.py", "archives.py", "bundles.py")
    readers += ("warm.py",)  # orders of this package's own processes, which are no files
    places = [*package.rglob("*.py"), *(package.parent / "dataset_conversion").glob("*.py")]
    for file in places:
        text = file.read_text(encoding="utf-8")
        # The second reads what it has just made itself; safetensors and shared files hold JSON.
        found = re.findall(r"json\.loads?\((?!json\.dumps)|torch\.load\(|pickle\.loads?\(", text)
        assert not found or file.name in readers, (file, found)


def test_prepare_removes_files_of_recorded_cases_only(tmp_path):
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl", "b.b2nd", "ab.b2nd", "a.txt", "notes", "a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.npy").mkdir()
    prepared.remove_others(tmp_path, {"a", "b"}, (".b2nd", "_seg.b2nd", ".pkl", ".npy"), {"b.b2nd"})
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
        ["b.b2nd", "ab.b2nd", "a.txt", "notes", "a", "a.npy"]
    )


def test_the_record_of_cases_holds_plain_names_only(tmp_path):
    prepared.record(tmp_path, ["b", "a"])
    assert prepared.recorded(tmp_path) == {"a", "b"}
    write_json(tmp_path / prepared.RECORD, ["a", "../x", 3, None, ["y"]])
    assert prepared.recorded(tmp_path) == {"a"}
