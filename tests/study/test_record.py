from __future__ import annotations

import importlib.util

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.workflow import unfinished
from tests.study.small_workflows import job, run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "of another command"}'])
def test_a_damaged_record_is_none(tmp_path, content):
    (made,) = jobs = [job("pretrain", "MIM/seed0")]
    (tmp_path / made.record).parent.mkdir(parents=True)
    (tmp_path / made.record).write_text(content)
    assert unfinished(jobs, tmp_path, forget=True) == jobs
    assert run(tmp_path, jobs)[0] == 0
    assert unfinished(jobs, tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"command": "x"}'])
def test_without_a_whole_record_there_is_none(tmp_path, content):
    file = tmp_path / "train.json"
    if content is not None:
        file.write_text(content)
    assert read_record(file) == {}


def test_a_record_is_read_as_it_was_written(tmp_path):
    content = {"key": "k", "command": "c", "seconds": 1.5, "finished": "now", "machine": "m"}
    write_json(tmp_path / "train.json", content)
    assert read_record(tmp_path / "train.json") == content
