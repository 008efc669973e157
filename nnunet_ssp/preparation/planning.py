"""nnU-Net's own planning, with checks of what its planner takes for granted."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssp.console import nearest
from nnunet_ssp.files.nnunet import configuration_of, read_plans, require_preparing
from nnunet_ssp.nnunet import dataset_id, environment, quiet
from nnunet_ssp.preparation.planners import PLANNERS, TimmPlanner, own_planner
from nnunet_ssp.preparation.raw import (
    CaseJob,
)
from nnunet_ssp.preparation.raw_checks import (
    Rules,
    absurd_spacing,
    label_values,
)

LEAST_BATCH = 2  # nnU-Net's planner: UNet_min_batch_size


def reader_name(content: dict[str, Any], image: str) -> str:
    """Find the name of nnU-Net's class that reads the images."""
    tracebacks = io.StringIO()  # of every reader that was tried
    try:
        with contextlib.redirect_stdout(tracebacks), contextlib.redirect_stderr(tracebacks):
            return str(determine_reader_writer_from_dataset_json(content, image).__name__)
    except RuntimeError:
        raise ValueError(f"{image}: none of nnU-Net's readers can read it.") from None


def rules_of(content: dict[str, Any], jobs: Sequence[CaseJob]) -> Rules:
    """Make the rules for the files of a dataset; its labels are the values that masks may have."""
    reader = reader_name(content, jobs[0].images[0])
    return Rules(reader, len(content["channel_names"]), label_values(content["labels"]))


def find_planner(planner: str) -> Any:
    """Return the planner class of this name: nnU-Net's, one of this package, or of `timm:MODEL`.

    Raises:
        ValueError: There is none.
    """
    if (own := own_planner(planner)) is not None:
        return own
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    found = recursive_find_python_class(folder, planner, "nnunetv2.experiment_planning")
    if found is None:
        raise ValueError(
            f"`planner` (={planner}) must be one of nnU-Net's, e.g. nnUNetPlannerResEncM, {', '.join(PLANNERS)}, or "
            f"timm:MODEL.{nearest(planner, PLANNERS)}"
        )
    return found


@dataclass(frozen=True)
class Size:
    """Sizes of the 2D plans that a user names, where nnU-Net's planner would choose by memory.

    Attributes:
        patch: Rows and columns of the patch.
        width: Features of each stage, as a multiple of the planned.
        batch: Batch size.
    """

    patch: tuple[int, int] | None = None
    width: float | None = None
    batch: int | None = None

    def check(self, plans_name: str | None) -> None:
        """Refuse sizes that no network has, and plans of these sizes under the name of nnU-Net's own."""
        if self == Size():
            return
        if plans_name is None:
            raise ValueError(
                "--patch, --width and --batch must come with -overwrite_plans_name NAME: other plans, another name."
            )
        if self.patch is not None and min(self.patch) < 1:
            raise ValueError(f"`--patch` (={_sides(self.patch)}) must be above 0.")
        if self.width is not None and not self.width > 0:
            raise ValueError(f"`--width` (={self.width}) must be above 0.")
        if self.batch is not None and self.batch < LEAST_BATCH:
            raise ValueError(f"`--batch` (={self.batch}) must be at least {LEAST_BATCH}.")

    def planner(self, planner: Any) -> Any:
        """Return a planner that plans its 2D configuration at these sizes.

        Raises:
            ValueError: A width for an encoder of timm, which has its own.
        """
        if self == Size():
            return planner
        if self.width is not None and issubclass(planner, TimmPlanner):
            raise ValueError(
                f"`--width` (={self.width}) must be left out: an encoder of timm has its own."
            )
        return type(f"Sized{planner.__name__}", (_SizedPlanner, planner), {"size": self})


