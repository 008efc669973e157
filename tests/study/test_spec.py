from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.spec import read_study

SMALLEST: dict[str, Any] = {
    "title": "Two models",
    "folds": {"all": "5-fold-0", 5: "5-fold-0-nr5-seed{seed}"},
    "seeds": [0, 1],
    "pretraining": {"MIM": {"trainer": "MIM", "fold": "all"}},
    "models": {
        "baseline": {"trainer": "Scratch"},
        "MIM": {"trainer": "Finetune", "pretraining": "MIM"},
    },
    "tables": [{"title": "Table 1", "rows": "folds", "columns": "models"}],
}


def write(where: Path, **changes: Any) -> Path:
    file = where / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALLEST, **changes}, sort_keys=False))
    return file


def test_the_runs_are_what_the_tables_need(tmp_path):
    study = read_study(write(tmp_path))
    assert list(study.needed()) == [
        (model, fold, seed)
        for model in ("baseline", "MIM")
        for fold in ("all", "5")
        for seed in (0, 1)
    ]
    one = {
        "title": "One",
        "rows": "folds",
        "columns": "tests",
        "models": "MIM",
        "folds": 5,
        "seeds": [1],
    }
    study = read_study(write(tmp_path, tables=[one]))
    assert list(study.needed()) == [("MIM", "5", 1)]
    figure = {"kind": "boxes", "title": "Boxes", "models": "baseline", "folds": "all"}
    study = read_study(write(tmp_path, tables=[one], figures=[figure]))
    assert list(study.needed()) == [("MIM", "5", 1), ("baseline", "all", 0), ("baseline", "all", 1)]


