"""What a study's file may say to the commands that it runs, and to their environment; names and patterns in it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from nnunet_ssp.console import count_of, nearest
from nnunet_ssp.files.names import must_be_plain

# What a study may say to the commands that it runs. It may be from elsewhere: it names no file to write, changes
# nothing that they work on, and says nothing that is run. The number of values follows each
# option; None stands for one or more.
OPTIONS: dict[str, dict[str, int | None]] = {
    "prepare": {
        **dict.fromkeys(("-gpu_memory_target", "-overwrite_plans_name", "-pl", "-np"), 1),
        **{"--any-plane": 0, "--patch": 2, "--width": 1, "--batch": 1},
    },
    "predict": {
        **dict.fromkeys(("-step_size", "-chk", "-npp", "-nps"), 1),
        **dict.fromkeys(("--disable_tta", "--save_probabilities", "--continue_prediction"), 0),
        **dict.fromkeys(("--verbose", "--disable_progress_bar", "--not_on_device"), 0),
    },
    "evaluation": {
        **dict.fromkeys(("--references", "--lv", "--myo", "--rv", "--subject-pattern", "-np"), 1),
        "--spacing-unknown": 0,
    },
    "make_folds": {
        **{"--paper": 0, "--few": 0},
        **dict.fromkeys(("--from", "--subsets", "--seeds", "--vendors"), None),
        **dict.fromkeys(("--unit", "--phase", "--of"), 1),
    },
}
VARIABLES = (
    *("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_npp", "nnUNet_nps", "nnUNet_compile"),
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY"),
    *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("TORCHINDUCTOR_COMPILE_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
)


def must_be_options(place: str, text: str) -> None:
    """Refuse arguments of a command other than `OPTIONS`, also their abbreviations."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{place} (={text}) must be arguments as in a shell: {error}") from None
    given: list[tuple[str, list[str]]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") or not given:
            given.append((name, [value] if equals else []))
        else:
            given[-1][1].append(word)
    for option, values in given:
        must_know(place, option, OPTIONS[place], "the options that a study may give")
        n = OPTIONS[place][option]
        if len(values) != n and not (n is None and values):
            rule = "at least 1 value" if n is None else count_of(n, "value")
            raise ValueError(f"{place} (={text}): {option} must have {rule}")
        if option == "-chk":
            must_be_plain(values[0], option, place)


def must_know(place: str, name: str | None, known: Collection[str], what: str) -> None:
    """Refuse a name that is not among the known ones."""
    if name is not None and name not in known:
        listed = ", ".join(known) or "there are none"
        raise ValueError(
            f"{place} (={name}) must be one of {what}: {listed}.{nearest(name, known)}"
        )


def matching_names(wanted: list[str] | None, known: Mapping[str, object]) -> list[str]:
    """List the known names that are wanted, or match a wanted pattern; all of them for None."""
    found = [
        key
        for name in wanted or ["*"]
        for key in ([name] if name in known else known)
        if key == name or fnmatchcase(key, name)
    ]
    return list(dict.fromkeys(found))


def must_match(
    place: str, patterns: list[str] | None, known: Mapping[str, object], what: str
) -> None:
    """Refuse a name or pattern that no known name matches; None is all of them."""
    for pattern in patterns or ():
        if pattern not in known and not any(fnmatchcase(name, pattern) for name in known):
            must_know(place, pattern, known, what)