class _SizedPlanner:
    """Part of a planner: the 2D configuration has given sizes, every other one is as nnU-Net plans it."""

    size: Size
    UNet_base_num_features: int
    UNet_max_features_2d: int

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, *others: Any
    ) -> dict[str, Any]:
        """Plan one configuration."""
        planned = super().get_plans_for_configuration  # type: ignore[misc]
        if len(spacing) != 2:
            return dict(planned(spacing, median_shape, *others))
        before = self.UNet_base_num_features, self.UNet_max_features_2d
        self.UNet_base_num_features, self.UNet_max_features_2d = map(self._scaled, before)
        try:
            # nnU-Net begins with a patch of the median size.
            found = dict(planned(spacing, self.size.patch or median_shape, *others))
        finally:
            self.UNet_base_num_features, self.UNet_max_features_2d = before
        if self.size.patch and tuple(found["patch_size"]) != self.size.patch:
            raise ValueError(
                f"`--patch` (={_sides(self.size.patch)}) must be a size that nnU-Net can pool, and that the memory "
                f"holds; the next is {_sides(found['patch_size'])}."
            )
        found["median_image_size_in_voxels"] = median_shape
        found["batch_size"] = self.size.batch or found["batch_size"]
        return found

    def _scaled(self, features: int) -> int:
        return max(1, round(features * (self.size.width or 1)))


def _sides(patch: Sequence[int]) -> str:
    return " ".join(map(str, patch))


def plan(
    dataset: str | int, planner: Any, gpu_memory_target: float | None, plans_name: str | None
) -> str:
    """Run nnU-Net's experiment planner.

    Returns:
        The name of the plans.
    """
    # The planner builds dozens of networks only to count their feature maps; on this device they have no weights to
    # draw. It also uses the number of augmentation workers as a number of threads, which must not be 0.
    with quiet(), torch.device("meta"), environment(nnUNet_n_proc_DA="1"):
        _, name = plan_experiment_dataset(
            dataset_id(dataset), planner, gpu_memory_target, overwrite_plans_name=plans_name
        )
    return str(name)


def read_planned(target: Path, plans_name: str, configurations: Sequence[str]) -> PlansManager:
    """Read plans and check that nnU-Net can preprocess by them.

    Raises:
        FileNotFoundError: There are no such plans.
        ValueError: They lack a configuration, name a class that nnU-Net lacks, or have another name.
    """
    file = target / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: leave out -p to make plans.")
    plans = read_plans(file)
    for configuration in configurations:
        require_classes(configuration_of(plans, configuration, str(file)), plans, file)
        require_preparing(plans, configuration, str(file))
    if plans["plans_name"] != plans_name:
        raise ValueError(f"{file}: `plans_name` (={plans['plans_name']}) must be that of the file.")
    return PlansManager(plans)


def require_classes(configuration: dict[str, Any], plans: dict[str, Any], file: Path) -> None:
    """Refuse names of classes that nnU-Net lacks; it would fail at each case without naming the plans."""
    named = [("preprocessing", "preprocessor_name", configuration.get("preprocessor_name"))]
    named += [("imageio", "image_reader_writer", plans.get("image_reader_writer"))]
    for scheme in configuration["normalization_schemes"]:
        named.append(("preprocessing.normalization", "normalization_schemes", scheme))
    for place, key, name in named:
        folder = os.path.join(nnunetv2.__path__[0], *place.split("."))
        found = recursive_find_python_class(folder, name, f"nnunetv2.{place}") if name else None
        if name and not isinstance(found, type):  # what these modules import, too, has names there
            raise ValueError(f"{file}: `{key}` (={name}) must be a class of nnU-Net's.")


def require_plausible_spacing(plans: PlansManager, configuration: str, rules: Rules) -> None:
    """Refuse to resample every case to an absurd size."""
    spacing = plans.get_configuration(configuration).spacing
    median = [rules.spacing[axis] for axis in plans.transpose_forward] if rules.spacing else spacing
    if text := absurd_spacing(spacing, median[-len(spacing) :]):
        raise ValueError(f"{plans.plans_name}.json, configuration {configuration}: {text}")
