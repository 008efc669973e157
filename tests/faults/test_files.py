"""JSON files of anybody: what is wrong is refused with file, place and rule, and names stay where they are put."""

from __future__ import annotations

import json
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
from nnunet_ssp.conversion import record
from nnunet_ssp.evaluation.labels import read_labels
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import DEEPEST, nests_too_deeply, printable, read_json, shown
from nnunet_ssp.files.names import LONGEST, is_plain, must_be_plain
from nnunet_ssp.files.nnunet import configuration_of, read_dataset, read_plans, resolve
from nnunet_ssp.preparation import prepared
from nnunet_ssp.slices.store import read_index, store_folder, write_case
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.report import _remove_earlier

ESCAPING = [
    "../x",
    "..",
    ".",
    "",
    " ",
    "a/b",
    "/etc/x",
    "a\\b",
    "C:x",
    "c:\\x",
    ".hidden",
    "a\0b",
    "a\nb",
    "a\x7f",
    "\ud800",
    "x" * (LONGEST + 1),
    "ü" * (LONGEST // 2 + 1),
    None,
    3,
    ["x"],
]


@pytest.mark.parametrize("name", ESCAPING, ids=ascii)
def test_a_name_that_is_no_plain_component_is_refused(name):
    assert not is_plain(name)
    with pytest.raises(ValueError, match=r"cases\.csv: `case` \(=.*\) must be one plain name") as e:
        must_be_plain(name, "case", "cases.csv")
    assert str(e.value).isprintable() and len(str(e.value)) < 400


@pytest.mark.parametrize(
    "name", ["mm1-A1_frame00", "a.b_1", "Größe 3", "patient (1)", "x" * LONGEST, "1:2", "~a", "$b"]
)
def test_plain_names_stay_as_they_are(name):
    assert must_be_plain(name, "case") == name


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
    return record.read_marker(file.rename(file.with_name("convert.json")).parent)


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
    assert conversion._read_record(tmp_path / "a.json") is None


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="must be a file, not a folder"):
        read_json(tmp_path, dict)
    with pytest.raises(FileNotFoundError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json", dict)


def test_a_message_shows_little_of_a_value_and_nothing_a_terminal_obeys():
    assert shown("a\x1b[2Jb\n") == r"a\x1b[2Jb\n"
    assert shown(["\x1b" * 3]) == r"['\x1b\x1b\x1b']".replace("\\\\", "\\")
    assert len(shown("x" * 10**6)) < 100
    assert len(shown([list(range(10**5))] * 10)) < 100
    assert printable("Größe 5 µm") == "Größe 5 µm"
    assert not nests_too_deeply([[1] * 10] * 10)


DATASET = {
    "channel_names": {"0": "cineMRI"},
    "labels": {"background": 0, "LV": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
LISTED = {"images": ["imagesUn/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", [1], r"`labels` \(=\[1\]\) must be names with whole numbers"),
        ("labels", {}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": "1"}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": 1.5}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": True}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": []}, "`labels` .* must be names with whole numbers"),
        ("labels", {"LV": -1}, "`labels` .* must be names with whole numbers"),
        ("channel_names", "MRI", r"`channel_names` \(=MRI\) must be names of at least one channel"),
        ("numTraining", "many", r"`numTraining` \(=many\) must be a whole number"),
        ("file_ending", "/../x", r"`file_ending` \(=/\.\./x\) must be an ending, as \.nii\.gz"),
        ("file_ending", 5, r"`file_ending` \(=5\) must be an ending"),
        ("regions_class_order", "1", r"`regions_class_order` \(=1\) must be a list of whole"),
        ("dataset", [1], r"`dataset` \(=\[1\]\) must be names with values"),
        ("dataset", {"../x": LISTED}, r"`dataset`: `case` \(=\.\./x\) must be one plain name"),
        ("dataset", {"/etc/x": LISTED}, "`case` .* must be one plain name"),
        ("dataset", {"a": "x"}, r"`dataset`: `a` \(=x\) must be names with values"),
        ("dataset", {"a": {}}, "`dataset`, a: `images` is missing"),
        (
            "dataset",
            {"a": {**LISTED, "images": "x"}},
            r"a: `images` \(=x\) must be a list of paths",
        ),
        ("dataset", {"a": {**LISTED, "images": []}}, r"a: `images` .* must be a list of paths"),
        ("dataset", {"a": {**LISTED, "label": None}}, r"a: `label` \(=None\) must be text"),
    ],
)
def test_dataset_json_of_wrong_content_is_refused(tmp_path, key, value, message):
    file = tmp_path / "dataset.json"
    write_json(file, DATASET | {key: value})
    with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
        read_dataset(file)


