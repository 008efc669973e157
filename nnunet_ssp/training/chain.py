"""Trainings one after the other, each from the weights of the one before: their record, and checks on all of it.

A checkpoint's record `ssp` has the earlier trainings in `chain`, the first one first. A link is a training's record,
without what only its own file needs. Its subjects are all that this training has seen. Natural images show none: of
them there are a count and a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import Case, shown_subjects
from nnunet_ssp.cohort.membership import held_out, test_subjects
from nnunet_ssp.console import count_of
from nnunet_ssp.files.contents import shown
from nnunet_ssp.methods.base import Method

ChainLink = dict[str, Any]
KEPT = (
    "trainer",
    "method",
    "transfers",
    "weights_from",
    "settings",
    "counts",
    "subjects",
    "images_digest",
    "papers",
    "versions",
    "snapshot",
)


def links_of(ssp: Mapping[str, Any]) -> list[ChainLink]:
    """Return every training that a record tells of, itself the last, as the chain of a training that starts from it.

    Args:
        ssp: Record of a checkpoint; empty for a plain nnU-Net checkpoint, which is a link without any content.

    Raises:
        ValueError: See `privacy.hashed_subjects`.
    """
    # Fine-tuned files were once without a chain, and held subjects of both trainings.
    before = ssp.get("chain", [ssp["pretraining"]] if ssp.get("pretraining") else [])
    return [_link(record) for record in (*before, ssp)]


def _link(record: Mapping[str, Any]) -> ChainLink:
    link = {name: record[name] for name in KEPT if name in record}
    if "subjects" in link:
        link["subjects"] = sorted(privacy.hashed_subjects(link["subjects"]))
    return link


def seen(
    cases: Sequence[str], n_slices: int, subjects: Collection[str], natural: bool
) -> dict[str, Any]:
    """Return the entries of a record that tell of its data; of images without persons, a count and a digest.

    Args:
        cases: Frames that the training sees, or natural images.
        n_slices: Slices of all of them.
        subjects: Whose frames they are.
        natural: Whether the images are natural ones.
    """
    if natural:
        digest = hashlib.sha256("\n".join(sorted(cases)).encode()).hexdigest()
        counts = {"subjects": 0, "frames": len(cases), "slices": n_slices}
        return {"subjects": [], "counts": counts, "images_digest": digest}
    counts = {"subjects": len(subjects), "frames": len(cases), "slices": n_slices}
    return {"subjects": sorted(privacy.hashed_subjects(subjects)), "counts": counts}


def subjects_seen(links: Iterable[ChainLink]) -> set[str]:
    """Return the hashes of all subjects that the links have seen."""
    return {subject for link in links for subject in link.get("subjects", ())}


def refuse_test_subjects(links: Sequence[ChainLink], cases: Mapping[str, Case]) -> None:
    """Refuse weights that have seen a test subject in any training.

    Args:
        links: Every training behind the weights.
        cases: Rows of `cases.csv`.

    Raises:
        ValueError: Names subject and link.
    """
    for number, link in enumerate(links, 1):
        leaked = privacy.ours_among(test_subjects(cases), link.get("subjects", ()))
        if leaked:
            shown = shown_subjects(leaked, cases)
            where = (
                f" in link {number} of {len(links)}, {link_name(link)}" if len(links) > 1 else ""
            )
            raise ValueError(
                f"The pretrained weights have seen test subject {', '.join(shown)}{where}: every result would be "
                "wrong. Pretrain again without it."
            )


def seen_of(
    validation: Iterable[str], links: Iterable[ChainLink], cases: Mapping[str, Case]
) -> list[str]:
    """Return the subjects of validation cases that the links have seen, sorted.

    Args:
        validation: Cases that the fold holds out.
        links: Every training behind the weights. One may name subjects by the `subject_pattern` of another, as
            fine-tuning does.
        cases: Rows of `cases.csv`.
    """
    names, links = list(validation), list(links)
    patterns = {None, *map(_pattern_of, links)}
    excluded = set[str]().union(*(held_out(names, cases, pattern) for pattern in patterns))
    return sorted(privacy.ours_among(excluded, subjects_seen(links)))


def last_pattern(links: Sequence[ChainLink]) -> str | None:
    """Return the `subject_pattern` of the last training that has one."""
    return next((pattern for link in reversed(links) if (pattern := _pattern_of(link))), None)


def _pattern_of(link: ChainLink) -> str | None:
    pattern: str | None = link.get("settings", {}).get("subject_pattern")
    return pattern


def link_name(link: ChainLink) -> str:
    """Return a link's method, or its trainer."""
    return shown(link.get("method", link.get("trainer", "a plain nnU-Net checkpoint")))


def data_in_words(record: Mapping[str, Any]) -> str:
    """Return how much data a training has seen; nothing where it is not recorded."""
    counts = record.get("counts", {})
    if "images_digest" in record:
        return count_of(counts.get("slices", 0), "natural image")
    return ", ".join(count_of(n, what.removesuffix("s")) for what, n in counts.items())


def chain_in_words(links: Sequence[ChainLink]) -> list[str]:
    """Return one line for each link, the first training first."""
    lines = []
    for number, link in enumerate(links, 1):
        data = data_in_words(link)
        if (
            not data and "subjects" in link
        ):  # a fine-tuning, whose list has those of the trainings before it, too
            data = f"{count_of(len(link['subjects']), 'subject')} up to here"
        at = link.get("snapshot", {}).get("epochs")
        until = "" if at is None else f", snapshot after {count_of(at, 'epoch')}"
        lines.append(f"{number}. {link_name(link)}{until}: {data or 'unknown data'}")
    return lines


def _shapes(state: Any) -> Any:
    """Return nested states with shapes in the place of tensors."""
    if isinstance(state, Mapping):
        return {name: _shapes(value) for name, value in state.items()}
    return tuple(state.shape) if isinstance(state, Tensor) else type(state)


def continue_heads(
    method: Method, ssp: Mapping[str, Any], state: Mapping[str, Any], adapted: bool = False
) -> str:
    """Let heads, teacher and centre go on if the file is of the same method and all shapes agree.

    Args:
        method: The method of this run, around the network that the file has filled.
        ssp: Record of the file.
        state: Its entry `ssp_state.method`.
        adapted: Whether the file's weights were changed to fit; the state would bring back weights that were not.

    Returns:
        In words, what was done.

    Raises:
        ValueError: The heads are new, and the teacher would be another random network.
    """
    name, theirs = type(method).__name__, ssp.get("method", "")
    own = method.extra_state()
    new = ""
    if theirs != name:
        new = f"the file is of {shown(theirs)}" if theirs else "the file has no method"
    elif own and adapted:
        new = "the weights were adapted"
    elif own and not state:
        new = "the file holds none"
    elif _shapes(own) != _shapes(state):
        new = "their shapes differ"
    if not new:
        method.load_extra_state(dict(state))
        return f"the heads of {name} go on" if own else f"{name} has no heads"
    if getattr(method.settings, "teacher_init", "copy") == "separate":
        raise ValueError(
            f"teacher_init=separate gives {name} a teacher with random weights, which undoes what the student takes "
            f"from -pretrained_weights ({new}): use teacher_init=copy."
        )
    return f"the heads of {name} are new ({new})"