def test_parts_for_every_combination(tmp_path):
    grid = {
        "{task} {patch}": {
            "for": {"task": ["ContextPrediction", "ContextRestoration"], "patch": [8, 16]},
            "trainer": "{task}",
            "fold": "all",
            "settings": {"mask_patch": "{patch}", "sampling": "poisson"},
        }
    }
    models = {
        "{task} {patch}": {
            "for": grid["{task} {patch}"]["for"],
            "trainer": "FinetuneEncoder",
            "pretraining": "{task} {patch}",
        }
    }
    table = {
        "title": "T",
        "rows": "models",
        "columns": "folds",
        "models": ["*16", "ContextRestoration 8"],
    }
    study = read_study(write(tmp_path, pretraining=grid, models=models, tables=[table]))
    assert list(study.pretraining) == [
        "ContextPrediction 8",
        "ContextPrediction 16",
        "ContextRestoration 8",
        "ContextRestoration 16",
    ]
    part = study.pretraining["ContextRestoration 16"]
    assert (part.trainer, part.settings) == (
        "ContextRestoration",
        {"mask_patch": 16, "sampling": "poisson"},
    )
    assert study.entries(study.tables[0])["models"] == [
        "ContextPrediction 16",
        "ContextRestoration 16",
        "ContextRestoration 8",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": 1}, "folder: is not a name of the schema"),
        ({"seeds": []}, "seeds: must have at least 1 item"),
        (
            {"models": {"m": {"trainer": "Scratch", "settings": {"a": [1]}}}},
            r"settings: a \(=\[1\]\) must be a number",
        ),
        ({"seeds": [0, 0]}, r"seeds: must differ \(=\[0, 0\]\)"),
        ({"seeds": [-1]}, r"seeds\.0: must be greater than or equal to 0 \(=-1\)"),
        ({"predict": '--x "'}, r"predict \(=--x \"\) must be arguments as in a shell"),
        (
            {"models": {"-m": {"trainer": "Scratch"}}},
            "-m: the name must have no = or /, and begin with no -",
        ),
        ({"folds": {True: "5-fold-0"}}, r"folds\.True: the name must be put in quotes"),
        (
            {"figures": [{"kind": "boxes", "title": "B", "scores": "area"}]},
            r"figures\.0 \(B\)\.scores \(=area\) must be scores of subjects",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "models", "seeds": []}]},
            r"tables\.0\.seeds: must have at least 1 item",
        ),
        ({"seeds": ["one"]}, r"seeds\.0: must be a valid integer, .*\(=one\)"),
        (
            {"figures": [{"kind": "learning", "title": "L", "scores": "area"}]},
            r"figures\.0: kind \(=learning\) must not have scores",
        ),
        ({"models": {"m": "Scratch"}}, r"models\.m: must hold names and values \(=Scratch\)"),
        (
            {"settings": {"finetune": {}}},
            r"settings\.finetune: must be 'pretraining' or 'finetuning'",
        ),
        (
            {"pretraining": {}, "models": {"MIM": {"trainer": "Finetune", "pretraining": "none"}}},
            r"models\.MIM\.pretraining \(=none\) must be one of pretraining: there are none",
        ),
        (
            {"models": {"m": {"trainer": "Scratch", "baseline": "b"}}},
            r"models\.m\.baseline \(=b\) must be one of models: m",
        ),
        ({"match": "time"}, r"match: must be 'epochs' or 'steps' \(=time\)"),
        (
            {"models": {"MIM": {"trainer": "Finetune", "pretraining": "MAE"}}},
            r"models\.MIM\.pretraining \(=MAE\)",
        ),
        ({"models": {"MIM": {}}}, r"models\.MIM\.trainer: must be given"),
        ({"models": {"a=b": {"trainer": "Scratch"}}}, "a=b: the name must have no = or /"),
        ({"baseline": "nnU-Net"}, r"baseline \(=nnU-Net\) must be one of models: baseline, MIM"),
        (
            {"dataset": 114, "phantom": {"labelled": 4, "unlabelled": 0, "testing": 1}},
            "must not both be given",
        ),
        (
            {"phantom": {"labelled": 1, "unlabelled": 0, "testing": 1}},
            r"phantom\.labelled: must be greater than",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "folds"}]},
            "must be different axes",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "tests"}]},
            r"models \(=baseline, MIM\) must be in",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "models", "folds": "half"}]},
            r"tables\.0 \(T\)\.folds \(=half\) must be one of folds: all, 5",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "models", "tests": "ED"}]},
            r"tests \(=ED\) must be one of tests: all",
        ),
        (
            {"figures": [{"kind": "boxes", "title": "B", "models": "SimCLR*"}]},
            r"figures\.0 \(B\)\.models \(=SimCLR\*\) must be one of",
        ),
        (
            {"tables": [{"title": "T", "rows": "folds", "columns": "models", "scores": "Dice"}]},
            r"scores \(=Dice\) must be one of scores: dice, dice_nan",
        ),
        (
            {"family": {"title": "F", "models": "PCL", "folds": "all"}},
            r"family\.models \(=PCL\) must be one of models: baseline, MIM",
        ),
        (
            {"family": {"title": "F", "models": "MIM", "folds": "half"}},
            r"family\.folds \(=half\) must be one of folds: all, 5",
        ),
        ({"evaluate": "report"}, r"evaluate: must be 'test', 'validation' or 'choosing'"),
        (
            {"tests": {"all": {}, "ED": {"Phase": "ED"}}},
            r"tests\.ED \(=Phase\) must be one of columns",
        ),
        ({"models": {"{x}": {"for": {"x": 3}, "trainer": "Scratch"}}}, "must be names with lists"),
        (
            {"models": {"m": {"for": {"x": [1, 2]}, "trainer": "Scratch"}}},
            r"models\.m is there twice",
        ),
    ],
)
def test_what_does_not_follow_the_schema(tmp_path, changes, message):
    file = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_study(file)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "not a YAML file"),
        ("- title", "must hold names and values"),
        ("title: a\ntitle: b\n", "'title' is given twice"),
    ],
)
def test_what_is_no_study(tmp_path, text, message):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study(file)


