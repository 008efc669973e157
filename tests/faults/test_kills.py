"""Commands that are killed anywhere lose nothing; see `harness`. NNUNET_SSP_KILLS sets the number of kills."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_ssp.phantom import write_mnms
from tests.faults.harness import KILLS, Done, Harness, Watch, harness, survives_kills, tree
from tests.predict.conftest import write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(
        not Path("/proc/self/fd").is_dir(), reason="the harness needs Linux's /proc"
    ),
]

SUBSETS = ("folds", 901, "--subsets", 1, "--seeds", 0, 1)


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with harness() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    counts = {"labelled": 3, "unlabelled": 1, "testing": 1}
    return write_mnms(folder, **counts, matrix=48, frames=3, slices=3)


def convert(source: Path) -> list[object]:
    return ["convert", "mnms", "-i", source, "-d", 901, "--name", "Phantom", "-np", 1]


@pytest.fixture(scope="module")
def converted(server: Harness, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("converted")
    done = server.run(base, convert(source))
    assert done.status == 0, done.said
    return base


@pytest.fixture(scope="module")
def prepared(server: Harness, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("prepared") / "base"
    shutil.copytree(converted, base)
    done = server.run(base, ["prepare", 901, "-np", 1])
    assert done.status == 0, done.said
    return base


def test_convert(server, source, tmp_path):
    survives_kills(server, tmp_path / "nothing", tmp_path, convert(source), KILLS, seed=1)


def test_convert_over_another(server, source, converted, tmp_path):
    command = [*convert(source), "--overwrite"]
    survives_kills(server, converted, tmp_path, command, KILLS, seed=2)


def test_folds(server, prepared, tmp_path):
    survives_kills(server, prepared, tmp_path, SUBSETS, KILLS, seed=3)


def test_prepare(server, converted, tmp_path):
    survives_kills(server, converted, tmp_path, ["prepare", 901, "-np", 1], KILLS, seed=4)


@pytest.fixture(scope="module")
def cines(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of two 4D files, and a model of random weights."""
    base = tmp_path_factory.mktemp("cines")
    (base / "in").mkdir()
    for file in sorted(source.rglob("*_sa.nii.gz"))[:2]:
        shutil.copy(file, base / "in" / file.name)
    return base / "in", write_model(base / "model")


def test_predict(server, cines, tmp_path):
    """Wherever it is killed, what is finished stays as it is, and a second run does the rest alone."""
    images, model = cines

    def predict(base: Path, kill_at: int = 0) -> Done:
        words = ["predict", "-i", images, "-m", model, "-o", base / "nnUNet_results" / "out"]
        return server.run(base, [*words, "-device", "cpu", "--disable_tta"], kill_at)

    def finished(base: Path) -> dict[Path, int]:
        """The files of subjects that have a record, and when they were written."""
        out = base / "nnUNet_results" / "out"
        subjects = [file.name.removesuffix(".json") for file in out.glob("[!.]*_seg.json")]
        return {f: f.stat().st_mtime_ns for s in subjects for f in sorted(out.glob(f"{s}.*"))}

    done = predict(tmp_path / "whole")
    assert done.status == 0, done.said
    expected = tree(tmp_path / "whole")
    rng = random.Random(5)
    # The last quarter is the second subject's end and the tables.
    places = [3 * done.events // 4, *(rng.randint(1, done.events) for _ in range(KILLS))]
    for number, place in enumerate(places):
        base = tmp_path / f"killed{number}"
        assert predict(base, place).status == -signal.SIGKILL
        before = finished(base)
        assert before or number > 0
        for name, content in tree(base).items():
            hidden = any(part.startswith(".") for part in Path(name).parts)
            assert hidden or expected.get(name) == content, f"{place}: {name} is half-written"
        again = predict(base)
        assert again.status == 0, again.said
        found = tree(base)
        assert sorted(found) == sorted(expected), place
        assert [name for name in expected if found[name] != expected[name]] == [], place
        assert finished(base).items() >= before.items(), f"{place}: written again"
        shutil.rmtree(base)


def test_a_kill_by_the_clock(server, source, tmp_path):
    killed = server.run(tmp_path, convert(source), seconds=1e-3)
    assert killed.status == -signal.SIGKILL
    done = server.run(tmp_path, convert(source))
    assert done.status == 0, done.said


def test_the_harness_sees_what_is_changed_and_where(tmp_path):
    watch = Watch([str(tmp_path / "inside")])
    inside, outside = str(tmp_path / "inside" / "a"), str(tmp_path / "b")
    for event, arguments in (
        ("open", (inside, "r", os.O_RDONLY)),
        ("open", (3, "w", os.O_WRONLY)),
        ("open", ("/dev/null", "w", os.O_WRONLY)),
        ("os.listdir", (inside,)),
    ):
        watch(event, arguments)
    assert (watch.count, watch.outside) == (0, [])
    watch("open", (inside, "w", os.O_WRONLY | os.O_CREAT))
    watch("os.mkdir", (inside, 511, -1))
    watch("os.remove", (os.fsencode(inside), -1))
    watch("os.rename", (inside, outside, -1, -1))
    folder = os.open(tmp_path, os.O_RDONLY)
    watch("os.remove", ("inside/b", folder))
    os.close(folder)
    assert watch.count == 5
    assert watch.outside == [f"os.rename {outside}"]


def test_the_harness_kills_where_it_is_told(server, source, tmp_path):
    assert server.run(tmp_path, convert(source), kill_at=2).status == -signal.SIGKILL
    assert server.run(tmp_path, convert(source), kill_at=10**9).status == 0
