"""Schema of a study's YAML file: its trainings, their folds, and the tables and figures made of them.

The file is checked as a whole before anything runs. Models refer to pretrainings by name; tables and figures refer to
models, folds and tests. A study runs what its tables and figures need, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator

from nnunet_ssp.evaluation.command import CASE_COLUMNS
from nnunet_ssp.evaluation.statistics import SCORES
from nnunet_ssp.evaluation.volumes import UNITS
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.files.yaml_files import read_yaml
from nnunet_ssp.study.arguments import (
    VARIABLES,
    matching_names,
    must_be_options,
    must_know,
    must_match,
)
from nnunet_ssp.study.expansion import StrictLoader, at_size, expanded

Scalar = bool | int | float | str | None
Axis = Literal["models", "folds", "tests", "classes", "scores"]
AXES: tuple[Axis, ...] = ("models", "folds", "tests", "classes", "scores")
ALL = "all"  # nnU-Net's fold that holds nobody out
SEED = "{seed}"  # stands in the name of a fold for the seed of the training
AREA = "area"  # the score of a learning curve
STEPS = "steps"  # to the final pseudo Dice of the baseline
RISE = "rise"  # of the pseudo Dice in the last fifth of the training
CURVE_SCORES = (AREA, STEPS, RISE)
IOU = "iou"  # of slices
DICE = "dice"
CHOOSING = "choosing"  # score on the fold's validation subjects, to choose models on
REPORT = "report"  # score the chosen models on the test subjects; never in a file
TEST_COLUMNS = tuple(name for name in CASE_COLUMNS if name != "base")  # as in metrics.csv
KNOWN_SCORES = (*SCORES, IOU, *CURVE_SCORES, *UNITS)


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _as_name(value: object) -> object:
    """Turn a number back into a name: YAML reads `50` as a number. A truth value (`yes`) stays one, and is refused."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_names(value: object) -> object:
    return [_as_name(v) for v in (value if isinstance(value, list) else [value])]


def _all_differ(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError(f"must differ (={values})")
    return values


def _with_names(value: object) -> object:
    """Turn keys back into names: YAML reads the key `50` as a number."""
    if not isinstance(value, dict):
        return value
    return {_as_name(key): v for key, v in value.items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"{name} (={value}) must be a number, a name, yes, no or none")
    return values


V = TypeVar("V")
GivenSettings = Annotated[dict[str, Any], AfterValidator(_plain)]
Named = Annotated[dict[str, V], BeforeValidator(_with_names)]
Names = Annotated[list[str], BeforeValidator(_as_names), Field(min_length=1)]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_all_differ)
]
OneOrMoreAxes = Annotated[list[Axis], BeforeValidator(_as_list)]


class _Part(BaseModel):
    """Part of a study: unknown names are errors, and its values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Phantom(_Part):
    """Options of `nnunet-ssp phantom`, see `nnunet_ssp.phantom.write_mnms`."""

    labelled: int = Field(ge=2)
    unlabelled: int = Field(ge=0)
    testing: int = Field(ge=1)
    matrix: int = Field(96, ge=32)
    frames: int = Field(10, ge=2)
    slices: int | None = Field(None, ge=3)
    seed: int = 0


class Pretraining(_Part):
    """One pretraining: `trainer=MIM` is nnUNetTrainerMIMPretrain.

    Attributes:
        trainer: Its trainer; none for a file of another origin.
        fold: A fold of the study; on another dataset `all`.
        seed: Its seed.
        dataset: Another dataset than the study's, prepared with plans of the same name (`prepare --plans-from`).
        pretraining: The pretraining that it goes on from.
        file: Name of a file of weights in the study's folder, in place of a training.
        plans: Its plans, among `other_plans`; empty for the study's.
        settings: Its settings.
    """

    trainer: str = ""
    fold: str = ""
    seed: int = Field(0, ge=0)
    dataset: int | None = Field(None, ge=1, le=999)
    pretraining: str | None = None
    file: str | None = None
    plans: str = ""
    settings: GivenSettings = {}

    @model_validator(mode="after")
    def _is_a_training_or_a_file(self) -> Pretraining:
        if self.file is not None:
            must_be_plain(self.file, "file")
            if unused := {"trainer", "fold", "dataset", "pretraining", "plans", "settings"} & (
                self.model_fields_set
            ):
                raise ValueError(f"file (={self.file}) must not come with {', '.join(unused)}")
        elif not self.trainer or not self.fold:
            raise ValueError("must have trainer and fold, or file")
        elif self.dataset is not None and self.fold != ALL:
            raise ValueError(f"fold (={self.fold}) must be {ALL} on another dataset")
        return self


class Model(_Part):
    """Training of one compared model: `trainer=Finetune` is nnUNetTrainerFinetune."""

    trainer: str
    # Name of a pretraining; None trains from scratch.
    pretraining: str | None = None
    # Epoch of the pretraining after which its weights are taken, see the setting snapshot_epochs; None takes the end.
    snapshot: int | None = Field(None, ge=1)
    # Its plans, among `other_plans`; empty for the study's.
    plans: str = ""
    # Model that it is tested against; None stands for the study's baseline.
    baseline: str | None = None
    settings: GivenSettings = {}


class _Selection(_Part):
    """Content of a table or figure; None stands for all models, all folds, and the study's seeds."""

    title: str
    caption: str = ""
    # Names, or patterns as for files.
    models: Names | None = None
    folds: Names | None = None
    tests: Names = ["all"]
    classes: Names = ["mean"]
    scores: Names = [DICE]
    seeds: Seeds | None = None


