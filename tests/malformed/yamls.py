"""YAML files: published splits for `folds --from`, and studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.malformed import datasets
from tests.malformed.entry import Entry

BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (n + 1, n + 1, *[n] * 9)
    for n in range(ord("a"), ord("j"))
)

# Texts that are no YAML, or hold what no plain YAML may.
NOT_YAML: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "keys|names and values|empty"),
    "a list": (b"- test\n- train\n", "keys|names and values"),
    "a text": (b"split", "keys|names and values"),
    "brackets that are not closed": (b"test: {mm1: [", "YAML"),
    "tabs": (b"test:\n\tmm1: []\n", "YAML"),
    "not UTF-8": (b"test: {mm1: ['\xff\xfe\x81']}", "YAML|UTF-8|encoding"),
    "a zero byte": (b"test: {mm1: ['a\0b']}", "YAML"),
    "code": (b"test: !!python/object/apply:os.system ['touch escaped']\n", "YAML"),
    "a date that there is not": (b"test: {mm1: 2020-13-45}\n", "YAML|date|month"),
    "a number that is none": (b"test: !!int many\n", "YAML"),
    "a time that is none": (b"test: !!timestamp noon\n", "YAML"),
    "a binary that is none": (b"test: !!binary '###'\n", "YAML|must map|schema"),
    "a list for a name": (b"? [a, b]\n: c\n", "YAML|keys|names"),
    "10,000 brackets": (b"[" * 10_000, "YAML|nested|deep"),
    "a thousand million references": (BOMB, "keys|schema|names"),
    "two documents": (b"a: 1\n---\nb: 2\n", "YAML"),
    "a reference to itself": (b"test: &a {mm1: *a}\n", "must be a list|schema|YAML|ids|nested"),
}

OF_SPLITS: dict[str, tuple[bytes, str]] = {
    "a side that there is not": (b"test: {mm1: ['A']}\nholdout: {mm1: ['B']}\n", "keys"),
    "a side in a list": (b"test: ['A']\n", "test.*must map"),
    "ids without quotes": (b"test: {mm1: [001]}\n", "quotes"),
    "ids in an object": (b"test: {mm1: {a: b}}\n", "list of ids"),
    "a source without ids": (b"test: {mm1: }\n", "list of ids"),
    "a subject on two sides": (
        b"test: {mm1: ['T']}\ntrain: {mm1: ['A', 'B']}\nvalid: {mm1: ['B']}\n",
        "both",
    ),
    "a subject that there is not": (
        b"test: {mm1: ['T']}\ntrain: {mm1: ['A', '../../x']}\nvalid: {mm1: ['B']}\n",
        r"\.\./x.*cases.csv",
    ),
    "a training subject for the test": (
        b"test: {mm1: ['A']}\ntrain: {mm1: ['B']}\nvalid: {mm1: ['C']}\n",
        "test subject",
    ),
    "a test subject for training": (
        b"test: {mm1: []}\ntrain: {mm1: ['T']}\nvalid: {mm1: ['C']}\n",
        "test subject",
    ),
}

STUDY = """\
title: A study
dataset: 907
folds: {all: 3-fold-0}
seeds: [0]
models: {scratch: {trainer: Scratch}}
tables: [{title: Table, rows: folds, columns: models}]
"""


def study(old: str = "", new: str = "") -> bytes:
    assert old in STUDY
    return STUDY.replace(old, new).encode() if old else (STUDY + new).encode()


OF_STUDIES: dict[str, tuple[bytes, str]] = {
    "a name that there is not": (study(new="colour: red\n"), "colour.*not a name"),
    "a name twice": (study(new="seeds: [1]\n"), "seeds.*twice"),
    "no seeds": (study("seeds: [0]", "seeds: []"), "seeds"),
    "seeds in words": (study("seeds: [0]", "seeds: [one]"), "seeds"),
    "a negative seed": (study("seeds: [0]", "seeds: [-1]"), "seeds"),
    "a trainer that there is not": (study("trainer: Scratch", "trainer: Nobody"), "Nobody"),
    "a trainer with a path": (study("trainer: Scratch", "trainer: ../../x"), r"\.\./x"),
    "a model with a path": (study("scratch:", "../../x:"), "models.*name|/"),
    "plans with a path": (study(new="plans: ../../x\n"), "plans|x.json"),
    "a dataset with a path": (study("907", "../../x"), "dataset.*must be"),
    "arguments with a quote that is not closed": (study(new='predict: "\'"\n'), "predict"),
    "a variable that runs code": (
        study(new="environment: {PYTHONPATH: /tmp}\n"),
        r"environment \(=PYTHONPATH\) must be one of the variables",
    ),
    "a variable of nnU-Net's trainers": (
        study(new="environment: {nnUNet_extTrainer: /tmp}\n"),
        "environment.*variables",
    ),
    "another output": (
        study(new='evaluation: "-o /elsewhere/x"\n'),
        r"evaluation \(=-o\) must be one of",
    ),
    "another output, joined": (
        study(new='evaluation: "-o=/elsewhere/x"\n'),
        r"evaluation \(=-o\) must",
    ),
    "another output for a value": (study(new='evaluation: "--lv -o"\n'), "--lv must have 1 value"),
    "another output of predictions": (
        study(new='predict: "-o /elsewhere/x"\n'),
        r"predict \(=-o\) must",
    ),
    "an abbreviation": (study(new='predict: "--save"\n'), r"predict \(=--save\) must be one of"),
    "another model": (study(new='evaluation: "b=/tmp"\n'), r"evaluation \(=b\) must be one of"),
    "another trainer": (study(new='predict: "-tr=Evil"\n'), r"predict \(=-tr\) must be one of"),
    "a checkpoint of elsewhere": (study(new='predict: "-chk ../x.pth"\n'), "predict.*-chk.*plain"),
    "other plans": (study(new='prepare: "-p evil"\n'), r"prepare \(=-p\) must be one of"),
    "folds that replace others": (
        study(new="make_folds: [--paper --overwrite]\n"),
        r"make_folds \(=--overwrite\) must be one of",
    ),
    "a setting that there is not": (
        study("Scratch}", "Scratch, settings: {colour: red}}"),
        "colour",
    ),
    "a setting of a list": (
        study("Scratch}", "Scratch, settings: {num_epochs: [1]}}"),
        "num_epochs",
    ),
    "a setting out of its range": (
        study("Scratch}", "Scratch, settings: {num_epochs: 0}}"),
        "num_epochs.*at least 1",
    ),
    "a thousand million models": (
        study(
            "models: {",
            "models: {'m{a}{b}{c}': {trainer: Scratch, for: {"
            + ", ".join(f"{name}: [{', '.join(map(str, range(1000)))}]" for name in "abc")
            + "}}, ",
        ),
        "models.*(for|many)",
    ),
    "for in a list": (study("{trainer: Scratch}", "{trainer: Scratch, for: [1]}"), "for must be"),
}


def of_folds(content: bytes, name: str = "split.yaml") -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        datasets.raw(root)
        (root / name).write_bytes(content)
        return ["folds", datasets.NUMBER, "--from", str(root / name)]

    return make


def of_study(content: bytes) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        datasets.raw(root)
        datasets.prepared(root)
        (root / "study.yaml").write_bytes(content)
        return ["study", str(root / "study.yaml"), "--dry-run", "-o", str(root / "out")]

    return make


def entries() -> Iterator[Entry]:
    for name, (content, rule) in NOT_YAML.items():
        says = rf"error:.*{{}}\.yaml.*({rule})"
        yield Entry(f"split file: {name}", of_folds(content), says.format("split"))
        yield Entry(f"study file: {name}", of_study(content), says.format("study"))
    for name, (content, rule) in OF_SPLITS.items():
        yield Entry(f"split file: {name}", of_folds(content), rf"error:.*split\.yaml.*({rule})")
    for name, (content, rule) in OF_STUDIES.items():
        yield Entry(f"study file: {name}", of_study(content), rf"error:.*({rule})")

    yield Entry(
        "study file: a fold that there is not",
        of_study(study("3-fold-0", "none")),
        r"cannot carry the study.*has no fold called none",
    )

    def no_file(root: Path) -> list[str]:
        datasets.raw(root)
        return ["folds", datasets.NUMBER, "--from", str(root / "none.yaml")]

    yield Entry("split file: none", no_file, r"error:.*none\.yaml.*no such file")


ENTRIES = tuple(entries())
