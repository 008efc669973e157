from __future__ import annotations

import numpy as np
import pytest

from nnunet_ssp.files.contents import (
    COUNT,
    DEEPEST,
    NAMES,
    NUMBER,
    TEXT,
    TEXTS,
    Rule,
    check,
    is_whole,
    nests_too_deeply,
    optional,
    printable,
    read_json,
    shown,
)


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


def test_whole_numbers():
    assert [value for value in (0, 1, -1, 2.0, True, "1", None) if is_whole(value)] == [0, 1]
    assert [value for value in range(5) if is_whole(value, least=3)] == [3, 4]


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        (TEXT, ["", "a"], [1, None, b"a"]),
        (TEXTS, [[], ["a"]], ["a", ("a",), ["a", 1]]),
        (NAMES, [{}, {"a": 1}], [[], {1: "a"}]),
        (COUNT, [0, 9], [-1, 1.0, True]),
        (NUMBER, [1, 0.5, np.float32(1)], ["1", True, None, 1j]),
        (optional(COUNT), [0, None], [-1, "0"]),
    ],
)
def test_rules(rule: Rule, kept: list[object], broken: list[object]):
    assert all(map(rule.holds, kept))
    assert not any(map(rule.holds, broken))


def test_values_are_checked_by_name():
    rules = {"a": COUNT, "b": optional(TEXT)}
    check({"a": 1, "b": None, "c": object()}, rules, "x.json")
    check({}, rules, "x.json")
    with pytest.raises(ValueError, match=r"^x\.json: `a` \(=-1\) must be a whole number from 0\.$"):
        check({"a": -1}, rules, "x.json")
    with pytest.raises(ValueError, match=r"^x\.json: `b` \(=1\) must be text, or null\.$"):
        check({"b": 1}, rules, "x.json")
    with pytest.raises(ValueError, match=r"^x\.json: `c` is missing\.$"):
        check({"a": 1}, rules, "x.json", ["a", "c"])


def test_the_deepest_nesting_is_taken():
    def nested(levels: int) -> list:
        return [nested(levels - 1)] if levels > 1 else []

    assert not nests_too_deeply(nested(DEEPEST))
    assert nests_too_deeply(nested(DEEPEST + 1))