class Table(_Selection):
    """A table whose rows and columns are entries of one axis or more; the last axis changes fastest."""

    rows: OneOrMoreAxes
    columns: OneOrMoreAxes
    # Number after the ±, as in `summarise`.
    spread: Literal["seeds", "subjects"] = "seeds"
    # Table of the published numbers, as FILE/TABLE.
    published: str | None = None
    digits: int = Field(3, ge=0, le=6)

    @model_validator(mode="after")
    def _axes_differ(self) -> Table:
        axes = [*self.rows, *self.columns]
        if len(set(axes)) < len(axes):
            raise ValueError(f"rows and columns must be different axes (={', '.join(axes)})")
        return self


class Figure(_Selection):
    """A figure.

    Attributes:
        kind: `labels` is score against labelled subjects, a curve per model; `unlabelled` is score against the slices
            seen in pretraining and `epochs` against its epochs, a curve per fold; `boxes` is the subjects' scores;
            `learning` is learning curves.
    """

    kind: Literal["labels", "unlabelled", "epochs", "boxes", "learning"]

    @model_validator(mode="after")
    def _learning_curves_have_no_tests(self) -> Figure:
        unused = {"tests", "classes", "scores"} & self.model_fields_set
        if self.kind == "learning" and unused:
            raise ValueError(f"kind (=learning) must not have {', '.join(sorted(unused))}")
        return self


class Family(_Part):
    """Comparisons whose p values are corrected together.

    Attributes:
        title: What they ask, for readers.
        models: Models that are tested, each against its baseline; names or patterns.
        folds: Folds on which they are tested.
        seeds: Seeds that count; None stands for all that both have.
    """

    title: str
    models: Names
    folds: Names
    seeds: Seeds | None = None


class Sizes(_Part):
    """Published sizes, for the estimate of a dry run without the dataset."""

    pretraining_slices: int = Field(ge=1)
    # Slices by fold, as named in `folds`.
    labelled_slices: Named[int]
    # Slices of other datasets that are pretrained on, by their numbers.
    other_datasets: Named[Annotated[int, Field(ge=1)]] = {}
    # Batch size of fine-tuning.
    batch_size: int = Field(ge=1)
    patch_size: tuple[int, int]