def test_a_name_stands_for_itself_before_it_is_a_pattern(tmp_path):
    models = {name: {"trainer": "Scratch"} for name in ("a[b]", "ab", "abc")}
    table = {"title": "T", "rows": "models", "columns": "folds", "models": ["a[b]"]}
    study = read_study(write(tmp_path, models=models, tables=[table]))
    assert study.entries(study.tables[0])["models"] == ["a[b]"]


def test_a_model_is_tested_against_its_own_baseline_or_the_studys(tmp_path):
    models = {name: {"trainer": "Scratch"} for name in ("baseline", "other", "third", "alone")}
    models["third"] |= {"baseline": "other"}
    models["alone"] |= {"baseline": "alone"}
    study = read_study(write(tmp_path, models=models, baseline="baseline"))
    found = {name: study.baseline_of(name) for name in models}
    assert found == {"baseline": None, "other": "baseline", "third": "other", "alone": None}
    study = read_study(write(tmp_path, models=models, baseline=None))
    found = {name: study.baseline_of(name) for name in models}
    assert found == {"baseline": None, "other": None, "third": "other", "alone": None}


def test_merged_names_of_yaml(tmp_path):
    text = write(tmp_path).read_text()
    text += (
        "settings:\n  pretraining: &short {num_epochs: 3}\n  finetuning: {<<: *short, seed: 0}\n"
    )
    (tmp_path / "study.yaml").write_text(text.replace("seed: 0", "initial_lr: 0.1"))
    study = read_study(tmp_path / "study.yaml")
    assert study.settings["finetuning"] == {"num_epochs": 3, "initial_lr": 0.1}


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_studies_follow_the_schema(file):
    study = read_study(file)
    runs = list(study.needed())
    assert len(set(runs)) == len(runs) > 0
    assert {model for model, _, _ in runs} == set(study.models), "a model that nothing shows"
    assert {fold for _, fold, _ in runs} == set(study.folds), "a fold that nothing shows"
    used = {model.pretraining for model in study.models.values()} - {None}
    assert used == set(study.pretraining), "a pretraining that no model takes"


def test_acdc_few_has_one_grid_at_both_sizes():
    """What is tested: 2, 5 and 10 patients x 3 seeds, two more at 5 patients; the rest at 5 x 3 seeds."""
    file = STUDIES / "acdc-few.yaml"
    cpu, gpu = read_study(file), read_study(file, "gpu")
    tested = ("scratch", *cpu.family.models)
    wanted = {(m, f, s) for m in tested for f in ("2", "5", "10") for s in range(3)}
    wanted |= {(m, "5", s) for m in cpu.models for s in range(5 if m in tested else 3)}
    assert set(cpu.needed()) == set(gpu.needed()) == wanted
    assert cpu.evaluate == gpu.evaluate == "choosing"
    assert (cpu.plans, gpu.plans) == ("few96", "nnUNetPlans")
    for study in (cpu, gpu):
        assert f"-overwrite_plans_name {study.plans}" in study.prepare
        steps = {
            name: (study.settings["finetuning"] | model.settings)["num_epochs"]
            for name, model in study.models.items()
        }
        assert steps["scratch, long"] == steps["Dense, long"] == 3 * steps["scratch"]
        assert steps["scratch"] == steps["Dense"]
    two_views = ("Dense", "SimCLR", "PCL", "BYOL", "DINO")  # DINO's small crops come on top
    images = {
        study.plans: {
            name: (shared | part.settings)["num_epochs"]
            * (shared | part.settings)["iterations_per_epoch"]
            * (shared | part.settings)["batch_size"]
            * (2 if part.trainer in two_views else 1)
            for shared in [study.settings["pretraining"]]
            for name, part in study.pretraining.items()
        }
        for study in (cpu, gpu)
    }
    for name in ("Dense", "movement"):
        assert images["few96"].pop(f"{name} short") == 9_600
        assert images["few96"].pop(f"{name} long") == 252_000
        assert images["nnUNetPlans"].pop(f"{name} short") == 50_000
        assert images["nnUNetPlans"].pop(f"{name} long") == 1_250_000
    assert set(images["few96"].values()) == {50_400}
    assert set(images["nnUNetPlans"].values()) == {250_000}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_acdc_few_keeps_each_command_to_one_thread():
    """`nnUNetv2_predict` sets as many threads as cores, whatever OMP_NUM_THREADS says."""
    code = """
import os, torch
def threads(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
before = threads()
torch.rand(256, 256, 16).sqrt()
print(threads() - before)
"""
    study = read_study(STUDIES / "acdc-few.yaml")
    names, started = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"), {}
    others = {name: value for name, value in os.environ.items() if name not in names}
    for name in names:
        asked = {name: str(study.environment[name])}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**others, **asked}, capture_output=True, text=True, check=True
        )
        started[name] = int(done.stdout)
    assert started == {"OMP_NUM_THREADS": 2, "OMP_THREAD_LIMIT": 0}


