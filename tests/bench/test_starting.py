from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunet_ssp.bench import starting
from nnunet_ssp.bench.place import Bench
from tests.bench.conftest import CPU, TINY


class Commands:
    """Stand-in for the commands, a warm runner, and the clock of what has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: int = 0, is_warm: bool = True):
        self.ran: list[list[str]] = []
        self.prepared: list[str] = []
        self.seconds, self.running, self.status, self.is_warm = 0.0, None, status, is_warm
        monkeypatch.setattr(starting, "run_logged", self.run_logged)
        monkeypatch.setattr(starting, "warm_runner", self.warm_runner)
        monkeypatch.setattr(starting, "seconds_of_runner", lambda: 5.0 if is_warm else None)
        monkeypatch.setattr(starting, "_core_seconds", lambda: self.seconds)

    def run_logged(self, words, log, variables):
        log.write(b"what it said")
        self.ran.append(words)
        self.prepared.append(variables.get("nnUNet_preprocessed", ""))
        if self.running is not None:
            self.running += 1.0
        else:
            self.seconds += {"nnUNetv2_train": 4.0, "nnunet-ssp": 3.0}.get(words[0], 8.0)
        return self.status

    @contextmanager
    def warm_runner(self, variables):
        """Keep a runner of 5 s, whose commands take 1 s each and count when it has ended."""
        self.running = 5.0 if self.is_warm else None
        yield self.is_warm
        self.seconds += self.running or 0
        self.running = None


def test_a_warm_command_beside_a_cold_one(monkeypatch):
    commands = Commands(monkeypatch)
    found = starting.warm_over_cold()
    assert commands.ran == [list(starting.STARTS)] * (starting.WARM_STARTS + 1)
    assert found == {
        "start_cold_over_warm": 4.0,
        "start_cold_s": 4.0,
        "start_warm_s": 1.0,
        "start_runner_s": 5.0,
    }


def test_where_there_is_no_runner(monkeypatch):
    commands = Commands(monkeypatch, is_warm=False)
    found = starting.warm_over_cold()
    assert set(found.values()) == {None} and len(found) == 4 and not commands.ran


def test_a_runner_that_does_not_end_tells_nothing(monkeypatch):
    commands = Commands(monkeypatch)
    monkeypatch.setattr(starting, "seconds_of_runner", lambda: 9.0)  # more than all that has ended
    assert set(starting.warm_over_cold().values()) == {None}
    assert len(commands.ran) == starting.WARM_STARTS


def test_prepare_beside_nnunets_command(tmp_path, monkeypatch):
    commands = Commands(monkeypatch)
    found = starting.prepare_over_nnunet(Bench(tmp_path, CPU, TINY))
    assert found == {"prepare_over_nnunet": 3 / 8, "prepare_cases": 2 * starting.LABELLED}
    theirs, ours = commands.ran
    assert theirs[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "998", "-c", "2d"]
    assert ours[:3] == ["nnunet-ssp", "prepare", "998"]
    assert theirs[theirs.index("-np") + 1] == ours[ours.index("-np") + 1] == "1"
    assert len(set(commands.prepared)) == 2, "none finds what the other has done"


def test_a_command_that_fails_is_an_error(tmp_path, monkeypatch):
    Commands(monkeypatch, status=3)
    with pytest.raises(RuntimeError, match=r"preprocess failed \(status 3\):\nwhat it said"):
        starting.prepare_over_nnunet(Bench(tmp_path, CPU, TINY))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="Linux only")
def test_the_seconds_of_the_runner_are_its_own():
    busy = "import time\nwhile time.process_time() < 0.5: pass\n"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    program = f"'nnunet_ssp.warm'\n{child}\n{busy}print(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        used = float(process.stdout.readline())
        assert starting.seconds_of_runner() == pytest.approx(used, abs=0.2), "without its child's"
        process.communicate(b"\n")
    assert starting.seconds_of_runner() is None
