from __future__ import annotations

import pytest

from nnunet_ssp.study.expansion import at_size

CONTENT = {
    "title": "T",
    "settings": {"pretraining": {"num_epochs": 3, "batch_size": 4}, "finetuning": {"seed": 1}},
    "by_size": {
        "small": {"plans": "p", "settings": {"pretraining": {"batch_size": 8}}},
        "large": {},
    },
}


def test_parts_of_a_size_replace_those_of_the_study():
    small, name = at_size(CONTENT, None)
    assert name == "small"
    assert small == {
        "title": "T",
        "plans": "p",
        "settings": {"pretraining": {"num_epochs": 3, "batch_size": 8}, "finetuning": {"seed": 1}},
    }
    large, name = at_size(CONTENT, "large")
    assert name == "large"
    assert large == {key: value for key, value in CONTENT.items() if key != "by_size"}
    assert at_size(large, None) == (large, None)


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (CONTENT, "huge", r"`--size` \(=huge\) must be one of its sizes: small, large"),
        ({"title": "T"}, "small", r"`--size` \(=small\) must be one of its sizes: it has none"),
        ({"by_size": ["small"]}, None, "by_size must hold the parts of each size"),
        ({"by_size": {"small": 3}}, None, "by_size must hold the parts of each size"),
    ],
)
def test_what_is_no_size(content, size, message):
    with pytest.raises(ValueError, match=message):
        at_size(content, size)


def test_a_size_that_leaves_the_file_as_it_is():
    content = {"plans": "a", "by_size": {"default": {}, "other": {"plans": "b"}}}
    assert at_size(content, None) == at_size(content, "default") == ({"plans": "a"}, None)
    assert at_size(content, "other") == ({"plans": "b"}, "other")
