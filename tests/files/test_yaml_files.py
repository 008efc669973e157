from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.files.yaml_files import read_yaml


def test_plain_data(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("ä: [1, 2.5, yes, '001', 2020-01-02]\n", encoding="utf-8")
    found = read_yaml(file)["ä"]
    assert found[:4] == [1, 2.5, True, "001"]
    assert str(found[4]) == "2020-01-02"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a: [", "not a YAML file .*expected"),
        (b"a: '\xff'", "not a YAML file .*utf-8"),
        (b"a: !!python/object/apply:os.getcwd []", "not a YAML file .*could not determine"),
        (b"a: 2020-13-45", "does not fit its type: month"),
        (b"a: !!int many", "does not fit its type"),
        (b"a: !!timestamp noon", "does not fit its type"),
        (b"[" * 10_000, "nested too deeply"),
    ],
)
def test_what_is_no_plain_data(tmp_path: Path, content: bytes, match: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.yaml: .*{match}"):
        read_yaml(file)