def test_de_mooij_lists_exactly_the_runs_of_the_tables():
    """Table 1: 5 sizes, 5 columns; 2: ED, ES; 3: two groups of vendors; 4: no augmentation; 3 seeds each."""
    study = read_study(STUDIES / "demooij.yaml")
    columns = ("baseline", "SimCLR", "PCL", "DINO", "MIM")
    wanted = {(m, f, s) for m in columns for f in ("all", "50", "25", "15", "10") for s in range(3)}
    wanted |= {
        (m, f, s) for m in ("baseline", "MIM") for f in ("ED", "ES", "A+B", "C+D") for s in range(3)
    }
    bare = ("baseline, no augmentation", "MIM, no augmentation")
    wanted |= {(m, "all", s) for m in bare for s in range(3)}
    assert set(study.needed()) == wanted
    assert len(wanted) == 75 + 12 + 12 + 6
    assert set(study.pretraining) == {"SimCLR", "PCL", "DINO", "MIM"}


def test_the_miniature_has_the_size_that_was_asked_for():
    """Four pretrainings; scratch and 4 methods x 2 sizes x 2 seeds; ED, two vendors, each with and without MIM."""
    study = read_study(STUDIES / "phantom.yaml")
    assert len(list(study.needed())) == 5 * 2 * 2 + 4
    assert set(study.pretraining) == {"SimCLR", "PCL", "DINO", "MIM"}
    assert study.settings["finetuning"].get("final_validation", False) is False


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.lists(st.integers(), min_size=1, max_size=3, unique=True),
        max_size=3,
    )
)
def test_a_grid_has_the_product_of_its_values(tmp_path_factory, values):
    name = " ".join(["m", *(f"{{{key}}}" for key in values)])
    models = {name: {"for": values, "trainer": "Scratch"}}
    folder = tmp_path_factory.mktemp("grid")
    study = read_study(write(folder, models=models, pretraining={}))
    expected = 1
    for numbers in values.values():
        expected *= len(numbers)
    assert len(study.models) == expected


def test_what_a_study_may_say_to_its_commands(tmp_path):
    said = {
        "prepare": "-gpu_memory_target 0.1 -overwrite_plans_name=p --any-plane --patch 96 96 --width .5",
        "predict": "--disable_tta -step_size 0.7 -chk checkpoint_best.pth",
        "evaluation": "--lv 'left ventricle' --spacing-unknown",
        "make_folds": ["--subsets 3 0.5 --seeds 0 1 --of all", '--vendors "GE MEDICAL" Philips'],
        "environment": {"nnUNet_n_proc_DA": 0, "CUDA_VISIBLE_DEVICES": "1"},
    }
    study = read_study(write(tmp_path, **said))
    assert {name: getattr(study, name) for name in said} == said


@pytest.mark.parametrize(
    "text", ["1_0", "1:30", "010", "0b11", "0x1F", "1_0.5", "1:30.5", ".inf", ".nan"]
)
def test_numbers_that_look_otherwise_are_refused(tmp_path, text):
    file = write(tmp_path, seeds=[7])
    file.write_text(file.read_text().replace("- 7\n", f"- {text}\n"))
    with pytest.raises(ValueError, match=rf"study\.yaml: .*{text}: a number must be decimal"):
        read_study(file)


