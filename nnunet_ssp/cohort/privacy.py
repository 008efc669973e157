"""Rules for what shared files, above all checkpoints, may tell about persons and sites.

Subjects are stored as hashes. The salt is fixed by the format, so equal subjects have equal hashes everywhere:
fine-tuning finds a test subject among them, between sites too. Whoever knows a name can therefore test whether it is in
a file. Names of public sets are known to all. `nnunet-ssp convert cine` gives local subjects random names, which mean
nothing outside; with `--keep-ids`, and in earlier datasets, they are those of files or folders, or PatientIDs. Only the
last name of a path is stored.
"""

from __future__ import annotations

import hashlib
import math
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from numbers import Real
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from nnunet_ssp.console import count_of, some

# The format of hashes, which is a part of each. Another salt, length or rule of names needs the next number.
VERSION = 1
SALT = f"nnunet-ssp subject {VERSION}\n"
DIGITS = 32
PUBLIC = ("mm1", "mm2", "acdc")  # sources of `cases.csv` whose codes are the same for everybody
# Keys of `dataset.json` that a network needs; the rest is free text and lists of files.
NEEDED = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "numTraining",
    "overwrite_image_reader_writer",
)
TIMES = (
    "epoch_start_timestamps",
    "epoch_end_timestamps",
)  # of nnU-Net's logs, in seconds since 1970
_HASH = re.compile(r"s(?P<version>\d+):[0-9a-f]+")
_FRAME = re.compile(rf"((?:{'|'.join(PUBLIC)})-.+)_frame\d{{2,}}")
_WHOLE_PATH = re.compile(r"(?:file:)?/+[^/]|~[^/]*/|[A-Za-z]:[\\/]|\\\\[^\\]", re.ASCII)
# Within a text. What follows a letter, a colon or a slash is a part of an address, or of words like encoder/decoder.
_PATH = re.compile(
    r"(?<![\w/:.\\])(?:~?/(?:[^\s/'\",;:]+/)+|(?:[A-Za-z]:\\|\\\\)(?:[^\s\\'\",;:]+\\)*)[^\s/\\'\",;:]+"
)
_SHOWN = 5  # names in a line


def hashed_subject(subject: str) -> str:
    """Return the hash under which a checkpoint names a subject.

    Args:
        subject: `<source>-<subject>`, see `cases.Case.subject_key`; of a public set also with `_frame<TT>`, which is
            left out.
    """
    match = _FRAME.fullmatch(subject)
    name = match[1] if match else subject
    digest = hashlib.sha256((SALT + name).encode("utf-8", "surrogatepass")).hexdigest()
    return f"s{VERSION}:{digest[:DIGITS]}"


def hashed_subjects(subjects: Iterable[str]) -> set[str]:
    """Return the hashes of subjects, names or hashes already: earlier checkpoints hold names.

    Raises:
        ValueError: A hash is of a format that this version does not know.
    """
    found = set()
    for subject in subjects:
        match = _HASH.fullmatch(subject)
        if match and int(match["version"]) != VERSION:
            raise ValueError(
                f"`subjects` (={subject}, ...) must be of format s{VERSION}: a later nnunet-ssp has written the file. "
                "Update nnunet-ssp, or nobody can tell whether it has seen a test subject."
            )
        found.add(subject if match else hashed_subject(subject))
    return found


def ours_among(subjects: Iterable[str], hashes: Collection[str]) -> list[str]:
    """Return those of our subjects whose hash is among others' hashes, by name, sorted."""
    return sorted({subject for subject in subjects if hashed_subject(subject) in hashes})


def file_name(path: str) -> str:
    """Return the last name of a path, of POSIX or of Windows; any other text stays."""
    of_windows = re.match(r"[A-Za-z]:[\\/]|\\\\", path)
    return (PureWindowsPath if of_windows else PurePosixPath)(path).name or path


def origin(weights_from: str) -> dict[str, str]:
    """Return what a record says about the file that filled a network: its name, and a hash that tells paths apart."""
    name = file_name(weights_from)
    if name == weights_from:
        return {"weights_from": name}
    return {"weights_from": name, "weights_from_hash": hashed_path(weights_from)}


def has_origin(record: Mapping[str, Any], weights_from: str) -> bool:
    """Whether a record, also an earlier one with a whole path, tells of this file."""
    if "weights_from_hash" in record:
        return bool(record["weights_from_hash"] == hashed_path(weights_from))
    return bool(record.get("weights_from") == weights_from)


def hashed_path(path: str) -> str:
    """Return a short hash that tells paths apart; a hash stays as it is."""
    if re.fullmatch(r"path:[0-9a-f]{6}", path):
        return path
    # Few digits: enough to tell a handful of files apart, too few to be sure of a guessed path.
    digest = hashlib.sha256(f"nnunet-ssp path\n{path}".encode("utf-8", "surrogatepass"))
    return f"path:{digest.hexdigest()[:6]}"


