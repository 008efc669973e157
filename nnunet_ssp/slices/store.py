"""The slice store: every slice of a dataset after nnU-Net's own preprocessing, ready to be drawn.

On disk, `<data_identifier>_slices/` holds one float16 array (slices, channels, rows, cols) per case and `index.json`,
which says which plans made it and what each case is. Unlabelled 2D images, of which there may be a million, lie one
behind the other in packs. `drawing` is how training draws from the store.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ssp.files.atomic import TEMPORARY, atomic_write, write_json
from nnunet_ssp.files.contents import NAMES, Rule, check, is_whole, read_json
from nnunet_ssp.files.names import must_all_be_plain, must_be_plain
from nnunet_ssp.slices.intact import (
    Stamps,
    can_be_read,
    file_stamp,
    npy_header,
    npy_size,
    prepare_command,
    require_size,
)

INDEX = "index.json"
PREPROCESSED = (".b2nd", ".npz")  # endings of nnU-Net's preprocessed cases
PACK = re.compile(r"pack_[0-9a-f]{16}\.f16")  # name of a file with many cases, without a header
FLOAT16_MAX = 65504.0
# Of an array of the store: a damaged index must not request more memory than there is.
LONGEST_SIDE = 2**16


def is_preprocessed(folder: Path, case: str) -> bool:
    """Whether nnU-Net's folder of preprocessed cases, which holds the labelled ones, has a case."""
    return any((folder / f"{case}{ending}").is_file() for ending in PREPROCESSED)


def _is_side(value: object) -> bool:
    return is_whole(value) and value < LONGEST_SIDE  # type: ignore[operator]


def _is_stamp(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and is_whole(value[1])
        and is_whole(value[2], -(2**63))  # a file may be older than 1970
    )


_STAMPS = Rule(
    "a list of [name, bytes, time]", lambda v: isinstance(v, list) and all(map(_is_stamp, v))
)
_SIDE = Rule(f"a whole number from 0, below {LONGEST_SIDE}", _is_side)
ENTRY = {  # of a case in the index, see `StoredCase`
    "shape": Rule(
        f"four whole numbers from 0, below {LONGEST_SIDE}",
        lambda v: isinstance(v, list) and len(v) == 4 and all(map(_is_side, v)),
    ),
    "first_slice": _SIDE,
    "n_slices": _SIDE,
    "source": _STAMPS,
    "stored": _STAMPS,
    "pack": Rule("the name of a pack", lambda v: isinstance(v, str) and bool(PACK.fullmatch(v))),
    "offset": Rule("a whole number from 0", is_whole),
}
REQUIRED = (
    "shape",
    "first_slice",
    "n_slices",
    "source",
)  # an earlier version did not write `stored`


