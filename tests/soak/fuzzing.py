"""Trials of the fuzzer: each reader for some seconds, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.soak.fuzz import TARGETS
from tests.soak.journal import LOST, NOT_TRIED, SURVIVED, Result, Trial

SECONDS = 40  # of each reader


def trials(work: Path, seed: int) -> Iterator[Trial]:
    for number, target in enumerate(TARGETS):
        yield Trial(f"fuzzer, {target}", number, partial(fuzz, target, work, seed))


def fuzz(target: str, work: Path, seed: int) -> Result:
    """Fuzz one reader; a finding is a description, not an input."""
    if importlib.util.find_spec("atheris") is None:
        return Result(NOT_TRIED, "atheris is not installed (pip install '.[soak]')")
    findings = work / f"findings-{target}.jsonl"
    findings.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.soak.fuzz", target, "--seconds", str(SECONDS)]
    command += ["--findings", str(findings), "--seed", str(seed)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=SECONDS * 6 + 300,
    )
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stdout)
    said = f"{int(runs[1]):,} inputs" if runs else "no statistics"
    found = []
    if findings.is_file():
        found = [json.loads(line) for line in findings.read_text().splitlines()]
    if done.returncode != 0:
        crash = re.search(r"ERROR: (libFuzzer: \S+|.*)|SUMMARY: .*", done.stdout)
        kind = crash[0] if crash else f"exit status {done.returncode}"
        place = re.findall(r'File ".*?/(\w+/\w+\.py)", line \d+ in (\w+)', done.stdout)
        found.append(
            {"exception": kind, "ours": "", "library": " ".join(place[0]) if place else ""}
        )
    if found:
        listed = "; ".join(f"{f['exception']} in {f['library'] or f['ours']}" for f in found[:5])
        return Result(LOST, f"{len(found)} findings: {listed}", json.dumps(found) + said)
    return Result(SURVIVED, "", said)