class Study(_Part):
    """A study.

    Attributes:
        title: Title of the report.
        about: What the study is, and where it differs from the publication.
        dataset: Id or name of a prepared dataset; `nnunet-ssp study -d` replaces it.
        phantom: Phantom to make instead of a dataset.
        prepare: More arguments for `nnunet-ssp prepare`, among those in `OPTIONS`; it makes the phantom's plans, and
            those of a dataset that has none of this name.
        predict: More arguments for `nnUNetv2_predict`, likewise.
        evaluation: More arguments for `nnunet-ssp evaluate`, likewise.
        environment: Environment variables of all commands, among those in `VARIABLES`.
        make_folds: Arguments for `nnunet-ssp folds` that make the missing folds.
        plans: Name of the plans.
        other_plans: Plans that single models and pretrainings name, with the arguments for `nnunet-ssp prepare` that
            make them where they are missing.
        folds: Names in `folds.csv` by the study's own names; `{seed}` stands for the training's seed.
        tests: Cases that count, by the study's name of the test: the values that columns of `cases.csv` must have.
        evaluate: Score on the test subjects, or on each fold's validation subjects, as nnU-Net predicts them at the end
            of a training. `choosing` also scores on the latter, by `nnUNetv2_predict`; the test subjects are for the
            chosen models alone, see `examination`.
        seeds: Seeds of every model on every fold.
        match: How trainings on folds of different size compare. With `steps` all take equally many. With `epochs` an
            epoch is one pass over the fold's slices, as in de Mooij et al. (of another length if settings name one).
        settings: Settings of all pretrainings and of all fine-tunings; a model's own replace them.
        defaults: Values of the settings that are not named: the trainers' own, or the recorded ones, see `defaults`.
        baseline: Model that the others are tested against; a model that is its own baseline is not tested.
        family: Comparisons whose p values are corrected together. Without it these are the models on one fold with the
            same baseline.
        tried_before: Models that were tried on the choosing subjects and are not in the file.
        published_settings: Settings to compare the trainings' with, see `hyperparameters`.
        sizes: Published sizes, see `Sizes`.
    """

    title: str
    about: str = ""
    dataset: int | str | None = None
    phantom: Phantom | None = None
    prepare: str = ""
    predict: str = ""
    evaluation: str = ""
    environment: dict[str, Scalar] = {}
    make_folds: list[str] = []
    plans: str = "nnUNetPlans"
    other_plans: Named[str] = {}
    folds: Named[str] = Field(min_length=1)
    tests: Named[dict[str, Names]] = {"all": {}}
    evaluate: Literal["test", "validation", "choosing"] = "test"
    seeds: Seeds
    match: Literal["epochs", "steps"] = "steps"
    settings: dict[Literal["pretraining", "finetuning"], GivenSettings] = {}
    defaults: Literal["current", "recorded"] = "current"
    pretraining: Named[Pretraining] = {}
    models: Named[Model] = Field(min_length=1)
    baseline: str | None = None
    family: Family | None = None
    tried_before: int = Field(0, ge=0)
    tables: list[Table] = Field(min_length=1)
    figures: list[Figure] = []
    published_settings: str | None = None
    sizes: Sizes | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        if self.dataset is not None and self.phantom is not None:
            raise ValueError("dataset and phantom must not both be given")
        for name in ("prepare", "predict", "evaluation"):
            must_be_options(name, getattr(self, name))
        for arguments in self.make_folds:
            must_be_options("make_folds", arguments)
        self._check_plans()
        for name in self.environment:
            must_know("environment", name, VARIABLES, "the variables that a study may set")
        for name, part in self.pretraining.items():
            self._check_chain(name, part.pretraining)
        for name, model in self.models.items():
            if not name or name.startswith("-") or "=" in name or "/" in name:
                raise ValueError(
                    f"models.{name}: the name must have no = or /, and begin with no -"
                )
            wanted = model.pretraining
            must_know(f"models.{name}.pretraining", wanted, self.pretraining, "pretraining")
            if model.snapshot is not None and (wanted is None or self.pretraining[wanted].file):
                raise ValueError(
                    f"models.{name}.snapshot (={model.snapshot}) must be of a pretraining"
                )
            must_know(f"models.{name}.baseline", model.baseline, self.models, "models")
        must_know("baseline", self.baseline, self.models, "models")
        if self.family is not None:
            must_match("family.models", self.family.models, self.models, "models")
            must_match("family.folds", self.family.folds, self.folds, "folds")
        for test, columns in self.tests.items():
            for name in columns:
                must_know(f"tests.{test}", name, TEST_COLUMNS, "columns of cases.csv")
        for number, table in enumerate(self.tables):
            self._check(table, f"tables.{number} ({table.title})")
        for number, figure in enumerate(self.figures):
            self._check(figure, f"figures.{number} ({figure.title})")
        return self

    def _check_plans(self) -> None:
        """Refuse plans that nobody prepares, and a start from weights of other plans without `adapt`."""
        for name, arguments in self.other_plans.items():
            must_be_plain(name, "other_plans")
            must_be_options("prepare", arguments)
        kinds: tuple[tuple[str, Mapping[str, Model | Pretraining]], ...] = (
            ("pretraining", self.pretraining),
            ("models", self.models),
        )
        for kind, parts in kinds:
            for name, part in parts.items():
                must_know(
                    f"{kind}.{name}.plans", part.plans or None, self.other_plans, "other_plans"
                )
                before = self.pretraining.get(part.pretraining or "")
                if before is None or before.file or part.settings.get("adapt"):
                    continue
                if before.plans != part.plans:
                    raise ValueError(
                        f"{kind}.{name}.plans (={part.plans or self.plans}) must be those of its pretraining "
                        f"{part.pretraining} (={before.plans or self.plans}), or its settings have adapt: yes"
                    )

    def _check_chain(self, name: str, before: str | None) -> None:
        """Refuse a pretraining that goes on from one that is unknown, or at last from itself."""
        chain = [name]
        while before is not None:
            must_know(
                f"pretraining.{chain[-1]}.pretraining", before, self.pretraining, "pretraining"
            )
            chain.append(before)
            if before in chain[:-1]:
                raise ValueError(f"pretraining must not go in a circle: {' from '.join(chain)}")
            before = self.pretraining[before].pretraining

    def _check(self, part: Table | Figure, place: str) -> None:
        """Refuse a table or figure that names something unknown."""
        must_match(f"{place}.models", part.models, self.models, "models")
        must_match(f"{place}.folds", part.folds, self.folds, "folds")
        for name in part.tests:
            must_know(f"{place}.tests", name, self.tests, "tests")
        for name in part.scores:
            must_know(f"{place}.scores", name, KNOWN_SCORES, "scores")
        if isinstance(part, Figure) and part.kind == "boxes":
            for name in set(CURVE_SCORES) & {*part.scores}:
                raise ValueError(f"{place}.scores (={name}) must be scores of subjects")
        if isinstance(part, Table):
            for axis, names in self.entries(part).items():
                if axis not in (*part.rows, *part.columns) and len(names) != 1:
                    raise ValueError(
                        f"{place}: {axis} (={', '.join(names)}) must be in rows or columns, or be one"
                    )

    def origin_of(self, pretraining: str | None) -> list[Pretraining]:
        """List a pretraining and those that it goes on from, the last one first."""
        if pretraining is None:
            return []
        part = self.pretraining[pretraining]
        return [part, *self.origin_of(part.pretraining)]

    def plans_of_runs(self) -> dict[str, str]:
        """Return the other plans that the needed trainings name, with the arguments that make them."""
        named: set[str] = set()
        for model in {name for name, _, _ in self.needed()}:
            part = self.models[model]
            named |= {part.plans, *(before.plans for before in self.origin_of(part.pretraining))}
        return {name: how for name, how in self.other_plans.items() if name in named}

    def fold_of(self, label: str, seed: int) -> str:
        """Find the name in `folds.csv` of the study's fold `label`, for a training with this seed."""
        return self.folds[label].replace(SEED, str(seed))

    def baseline_of(self, model: str) -> str | None:
        """Find the model that a model is tested against; None if it is not tested."""
        found = self.models[model].baseline or self.baseline
        return None if found == model else found

    def in_family(self, model: str, fold: str) -> bool:
        """Whether a comparison belongs to the family."""
        return self.family is not None and (model, fold) in set(
            product(
                matching_names(self.family.models, self.models),
                matching_names(self.family.folds, self.folds),
            )
        )

    def entries(self, part: Table | Figure) -> dict[Axis, list[str]]:
        """List what a table or figure shows on each axis; patterns give the names that match, in the study's order."""
        return {
            "models": matching_names(part.models, self.models),
            "folds": matching_names(part.folds, self.folds),
            "tests": list(part.tests),
            "classes": list(part.classes),
            "scores": list(part.scores),
        }

    def needed(self) -> Iterator[tuple[str, str, int]]:
        """Yield model, fold and seed of every training that a table or figure needs, each once."""
        seen: dict[tuple[str, str, int], None] = {}
        parts: list[Table | Figure] = [*self.tables, *self.figures]
        for part in parts:
            shown = self.entries(part)
            for key in product(shown["models"], shown["folds"], part.seeds or self.seeds):
                seen[key] = None
        yield from seen