def test_images_and_masks_may_lie_anywhere(tmp_path):
    """nnU-Net reads them from where `dataset` says; only names become paths of what is written."""
    listed = {"images": ["/data/x.nii.gz"], "label": "../elsewhere/x.nii.gz"}
    write_json(tmp_path / "dataset.json", DATASET | {"dataset": {"x": listed}})
    assert read_dataset(tmp_path / "dataset.json")["dataset"] == {"x": listed}


CONFIGURATION = {
    "data_identifier": "P_2d",
    "batch_size": 2,
    "patch_size": [32, 32],
    "spacing": [1.5, 1],
    "normalization_schemes": ["ZScoreNormalization"],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    },
}
PLANS = {"dataset_name": "Dataset001_A", "plans_name": "P", "configurations": {"2d": CONFIGURATION}}


def set_in_plans(place: tuple[str, ...], value: object) -> dict[str, Any]:
    plans: dict[str, Any] = json.loads(json.dumps(PLANS))
    part = plans
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return plans


HERE = ("configurations", "2d")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("dataset_name",), "../x", r"`dataset_name` \(=\.\./x\) must be one plain name"),
        (("plans_name",), "a/b", r"`plans_name` \(=a/b\) must be one plain name"),
        ((*HERE, "data_identifier"), "../../x", r"`data_identifier` .* must be one plain name"),
        ((*HERE, "data_identifier"), 3, r"`data_identifier` \(=3\) must be one plain name"),
        ((*HERE, "previous_stage"), "../x", r"`previous_stage` .* must be one plain name"),
        (("configurations", "a/b"), CONFIGURATION, r"`configuration` \(=a/b\) must be one plain"),
        (("configurations",), {}, "`configurations` .* must be names with configurations"),
        (("configurations",), [1], "`configurations` .* must be names with configurations"),
        (HERE, "x", "`configurations` .* must be names with configurations"),
        ((*HERE, "patch_size"), "32", r"2d: `patch_size` \(=32\) must be a list of whole numbers"),
        ((*HERE, "patch_size"), [0, 32], "`patch_size` .* must be a list of whole numbers"),
        ((*HERE, "batch_size"), 2.5, r"`batch_size` \(=2\.5\) must be a whole number from 1"),
        ((*HERE, "spacing"), [1, 0], r"`spacing` \(=\[1, 0\]\) must be a list of lengths"),
        ((*HERE, "spacing"), [float("nan"), 1], "`spacing` .* must be a list of lengths"),
        ((*HERE, "spacing"), [1e999, 1], "`spacing` .* must be a list of lengths"),
        ((*HERE, "architecture"), [], r"`architecture` \(=\[\]\) must be names"),
        ((*HERE, "architecture", "arch_kwargs"), 1, r"`architecture`: `arch_kwargs` \(=1\) must"),
        (
            (*HERE, "inherits_from"),
            "2d",
            "no configuration must inherit from itself, but 2d from 2d",
        ),
        ((*HERE, "inherits_from"), "x", r"`inherits_from` \(=x\) must be one of 2d"),
        ((*HERE, "inherits_from"), [1], r"`inherits_from` \(=\[1\]\) must be one of 2d"),
        (("transpose_forward",), "x", r"`transpose_forward` \(=x\) must be each axis once"),
    ],
)
def test_plans_of_wrong_content_are_refused(tmp_path, place, value, message):
    file = tmp_path / "P.json"
    write_json(file, set_in_plans(place, value))
    with pytest.raises(ValueError, match=rf"P\.json.*{message}"):
        read_plans(file)


