"""Write `docs/settings.md` from the settings' dataclasses and the comments at their fields.

`python docs/make_settings.py` writes the page; `--check` only says whether it is current. It also appends settings to
`nnunet_ssp/study/defaults.json`, the first default of each, by which studies see that a default has changed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import Settings, TrainingSettings
from nnunet_ssp.study.defaults import RECORD

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

<!-- Written by docs/make_settings.py: change the comments at the fields, then run it again. -->

For those who change a training: every setting of every trainer, with its default.
One variable changes any of them, without a class of your own:

```bash
nnUNet_ssp_settings="num_epochs=50 mask_ratio=0.6" nnUNetv2_train 114 2d 0 -tr nnUNetTrainerMIMPretrain
```

* Words are separated by spaces, not by commas. Values are numbers, `none`, `yes`, `no` and names.
* A misspelt name or a value out of range is refused with the list of valid ones, before anything is written.
* A name that only other trainers know is ignored with a note in the log, if its value is one of theirs. So one
  exported variable can serve pretraining and fine-tuning. All trainers know `num_epochs`, `iterations_per_epoch`,
  `val_iterations_per_epoch`, `initial_lr`, `early_stopping`, `optimizer`, `weight_decay`, `warmup_epochs` and
  `precision`: set these per command.
* What a run used is in its log, its `settings.json` and its checkpoint.
* `recipe=NAME` replaces several defaults at once; single settings apply on top of it.
* A trainer has the settings of several tables below. Of a setting in two of them the later table's default holds.

[What the methods do with them, and where the defaults differ from the papers](methods.md).
"""


def page() -> str:
    """Return the whole page."""
    trainers = trainer_defaults()
    parts = [HEAD, *_overview(trainers)]
    for cls in settings_classes(TrainingSettings):
        parts += _section(cls)
    return "\n".join(parts) + "\n"


def trainer_defaults() -> dict[str, TrainingSettings]:
    """Return the defaults of each trainer, by its name."""
    package = importlib.import_module("nnunet_ssp.trainers")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return {name: getattr(module, name).defaults for name, module in modules.items()}


def settings_classes(cls: type[TrainingSettings]) -> Iterator[type[TrainingSettings]]:
    """Yield a settings class and all of this package below it, each before its subclasses."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__.startswith("nnunet_ssp."):
            yield from settings_classes(below)


def comments(cls: type[Settings]) -> dict[str, str]:
    """Return the comment of each field that a class itself names: the lines above it, then what stands behind it."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    found = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(type:|noqa)", token.string)
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while lines[first - 2].strip().startswith("#"):
                first -= 1
            here = range(first, (node.end_lineno or node.lineno) + 1)
            texts[node.target.id] = " ".join(found[line] for line in here if line in found)
    return texts


def allowed(annotation: Any) -> str:
    """Say in words which values a setting takes."""
    kinds = get_args(annotation) if get_origin(annotation) is not Literal else ()
    if kinds:
        return " or ".join(allowed(kind) for kind in kinds)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(annotation))
    words = {int: "integer", float: "number", bool: "`yes` or `no`", str: "text"}
    return "`none`" if annotation is type(None) else words[annotation]


def _overview(trainers: dict[str, TrainingSettings]) -> list[str]:
    lines = ["| trainer | tables | other defaults |", "|---|---|---|"]
    for name, defaults in trainers.items():
        own = {**asdict(type(defaults)()), "": None}
        other = [
            f"`{k}={as_word(v)}`"
            for k, v in asdict(defaults).items()
            if as_word(v) != as_word(own[k])
        ]
        sections = ", ".join(_link(cls) for cls in _lineage(type(defaults)))
        lines.append(f"| `{name}` | {sections} | {' '.join(other)} |")
    return [*lines, ""]


def _section(cls: type[TrainingSettings]) -> list[str]:
    texts, hints, defaults = comments(cls), get_type_hints(cls), cls()
    lines = [f"## {_title(cls)}", "", (inspect.getdoc(cls) or "").partition("\n")[0], ""]
    above = [_link(c) for c in _lineage(cls)[:-1]]
    if above:
        lines += [f"In addition to {', '.join(above)}.", ""]
    lines += ["| setting | values | default | meaning, source |", "|---|---|---|---|"]
    for name in (field.name for field in fields(cls) if field.name in texts):
        default, text = _number(getattr(defaults, name)), texts[name].replace("|", "\\|")
        lines.append(f"| `{name}` | {allowed(hints[name])} | `{default}` | {text} |")
    if "recipes" in vars(cls):
        lines.append("")
        for recipe, changed in cls.recipes.items():
            words = " ".join(f"{name}={_number(value)}" for name, value in changed.items())
            lines.append(
                f"* `recipe={recipe}` stands for {f'`{words}`' if words else 'the defaults'}."
            )
    return [*lines, ""]


def _number(value: object) -> str:
    text = as_word(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > 8 else text


def _lineage(cls: type[Settings]) -> list[type[TrainingSettings]]:
    """Return a class and those it extends, the most general one first."""
    return [c for c in reversed(cls.__mro__) if issubclass(c, TrainingSettings)]


def _title(cls: type[Settings]) -> str:
    return cls.__name__.removesuffix("Settings")


def _link(cls: type[Settings]) -> str:
    return f"[{_title(cls)}](#{_title(cls).lower()})"


def record() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the record of defaults and recipes by trainer, with what is not in it yet; what is in it stays."""
    before: dict[str, Any] = read_json(RECORD, dict) if RECORD.is_file() else {}
    found = {}
    for trainer, defaults in trainer_defaults().items():
        known = before.get(trainer, {"defaults": {}, "recipes": {}})
        found[trainer] = {
            "defaults": {**asdict(defaults), **known["defaults"]},
            "recipes": {**defaults.recipes, **known["recipes"]},
        }
    return {**before, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and the record, or check them.

    Args:
        arguments: Of the command line.

    Returns:
        1 when they are to be checked and one is not current, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, say whether they are current"
    )
    check = parser.parse_args(arguments).check
    text = page()
    known = record()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        write_json(RECORD, known)
        return 0
    current = {
        PAGE: PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text,
        RECORD: RECORD.is_file() and read_json(RECORD, dict) == known,
    }
    for file in (file for file, is_current in current.items() if not is_current):
        print(f"{file} is not current: run python docs/make_settings.py", file=sys.stderr)
    return int(not all(current.values()))


if __name__ == "__main__":
    sys.exit(main())