def without_files(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `dataset.json` without its list of images, whose names are those of cases."""
    return {k: v for k, v in dataset_json.items() if k not in ("dataset", "training", "test")}


# -- a checkpoint as a whole -----------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One thing that a checkpoint tells about persons or the site.

    Attributes:
        what: Its kind.
        text: Its content and place.
        remains: Whether `stripped` leaves it, because the leak check needs it.
    """

    what: str
    text: str
    remains: bool = False


def findings(content: Mapping[str, Any]) -> list[Finding]:
    """List what a checkpoint reveals about persons or the site.

    Args:
        content: Content of a checkpoint, from `checkpoints.load`.
    """
    return [*_subjects(content), *_dataset(content), *_times(content), *_paths(content)]


def stripped(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without what `findings` lists; weights, curves and hashes of subjects stay.

    Args:
        content: Content of a checkpoint; it is not changed.

    Raises:
        ValueError: See `hashed_subjects`.
    """
    kept = {
        name: part if name == "network_weights" else map_texts(part, _anonymous)
        for name, part in content.items()
    }
    if "ssp" in kept:
        kept["ssp"] = _record_without(kept["ssp"])
    arguments = kept.get("init_args", {})
    if "dataset_json" in arguments:
        arguments["dataset_json"] = {
            k: v for k, v in arguments["dataset_json"].items() if k in NEEDED
        }
    arguments.get("plans", {}).pop("dataset_name", None)
    if "logging" in kept:
        kept["logging"] = kept["logging"] | _times_from_zero(kept["logging"])
    return kept


def _record_without(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in record.items() if k != "weights_from_hash"}
    if "subjects" in kept:
        kept["subjects"] = sorted(hashed_subjects(record["subjects"]))
    if "weights_from" in kept:
        kept["weights_from"] = file_name(kept["weights_from"])
    if "pretraining" in kept:
        kept["pretraining"] = _record_without(kept["pretraining"])
    if "chain" in kept:
        kept["chain"] = [_record_without(link) for link in kept["chain"]]
    return kept


def _subjects(content: Mapping[str, Any]) -> Iterator[Finding]:
    record = content.get("ssp", {})
    parts = {"ssp": record, "ssp.pretraining": record.get("pretraining", {})}
    parts |= {f"ssp.chain[{n}]": link for n, link in enumerate(record.get("chain", []))}
    for place, part in parts.items():
        names = [s for s in part.get("subjects", ()) if not _HASH.fullmatch(s)]
        n_hashes = len(part.get("subjects", ())) - len(names)
        if names:
            yield Finding(
                "subjects",
                f"{count_of(len(names), 'name')} in `{place}.subjects`: {some(sorted(names), _SHOWN)}",
            )
        if n_hashes:
            text = (
                f"{count_of(n_hashes, 'hash', 'hashes')} in `{place}.subjects`: they name nobody, but who knows a name "
                "can test whether it is among them; the check for leaks needs them"
            )
            yield Finding("subjects", text, remains=True)
        pattern = part.get("settings", {}).get("subject_pattern")
        if pattern is not None:
            yield Finding(
                "subjects", f"`subject_pattern` (={pattern}) of their names", remains=True
            )


def _dataset(content: Mapping[str, Any]) -> Iterator[Finding]:
    arguments = content.get("init_args", {})
    if name := arguments.get("plans", {}).get("dataset_name"):
        yield Finding("dataset", f"its name (={name}) in `init_args.plans`")
    for key, value in arguments.get("dataset_json", {}).items():
        if key in NEEDED:
            continue
        where = f"in `init_args.dataset_json.{key}`"
        if key == "dataset" and isinstance(value, Mapping):
            yield Finding(
                "cases", f"{count_of(len(value), 'name')} {where}: {some(sorted(value), _SHOWN)}"
            )
        else:
            text = " ".join(str(value).split())
            yield Finding("dataset", f"{text[:80]}{'...' * (len(text) > 80)} {where}")


def _times(content: Mapping[str, Any]) -> Iterator[Finding]:
    seconds = _seconds(content.get("logging", {}))
    if seconds and min(seconds) > 1e8 and max(seconds) < 1e11:  # stripped ones begin at 0
        first, last = (
            datetime.fromtimestamp(end, timezone.utc).strftime("%Y-%m-%d %H:%M")
            for end in (min(seconds), max(seconds))
        )
        yield Finding("dates", f"training from {first} to {last} UTC, in `logging`")


def _seconds(logging: Mapping[str, Any]) -> list[float]:
    return [float(s) for key in TIMES for s in logging.get(key, ()) if _is_time(s)]


def _is_time(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _times_from_zero(logging: Mapping[str, Any]) -> dict[str, Any]:
    """Count the times of epochs from the first, which keeps their durations."""
    seconds = _seconds(logging)
    return {
        key: [float(s) - min(seconds) if _is_time(s) else s for s in logging[key]]
        for key in TIMES
        if key in logging and seconds
    }


def _paths(content: Mapping[str, Any]) -> Iterator[Finding]:
    for where, text in _texts(content, ""):
        if _anonymous(text) != text:
            yield Finding("path", f"{text} in `{where}`")
    if "weights_from_hash" in content.get("ssp", {}):
        yield Finding(
            "path", "a short hash of one, which names nothing, in `ssp.weights_from_hash`"
        )


def _anonymous(text: str) -> str:
    """Cut absolute paths to their last names, and replace this machine's name."""
    if _WHOLE_PATH.match(text):
        return file_name(text)
    text = cut_paths(text)
    host = socket.gethostname()
    return re.sub(rf"\b{re.escape(host)}\b", "host", text) if len(host) > 3 else text


def cut_paths(text: str) -> str:
    """Return a text whose absolute paths are cut to their last names."""
    return _PATH.sub(lambda match: file_name(match[0]), text)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Copy nested values with changed texts; tensors and all else are the same objects."""
    if type(value) is str:
        return change(value)
    if isinstance(value, dict):
        return {k: map_texts(v, change) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_texts(v, change) for v in value)
    return value


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield all texts of nested values, with their places."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _texts(part, f"{where}[{number}]")
