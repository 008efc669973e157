from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_ssp.preparation.planes import check_plane

CARDIAC = ((8.0, 1.4, 1.4), (10, 192, 160))  # spacing and shape of a short-axis stack: slices first
JOINED = ((1.0, 1.4, 1.4), (1, 72, 64))  # a 2D image joined to 3D
THIN = ((1.0, 1.4, 1.4), (6, 72, 64))
ISOTROPIC = ((1.0, 1.0, 1.0), (150, 180, 160))
PICTURE = ((999.0, 1.0, 1.0), (1, 28, 28))


@pytest.fixture
def check(tmp_path: Path) -> Any:
    def run(
        files: list[tuple[Any, Any]],
        patch: tuple[int, ...] = (96, 96),
        forward: tuple[int, ...] = (0, 1, 2),
        ours: bool = False,
        any_plane: bool = False,
    ) -> list[str]:
        spacings, shapes = zip(*files, strict=True)
        fingerprint = {"spacings": spacings, "shapes_after_crop": shapes}
        (tmp_path / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        plans: Any = SimpleNamespace(
            plans_name="P",
            transpose_forward=forward,
            get_configuration=lambda _: SimpleNamespace(patch_size=patch),
        )
        return check_plane(plans, "2d", tmp_path, ours, any_plane)

    return run


@pytest.mark.parametrize("ours", [True, False])
def test_the_acquired_plane_says_nothing(check: Any, ours: bool):
    assert check([CARDIAC] * 3, ours=ours) == []
    assert check([CARDIAC, CARDIAC, THIN], ours=ours) == []  # most cases count


@pytest.mark.parametrize("ours", [True, False])
def test_lines_of_pixels_are_refused(check: Any, ours: bool):
    message = (
        r"P 2d: patch 1 x 64, planes of 1 x 64 pixels, along the axis of the rows; the files have a median of "
        r"1 x 72 x 64 voxels of 1 x 1.4 x 1.4 mm .*one pixel thick.*Correct the spacing.*--any-plane"
    )
    with pytest.raises(ValueError, match=message):
        check([JOINED] * 3, (1, 64), (1, 0, 2), ours)
    (thick, small) = check([JOINED] * 3, (1, 64), (1, 0, 2), ours, any_plane=True)
    assert "one pixel thick" in thick and "at least 32 x 32" in small


def test_planes_across_the_slices(check: Any):
    with pytest.raises(ValueError, match=r"planes across the acquired slices; the patch must be"):
        check([THIN] * 3, (8, 64), (1, 0, 2), ours=True)
    with pytest.raises(ValueError, match=r"across the acquired slices\. Correct"):
        check([((1.0, 1.4, 1.4), (60, 64, 64))], (64, 64), (2, 0, 1), ours=True)
    across, small = check([THIN] * 3, (8, 64), (1, 0, 2))
    assert "planes across the acquired slices." in across and "at least 32 x 32" in small


def test_a_small_patch(check: Any):
    with pytest.raises(
        ValueError, match=r"patch 28 x 32.*the patch must be at least 32 x 32 pixels"
    ):
        check([CARDIAC] * 3, (28, 32), ours=True)
    (line,) = check([CARDIAC] * 3, (28, 32))
    assert "the patch must be at least 32 x 32 pixels (a larger -gpu_memory_target may give" in line
    assert check([CARDIAC] * 3, (32, 32), ours=True) == []


def test_isotropic_volumes_have_no_acquired_plane(check: Any):
    for forward in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        for ours in (True, False):
            assert check([ISOTROPIC] * 2, (160, 160), forward, ours) == []


def test_volumes_without_a_short_axis_say_nothing(check: Any):
    assert check([((1.0, 1.4, 1.4), (60, 64, 64))] * 2, (64, 64), (1, 0, 2)) == []


def test_2d_images_and_3d_configurations_are_exempt(check: Any):
    assert check([PICTURE] * 2, (28, 28)) == []
    assert check([((1398.6, 1.4, 1.4), (1, 24, 24))] * 2, (24, 24)) == []
    assert check([JOINED] * 2, (1, 64, 64), (1, 0, 2)) == []
