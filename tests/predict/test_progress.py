"""What a run says of its frames and of the time left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnunet_ssp.phantom import PhantomSubject
from nnunet_ssp.predict.inputs import find_studies
from nnunet_ssp.predict.progress import FrameCount, n_frames_of
from tests.dicom_files import series
from tests.predict.conftest import save


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def frames(self, number: int, seconds: float = 40) -> Iterator[str]:
        for t in range(number):
            self.now += seconds
            yield f"frame {t}"


def test_the_frames_are_said_at_the_start() -> None:
    assert FrameCount({}, {}).introduction() == ""
    said = FrameCount({"a": 25, "b": 30, "c": None}, {"b": 12}).introduction()
    assert said == (
        "To segment: 55 frames of 2 subjects, 1 subject whose frames are counted on reading; "
        "12 frames done before"
    )
    assert FrameCount({"a": 1}, {}).introduction() == "To segment: 1 frame of 1 subject"
    said = FrameCount({"a": None, "b": None}, {}).introduction()
    assert said == "To segment: 2 subjects whose frames are counted on reading"


def test_the_time_left_is_that_of_the_frames_to_come(capsys) -> None:
    clock = Clock()
    progress = FrameCount({"a": 25, "b": 30, "c": None}, {"b": 12}, clock)
    assert progress.time_left() == ""
    frames = progress.through("a", 25, range(25), clock.frames(25))
    assert next(frames) == (0, "frame 0")
    assert progress.under_way() == ", and 0 of 25 frames of a"
    next(frames)
    # 24 of a, 18 of b, and 30 of c, as b has
    assert "One frame took 40 s: about 48 min left for 72 frames" in capsys.readouterr().err
    assert progress.under_way() == ", and 1 of 25 frames of a"
    assert [number for number, _ in frames] == [*range(2, 25)]
    assert "One frame took" not in capsys.readouterr().err
    assert progress.under_way() == ""
    assert progress.time_left() == "about 32 min left for 48 frames"
    progress.forget("b")
    assert progress.time_left() == "about 17 min left for 25 frames"
    for _ in progress.through("c", 10, [8, 9], clock.frames(2)):
        pass
    assert progress.time_left() == ""


def test_frames_are_counted_by_headers(subject: PhantomSubject, tmp_path: Path) -> None:
    image, affine = subject.image, subject.affine
    save(image, tmp_path / "whole.nii.gz", affine)
    for t in range(3):
        save(image[..., t], tmp_path / "apart" / f"frame{t}.nii.gz", affine)
    for z in range(4):
        place = affine.copy()
        place[:3, 3] += z * affine[:3, 2]
        save(image[:, :, [z]], tmp_path / "slices" / f"slice{z}.nii.gz", place)
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    tasks, _ = find_studies([tmp_path], False, (), 1)
    assert {task.subject: n_frames_of(task) for task in tasks} == {
        "apart": 3,
        "bad": None,
        "slices": 3,
        "whole": 3,
    }


def test_dicom_is_counted_as_it_is_read(tmp_path: Path) -> None:
    series(tmp_path / "s")
    tasks, _ = find_studies([tmp_path / "s"], False, (), 1)
    assert [n_frames_of(task) for task in tasks] == [None]


def test_nothing_is_said_of_seconds(capsys) -> None:
    clock = Clock()
    progress = FrameCount({"a": 25, "b": 25}, {}, clock)
    for _ in progress.through("a", 25, range(25), clock.frames(25, 0.1)):
        pass
    assert progress.time_left() == "" and "left" not in capsys.readouterr().err