def test_numbers_are_as_they_are_written(tmp_path):
    settings = "{a: 10, b: -3, c: 0.5, d: 1.e+3, e: +2, f: .5, g: 0, h: '010', i: 1e-3}"
    file = write(tmp_path, models={"m": {"trainer": "Scratch", "settings": "HERE"}}, pretraining={})
    file.write_text(file.read_text().replace("HERE", settings))
    assert read_study(file).models["m"].settings == {
        **{"a": 10, "b": -3, "c": 0.5, "d": 1000.0, "e": 2, "f": 0.5, "g": 0, "h": "010"},
        "i": "1e-3",
    }


def test_arms_of_the_paper_are_other_sizes():
    file = STUDIES / "demooij.yaml"
    plain, published = read_study(file), read_study(file, "published")
    assert (plain.plans, plain.prepare, "pretraining" in plain.settings) == (
        "nnUNetPlans",
        "",
        False,
    )
    assert (published.plans, published.prepare) == ("nnUNetBatchNormPlans", "-pl BatchNormPlanner")
    assert published.settings["pretraining"] == {"crops": "mask"}
    assert published.settings["finetuning"] == plain.settings["finetuning"]
    assert read_study(file, "batchnorm").settings == plain.settings
    assert read_study(file, "mask").plans == plain.plans


def test_arms_stand_beside_the_default_ones():
    arms = read_study(STUDIES / "demooij.yaml", "arms")
    (table,) = arms.tables
    models = arms.entries(table)["models"]
    methods = ("SimCLR", "PCL", "DINO", "MIM")
    ends = ("", ", BatchNorm", ", mask", ", BatchNorm, mask")
    wanted = {f"{method}{end}" for method in methods for end in ends}
    assert set(models) == wanted | {"baseline", "baseline, BatchNorm"}
    assert len(list(arms.needed())) == 108
    for name in models:
        model = arms.models[name]
        batchnorm = "nnUNetBatchNormPlans" if "BatchNorm" in name else ""
        assert model.plans == batchnorm
        if model.pretraining:
            part = arms.pretraining[model.pretraining]
            assert part.plans == batchnorm
            assert part.settings == ({"crops": "mask"} if "mask" in name else {})
    assert arms.baseline_of("baseline, BatchNorm") == "baseline"
    assert arms.baseline_of("MIM, BatchNorm, mask") == "baseline, BatchNorm"
    assert arms.plans_of_runs() == {"nnUNetBatchNormPlans": "-pl BatchNormPlanner"}


def test_plans_of_single_models(tmp_path):
    other = {"trainer": "Scratch", "plans": "other"}
    models = {**SMALLEST["models"], "other": other}
    with pytest.raises(
        ValueError, match=r"models.other.plans \(=other\) must be one of other_plans"
    ):
        read_study(write(tmp_path, models=models))
    named = {"other": "-pl BatchNormPlanner", "unused": "-np 2"}
    study = read_study(write(tmp_path, models=models, other_plans=named))
    assert study.plans_of_runs() == {"other": "-pl BatchNormPlanner"}
    with pytest.raises(ValueError, match="--overwrite"):
        read_study(write(tmp_path, models=models, other_plans={"other": "--overwrite"}))
    tuned = {"trainer": "Finetune", "pretraining": "MIM", "plans": "other"}
    models = {**SMALLEST["models"], "other": tuned}
    rule = r"models.other.plans \(=other\) must be those of its pretraining MIM \(=nnUNetPlans\)"
    with pytest.raises(ValueError, match=rule):
        read_study(write(tmp_path, models=models, other_plans=named))
    models["other"] = {**tuned, "settings": {"adapt": True}}
    read_study(write(tmp_path, models=models, other_plans=named))