@dataclass(frozen=True)
class StoredCase:
    """One case of the store.

    Attributes:
        shape: (slices, channels, rows, cols) of its array.
        first_slice: Position of its first slice in the original stack, which nnU-Net's crop may have shortened.
        n_slices: Slices of the original stack.
        source: Name, size in bytes and modification time in ns of each file it was made from; once one changes, the
            case is prepared again.
        stored: The same for each file made from it; empty in an index of an earlier version.
        pack: Name of the pack that holds its array; empty if it has a file of its own.
        offset: Byte at which its array begins in the pack.
    """

    shape: tuple[int, int, int, int]
    first_slice: int
    n_slices: int
    source: Stamps = ()
    stored: Stamps = ()
    pack: str = ""
    offset: int = 0

    def place(self, case: str) -> tuple[str, int]:
        """Return the name of the file that holds the array, and the byte at which it begins."""
        return (self.pack, self.offset) if self.pack else (f"{case}.npy", len(self.header))

    @property
    def header(self) -> bytes:
        """First bytes of the file, before the array; a pack has none."""
        return b"" if self.pack else npy_header(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return 2 * math.prod(self.shape)

    @property
    def file_size(self) -> int:
        """Bytes of the file that holds the array."""
        return self.stored[0][1] if self.pack else npy_size(self.shape)


def store_folder(preprocessed: str | Path, data_identifier: str) -> Path:
    """Return the folder of the store that belongs to `preprocessed/data_identifier`."""
    return Path(preprocessed) / f"{must_be_plain(data_identifier, 'data_identifier')}_slices"


def preprocessing_of(plans: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """Return what decides how a preprocessed slice looks; two stores fit together when these are equal.

    Args:
        plans: Content of the plans file.
        configuration: The resolved configuration (`ConfigurationManager.configuration`).
    """
    names = (
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "resampling_fn_data",
        "resampling_fn_data_kwargs",
    )
    chosen = {name: configuration[name] for name in names}
    chosen["transpose_forward"] = plans["transpose_forward"]
    # Only these schemes look at the intensities of the whole dataset.
    if any(scheme == "CTNormalization" for scheme in configuration["normalization_schemes"]):
        chosen["intensities"] = plans["foreground_intensity_properties_per_channel"]
    return dict(json.loads(json.dumps(chosen)))


def as_slices(case: str, data: NDArray[Any]) -> NDArray[np.float16]:
    """Return a case as the store keeps it.

    Args:
        case: Name of the case.
        data: (channels, slices, rows, cols), as nnU-Net's preprocessing returns it.

    Returns:
        (slices, channels, rows, cols).

    Raises:
        ValueError: A value is not finite or beyond float16.
    """
    largest = float(np.abs(data).max(initial=0.0))
    if not largest <= FLOAT16_MAX:  # also catches NaN
        raise ValueError(
            f"{case}: the largest preprocessed intensity (={largest}) must be finite and at most {FLOAT16_MAX:.0f}, "
            f"float16's range; choose a normalisation in dataset.json's channel_names."
        )
    return np.ascontiguousarray(data.swapaxes(0, 1), dtype=np.float16)


def write_case(folder: Path, case: str, data: NDArray[Any]) -> tuple[int, int, int, int]:
    """Write one case's slices into a file of its own.

    Args:
        folder: The store; created when missing.
        case: Name of the case.
        data: (channels, slices, rows, cols), as nnU-Net's preprocessing returns it.

    Returns:
        The shape written: (slices, channels, rows, cols).

    Raises:
        ValueError: A value is not finite or beyond float16.
    """
    slices = as_slices(case, data)
    must_be_plain(case, "case", str(folder))
    with atomic_write(folder / f"{case}.npy", folder.parent / TEMPORARY) as temporary:
        np.save(temporary, slices)
    n, c, rows, cols = slices.shape
    return n, c, rows, cols


def write_index(
    folder: Path,
    preprocessing: dict[str, Any],
    cases: dict[str, StoredCase],
    missing: Mapping[str, str] | None = None,
) -> None:
    """Write `index.json` as a whole.

    Args:
        folder: The store.
        preprocessing: See `preprocessing_of`.
        cases: Entries of the stored cases, by name.
        missing: The cases of the dataset that are not stored, and why.
    """
    entries = {case: _as_json(entry) for case, entry in sorted(cases.items())}
    content = {"preprocessing": preprocessing, "cases": entries, "missing": dict(missing or {})}
    write_json(folder / INDEX, content)


def _as_json(entry: StoredCase) -> dict[str, Any]:
    names = ("shape", "first_slice", "n_slices", "source", "stored")
    content = {name: getattr(entry, name) for name in names}
    return content | ({"pack": entry.pack, "offset": entry.offset} if entry.pack else {})


def read_missing(folder: Path) -> dict[str, str]:
    """Return the cases that `prepare` left out of a store, and why; empty until it has finished."""
    if not (folder / INDEX).is_file():
        return {}
    read_index(folder)  # says what is wrong with a damaged one
    return dict(read_json(folder / INDEX, dict).get("missing", {}))


def require_preprocessing(folder: Path, preprocessing: dict[str, Any]) -> None:
    """Refuse a slice store that other plans made.

    Args:
        folder: The store.
        preprocessing: What the present plans ask for, see `preprocessing_of`.

    Raises:
        ValueError: Names what differs.
    """
    made_by, _ = read_index(folder)
    changed = [name for name in preprocessing if made_by.get(name) != preprocessing[name]]
    if changed:
        raise ValueError(
            f"{folder} was made by other plans ({', '.join(changed)} differ): run nnunet-ssp prepare again, or delete "
            "that folder if nnU-Net's own preprocessing is new."
        )


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, StoredCase]]:
    """Read `index.json`.

    Returns:
        The preprocessing that made the store, and its cases by name.

    Raises:
        FileNotFoundError: There is no store.
        ValueError: The file is damaged.
    """
    file = folder / INDEX
    try:
        content = read_json(file, dict)
        rules = dict.fromkeys(("cases", "preprocessing", "missing"), NAMES)
        check(content, rules, "it", ("cases", "preprocessing"))
        must_all_be_plain(content["cases"], "case", "it")
        check(content["cases"], dict.fromkeys(content["cases"], NAMES), "`cases`")
        for name, entry in content["cases"].items():
            check(entry, ENTRY, name, REQUIRED)
        cases = {name: _entry(name, entry) for name, entry in content["cases"].items()}
        return content["preprocessing"], cases
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: run {prepare_command(folder)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if type(error) is ValueError else repr(error)
        raise ValueError(
            f"{file} is damaged ({why}): run {prepare_command(folder)}, or delete that folder if nnU-Net's own "
            "preprocessing made it."
        ) from error


def _entry(case: str, content: dict[str, Any]) -> StoredCase:
    """Make one entry of an index, whose values keep the rules of `ENTRY` one by one, if they agree with each other.

    Raises:
        ValueError: They contradict each other.
    """
    shape, first, depth = tuple(content["shape"]), content["first_slice"], content["n_slices"]
    if any(shape) and not all(shape):  # all are 0 where no slices are stored, as for 3D
        raise ValueError(f"case {case}: `shape` (={list(shape)}) must be above 0")
    if first + shape[0] > depth:
        raise ValueError(
            f"case {case}: {shape[0]} slices from `first_slice` (={first}) must be within `n_slices` (={depth})"
        )
    stamps = (content["source"], content.get("stored", ()))
    source, stored = (tuple((str(n), int(s), int(t)) for n, s, t in files) for files in stamps)
    entry = StoredCase(
        shape, first, depth, source, stored, content.get("pack", ""), content.get("offset", 0)
    )
    if not entry.pack:
        return entry
    if [name for name, *_ in stored] != [entry.pack]:
        raise ValueError(f"case {case}: `stored` must be the stamp of {entry.pack} alone")
    if entry.offset + entry.nbytes > entry.file_size:
        raise ValueError(
            f"case {case}: its array (from byte {entry.offset}, {entry.nbytes} bytes) must lie within the "
            f"{entry.file_size} bytes of {entry.pack}"
        )
    return entry


# -- files that are as they were written -----------------------------------------------------------


def checked(entry: StoredCase, files: Sequence[Path]) -> StoredCase | None:
    """Return the entry of a case whose files are as they were written; None where they must be made anew.

    Args:
        entry: The entry; where it lacks their stamps, they are read once, and the entry returned has them.
        files: All files that were made from the case.
    """
    try:
        stamps = tuple(file_stamp(file) for file in files)
    except FileNotFoundError:
        return None
    if entry.stored:
        return entry if entry.stored == stamps else None
    whole = all(can_be_read(file, entry.shape) for file in files)
    return replace(entry, stored=stamps) if whole else None


def require_sizes(folder: Path, stored: Mapping[str, StoredCase], store: Path) -> None:
    """Check that nnU-Net's files of some cases have the size with which they were written.

    Args:
        folder: nnU-Net's `<data_identifier>`.
        stored: The cases, as the index of the slice store has them.
        store: The slice store, for the message.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file was truncated, or replaced.
    """
    for entry in stored.values():
        for name, size, _ in entry.stored:
            if not name.endswith(".npy") and not entry.pack:
                require_size(folder / name, size, store)


def add_preprocessed(folder: Path, preprocessed: Path, case: str) -> StoredCase:
    """Copy one case of nnU-Net's preprocessed folder into the store.

    Args:
        folder: The store.
        preprocessed: nnU-Net's `<data_identifier>` folder.
        case: Name of the case.

    Raises:
        ValueError: The case cannot be read, or its values do not fit float16.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(preprocessed))(str(preprocessed), [case])
    try:
        data, _, _, properties = dataset.load_case(case)
        data = np.asarray(data[:])
    except Exception as error:  # blosc2, numpy and pickle each have their own
        raise ValueError(
            f"{preprocessed / case}: cannot be read ({error}). Preprocess it again: {prepare_command(folder)}, or "
            "nnUNetv2_preprocess."
        ) from error
    shape = write_case(folder, case, data)
    stamps = (file_stamp(folder / f"{case}.npy"),)
    return StoredCase(shape, *stack_position(properties), stored=stamps)


def follow_preprocessed(store: Path, preprocessed: Path, preprocessing: dict[str, Any]) -> bool:
    """Bring the store of a plain nnU-Net dataset up to date with nnU-Net's own folder.

    New and changed cases are copied, missing ones are dropped. A store that was made from raw images, or by other
    plans, is left alone.

    Args:
        store: The slice store; it need not exist.
        preprocessed: nnU-Net's `<data_identifier>` folder.
        preprocessing: What the plans say now, see `preprocessing_of`.

    Returns:
        Whether anything changed.

    Raises:
        FileNotFoundError: There is neither a store nor the folder.
        ValueError: A case cannot be read, or its values do not fit float16.
    """
    from tqdm import tqdm

    done: dict[str, StoredCase] = {}
    if (store / INDEX).is_file():
        made_by, done = read_index(store)
        from_folder = all(
            len(e.source) == 1 and e.source[0][0].endswith(PREPROCESSED) for e in done.values()
        )
        if not from_folder or made_by != preprocessing:
            return False
    if not preprocessed.is_dir():
        raise FileNotFoundError(
            f"{preprocessed} does not exist: run nnunet-ssp prepare or nnUNetv2_plan_and_preprocess."
        )
    sources = {
        file.stem: (file_stamp(file),)
        for file in sorted(preprocessed.iterdir())
        if file.name.endswith(PREPROCESSED) and not file.stem.endswith("_seg")
    }
    same = {case: entry for case, entry in done.items() if sources.get(case) == entry.source}
    checks = {case: checked(entry, [store / f"{case}.npy"]) for case, entry in same.items()}
    kept = {case: entry for case, entry in checks.items() if entry is not None}
    missing = [case for case in sources if case not in kept]
    if not missing and len(kept) == len(done):
        return False
    for case in tqdm(missing, desc="slice store", unit="case"):
        entry = add_preprocessed(store, preprocessed, case)
        kept[case] = replace(entry, source=sources[case])
    write_index(store, preprocessing, kept)
    shutil.rmtree(store.parent / TEMPORARY, ignore_errors=True)
    return True


def stack_position(properties: dict[str, Any]) -> tuple[int, int]:
    """Return (first slice, slices of the original stack) from a case's properties, undoing nnU-Net's non-zero crop."""
    first_slice = int(properties["bbox_used_for_cropping"][0][0])
    return first_slice, int(properties["shape_before_cropping"][0])