def test_a_ring_of_configurations_is_refused_and_a_chain_is_followed():
    a, b, c = ({"inherits_from": name} for name in ("b", "c", "a"))
    with pytest.raises(ValueError, match="no configuration must inherit from itself, but a from b"):
        resolve({"configurations": {"a": a, "b": b, "c": c}}, "a", "plans")
    chain = {"a": {**a, "x": 1}, "b": {**b, "x": 2, "y": 2}, "c": {"x": 3, "y": 3, "z": 3}}
    assert resolve({"configurations": chain}, "a", "plans") == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize("name", ["dataset_name", "plans_name", "data_identifier", "patch_size"])
def test_what_nnunet_needs_of_plans_is_asked_for(name):
    plans: dict[str, Any] = json.loads(json.dumps(PLANS))
    assert configuration_of(plans, "2d", "P.json")["batch_size"] == 2
    (plans if name in plans else plans["configurations"]["2d"]).pop(name)
    with pytest.raises(ValueError, match=rf"P\.json.*: `{name}` is missing"):
        configuration_of(plans, "2d", "P.json")


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [1, 1, 2]),
        ("shape", "1122"),
        ("shape", [1, 1, 2, 10**12]),
        ("shape", [-1, 1, 2, 2]),
        ("shape", [1.0, 1, 2, 2]),
        ("first_slice", "0"),
        ("n_slices", 10**30),
        ("source", [["a", 1]]),
        ("source", {}),
    ],
)
def test_an_index_of_wrong_content_is_refused(tmp_path, key, value):
    entry = {"shape": [1, 1, 2, 2], "first_slice": 0, "n_slices": 1, "source": [["a", 1, 2]]}
    write_json(tmp_path / "index.json", {"preprocessing": {}, "cases": {"a": entry}})
    assert list(read_index(tmp_path)[1]) == ["a"]
    write_json(tmp_path / "index.json", {"preprocessing": {}, "cases": {"a": entry | {key: value}}})
    with pytest.raises(ValueError, match=rf"index\.json is damaged \(a: `{key}` .* must be"):
        read_index(tmp_path)


# -- what is removed -----------------------------------------------------------------------------


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
    _remove_earlier(output, ["tables/b.csv"])
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)


def test_overwriting_a_conversion_leaves_what_is_not_of_it(tmp_path):
    target, elsewhere = tmp_path / "Dataset901_Toy", tmp_path / "elsewhere"
    gone = ["imagesTr/A_frame00_0000.nii.gz", "labelsTr/A_frame00.nii.gz", "cases.csv"]
    gone += ["dataset.json", ".ssp-tmp/done/A.json", "folds.csv"]
    kept = ["notes.txt", "imagesTr/mine.nii.gz", "imagesTr/A_frame00.json", "mine/A_frame00.nii.gz"]
    for name in (*gone, *kept):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    elsewhere.mkdir()
    (elsewhere / "A_frame00_0000.nii.gz").touch()
    (target / "imagesUn").symlink_to(elsewhere)
    write_json(target / "convert.json", {})
    conversion._empty(target, [])
    left = {str(f.relative_to(target)) for f in target.rglob("*") if f.is_file()}
    assert left == {*kept, "convert.json"}
    assert not (target / "imagesUn").exists() and not (target / "labelsTr").exists()
    assert [f.name for f in elsewhere.iterdir()] == ["A_frame00_0000.nii.gz"]


def test_the_marker_of_a_conversion_is_checked(tmp_path):
    write_json(tmp_path / "convert.json", {"deleted_folds": "all"})
    with pytest.raises(ValueError, match=r"`deleted_folds` \(=all\) must be a list of text"):
        record.appended_folds(tmp_path)


def test_no_module_reads_json_or_checkpoints_by_itself():
    """A reader of its own would have rules of its own."""
    package = Path(nnunet_ssp.__file__).parent
    places = [*package.rglob("*.py"), *(package.parent / "dataset_conversion").glob("*.py")]
    for file in places:
        text = file.read_text(encoding="utf-8")
        # The second reads what it has just made itself.
        found = re.findall(r"json\.loads?\((?!json\.dumps)|torch\.load\(|pickle\.loads?\(", text)
        assert not found or file.name in ("contents.py", "checkpoints.py"), (file, found)
