from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssp.cohort.privacy import hashed_subject
from nnunet_ssp.training.chain import (
    chain_in_words,
    continue_heads,
    last_pattern,
    links_of,
    refuse_test_subjects,
    seen_of,
    subjects_seen,
)


def record(method: str, *subjects: str, **more: Any) -> dict[str, Any]:
    return {
        "trainer": f"nnUNetTrainer{method}Pretrain",
        "method": method,
        "settings": {"num_epochs": 1},
        "counts": {"subjects": len(subjects), "frames": 3, "slices": 1},
        "subjects": [hashed_subject(subject) for subject in subjects],
        "papers": [f"On {method}."],
        **more,
    }


def hashes(*subjects: str) -> set[str]:
    return {hashed_subject(subject) for subject in subjects}


GENERALIST = record("BYOL", "mm1-a", "mm1-b")
SPECIALIST = record("MIM", "acdc-c", chain=links_of(GENERALIST), weights_from_hash="path:012345")


def test_links_are_in_the_order_of_the_trainings():
    links = links_of(SPECIALIST)
    assert [link["method"] for link in links] == ["BYOL", "MIM"]
    assert all("chain" not in link and "weights_from_hash" not in link for link in links)
    assert subjects_seen(links) == hashes("mm1-a", "mm1-b", "acdc-c")
    tuned = {"trainer": "nnUNetTrainerFinetune", "subjects": ["mm1-d"], "chain": links}
    assert links_of(tuned) == [
        *links,
        {"trainer": "nnUNetTrainerFinetune", "subjects": [*hashes("mm1-d")]},
    ]


def test_files_of_before_there_were_chains():
    tuned = {
        "trainer": "nnUNetTrainerFinetune",
        "pretraining": {"method": "MIM"},
        "subjects": ["mm1-a"],
    }
    assert [link.get("method") for link in links_of(tuned)] == ["MIM", None]
    assert subjects_seen(links_of(tuned)) == hashes("mm1-a")
    assert links_of({}) == [{}]


def test_a_test_subject_of_any_link_is_refused_by_name():
    about = {"split": "test", "subject_key": "acdc-c", "subject": "c", "source": "acdc"}
    cases: Any = {"c": SimpleNamespace(**about)}
    message = (
        r"seen test subject c in link 2 of 2, MIM: every result would be wrong\. Pretrain again"
    )
    with pytest.raises(ValueError, match=message):
        refuse_test_subjects(links_of(SPECIALIST), cases)
    with pytest.raises(ValueError, match="seen test subject c: every result would be wrong"):
        refuse_test_subjects(links_of(SPECIALIST)[1:], cases)
    refuse_test_subjects(links_of(GENERALIST), cases)


def test_each_link_names_subjects_by_its_own_pattern():
    whole = record("MIM", "acdc-c")
    with_pattern = record("MIM", "c", settings={"subject_pattern": "acdc-(.)_"})
    assert seen_of(["acdc-c_1"], [with_pattern], {}) == ["c"]
    assert seen_of(["acdc-c_1"], [whole], {}) == []
    assert seen_of(["acdc-c"], [whole, with_pattern | {"settings": {}}], {}) == ["acdc-c"]


def test_fine_tuning_names_subjects_by_the_pattern_of_an_earlier_link():
    first = record("MIM", "a", settings={"subject_pattern": "acdc-(.)_"})
    tuned = {"trainer": "nnUNetTrainerFinetune", "settings": {}, "subjects": [*hashes("a", "c")]}
    assert seen_of(["acdc-c_1", "acdc-d_1"], [first, tuned], {}) == ["c"]
    assert last_pattern([first, tuned]) == "acdc-(.)_"
    assert last_pattern([tuned]) is None


def test_the_chain_in_words():
    tuned = {
        "trainer": "nnUNetTrainerFinetune",
        "subjects": ["mm1-d"],
        "chain": links_of(SPECIALIST),
    }
    assert chain_in_words([{}, *links_of(tuned)]) == [
        "1. a plain nnU-Net checkpoint: unknown data",
        "2. BYOL: 2 subjects, 3 frames, 1 slice",
        "3. MIM: 1 subject, 3 frames, 1 slice",
        "4. nnUNetTrainerFinetune: 1 subject up to here",
    ]


class Heads:
    """The part of a method that `continue_heads` needs."""

    settings = SimpleNamespace()

    def __init__(self, **state: Any) -> None:
        self.state = state
        self.loaded: Any = None

    def extra_state(self) -> dict[str, Any]:
        return self.state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.loaded = state


@pytest.mark.parametrize(
    ("ssp", "state", "words"),
    [
        ({"method": "Heads"}, {"heads": {"w": torch.ones(2, 3)}}, "the heads of Heads go on"),
        ({"method": "Heads"}, {"heads": {"w": torch.ones(3, 2)}}, "are new (their shapes differ)"),
        ({"method": "Heads"}, {"heads": {}}, "are new (their shapes differ)"),
        ({"method": "Heads"}, {}, "are new (the file holds none)"),
        ({"method": "MIM"}, {"heads": {"w": torch.ones(2, 3)}}, "are new (the file is of MIM)"),
        ({}, {}, "are new (the file has no method)"),
    ],
)
def test_heads_go_on_only_in_the_same_method_and_shapes(ssp, state, words):
    method: Any = Heads(heads={"w": torch.zeros(2, 3)})
    assert continue_heads(method, ssp, state).endswith(words)
    assert (method.loaded == state) == words.endswith("go on")


def test_heads_of_adapted_weights_are_new():
    """The state may hold the student's weights, which would come back unadapted."""
    state = {"heads": {"w": torch.ones(2, 3)}}
    method: Any = Heads(heads={"w": torch.zeros(2, 3)})
    said = continue_heads(method, {"method": "Heads"}, state, adapted=True)
    assert said == "the heads of Heads are new (the weights were adapted)" and method.loaded is None


def test_a_method_without_heads():
    method: Any = SimpleNamespace(extra_state=dict, settings=SimpleNamespace())
    assert continue_heads(method, {}, {}).startswith("the heads of Simple")


def test_a_random_teacher_does_not_follow_weights():
    state = {"heads": {"w": torch.ones(2, 3)}}
    method: Any = Heads(heads={"w": torch.zeros(2, 3)})
    method.settings = SimpleNamespace(teacher_init="separate")
    with pytest.raises(ValueError, match=r"the file is of MIM\): use teacher_init=copy"):
        continue_heads(method, {"method": "MIM"}, state)
    assert continue_heads(method, {"method": "Heads"}, state).endswith("go on")  # with its teacher