def first_size(file: Path) -> str | None:
    """Return the first of the sizes in a study's file that was read before; None if it has but one."""
    return at_size(read_yaml(file, StrictLoader), None)[1]


def read_study(file: Path, size: str | None = None) -> Study:
    """Read and check a study's file, at one of its sizes, see `expansion.at_size`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML, or breaks the schema; the message names file, place and rule.
    """
    content = read_yaml(file, StrictLoader)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold names and values, as `title: ...`.")
    try:
        content, _ = at_size(content, size)
        for name in ("folds", "pretraining", "models"):
            if isinstance(content.get(name), dict):
                content[name] = dict(expanded(content[name], f"{name}"))
        return Study.model_validate(content)
    except ValidationError as error:
        lines = (f"  {_place(found['loc'])}{_rule(found)}" for found in error.errors())
        raise ValueError(f"{file} does not follow the schema:\n" + "\n".join(lines)) from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _place(location: tuple[int | str, ...]) -> str:
    # Pydantic ends the place of a wrong name with "[key]".
    return f"{'.'.join(str(part) for part in location if part != '[key]')}: " if location else ""


def _rule(found: Any) -> str:
    if found["type"] == "extra_forbidden":
        return "is not a name of the schema"
    message = re.sub(
        r"^(Value error, |Input should be |(List|Dictionary) should )", "", found["msg"]
    )
    given = "" if isinstance(found["input"], dict | list) else f" (={found['input']})"
    if found["type"] == "missing":
        return "must be given"
    if found["type"] == "value_error":
        return message
    if found["type"] == "model_type":
        return f"must hold names and values (={found['input']})"
    return f"must {'' if message.startswith('have') else 'be '}{message}{given}"
