from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.predict.postprocessing import FUNCTION, postprocess, read_postprocessing


def record(folder: Path, **changed: object) -> Path:
    step = {"labels_or_regions": [1]}
    content = {"postprocessing_fns": [FUNCTION], "postprocessing_kwargs": [step]} | changed
    file = folder / "postprocessing.json"
    file.write_text(json.dumps(content))
    return file


def test_only_the_largest_piece_stays(tmp_path: Path) -> None:
    labels = np.zeros((6, 6, 3), np.uint8)
    labels[:3, :3], labels[5, 5], labels[0, 5] = 1, 1, 2
    steps = read_postprocessing(record(tmp_path).with_suffix(".pkl"))
    expected = np.where((labels == 1) & (np.arange(6)[:, None, None] == 5), 0, labels)
    np.testing.assert_array_equal(postprocess(labels, steps), expected)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"postprocessing_fns": ["os.system"]}, "`postprocessing_fns` (=os.system) must be"),
        ({"postprocessing_fns": []}, "must list"),
        ({"postprocessing_kwargs": [{"labels_or_regions": "LV"}]}, "must be labels"),
        ({"postprocessing_kwargs": [{"other": [1]}]}, "must be labels"),
        ({"postprocessing_kwargs": [[1]]}, "must be labels"),
    ],
)
def test_another_record_is_refused(tmp_path: Path, changed: dict, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        read_postprocessing(record(tmp_path, **changed))
    assert reason in str(error.value)


def test_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    steps = read_postprocessing(record(tmp_path, postprocessing_fns=[], postprocessing_kwargs=[]))
    labels = np.ones((2, 2, 2), np.uint8)
    assert postprocess(labels, steps) is labels
