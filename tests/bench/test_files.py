from __future__ import annotations

import pytest

from nnunet_ssp.bench import files
from nnunet_ssp.bench.place import ON_CPU, ON_CUDA, Bench
from nnunet_ssp.files import compression
from nnunet_ssp.preparation import packing, preprocessing
from nnunet_ssp.preparation.packing import WithoutMask

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_ways_run_in_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    ways = []

    def in_turns(works, device, seconds, clock):
        for work in works.values():
            work()
        return {"before": [3.0, 3.0], "ours": [1.5, 1.0]}

    real, prepare = files._convert, preprocessing.preprocess_case

    def convert(source):
        ways.append(compression.WITH_ISAL)
        real(source)

    def preprocess_case(*args, **kwargs):
        ways.append(packing.WithoutMask)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(files, "_convert", convert)
    monkeypatch.setattr(files, "in_turns", in_turns)
    monkeypatch.setattr(preprocessing, "preprocess_case", preprocess_case)
    monkeypatch.setattr(compression, "WITH_ISAL", compression.isal_zlib is not None)
    found = files.files_over_zlib(bench)
    assert ways[:2] == [False, compression.WITH_ISAL]
    assert {*ways[2:]} == {WithoutMask, files.ConfigurationManager}
    assert found["unlabelled_over_resampled_mask"] == 2.5
    assert found["convert_over_zlib"] == (2.5 if compression.WITH_ISAL else None)


def test_images_are_as_large_as_clinical_ones():
    """At the patch of a CPU and of a card."""
    assert [files.clinical_matrix(side) for side in (ON_CPU.side, ON_CUDA.side)] == [256, 256]
