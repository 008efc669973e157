from __future__ import annotations

import sys
import threading

import pytest

from nnunet_ssp.heartbeat import Heartbeat, paused, signs_of_life, work


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def test_silence_is_broken_and_a_line_of_others_counts(now: list[float]):
    said: list[str] = []
    heartbeat = Heartbeat(said.append, seconds=15, clock=lambda: now[0])
    for second in range(110, 160, 5):
        now[0] = second
        if second == 120:
            heartbeat.heard()
        heartbeat.beat()
    # From the last line of others on; its own lines are no news.
    assert said == [f"Still at work ({seconds} s)" for seconds in (15, 15, 30)]


def test_the_work_that_was_named_last_is_said(now: list[float]):
    said: list[str] = []
    heartbeat = Heartbeat(said.append, seconds=15, clock=lambda: now[0])

    def later() -> None:
        now[0] += 20
        heartbeat.beat()

    with work("preparing 114"):
        with work("reading a.nii.gz"):
            later()
        later()
    later()
    assert said == ["Still reading a.nii.gz (20 s)", "Still preparing 114 (40 s)", "Still at work (60 s)"]  # fmt: skip


def test_no_sign_while_others_write_to_the_terminal(now: list[float]):
    said: list[str] = []
    heartbeat = Heartbeat(said.append, seconds=15, clock=lambda: now[0])
    with paused():
        now[0] += 500
        heartbeat.beat()
    now[0] += 14
    heartbeat.beat()
    assert said == []
    now[0] += 1
    heartbeat.beat()
    assert said == ["Still at work (15 s)"]


def test_its_own_line_is_not_taken_for_that_of_others(now: list[float]):
    """As in a trainer, whose log tells the heartbeat of every line."""
    said: list[str] = []

    def log(line: str) -> None:
        said.append(line)
        heartbeat.heard()

    heartbeat = Heartbeat(log, seconds=15, clock=lambda: now[0])
    for _ in range(2):
        now[0] += 20
        heartbeat.beat()
    assert said == ["Still at work (20 s)", "Still at work (40 s)"]


def test_the_thread_speaks_while_the_work_goes_on():
    spoke = threading.Event()
    with Heartbeat(lambda line: spoke.set(), seconds=0):
        assert spoke.wait(60)


def test_nobody_reads_any_more(now: list[float]):
    def closed(line: str) -> None:
        raise BrokenPipeError

    heartbeat = Heartbeat(closed, seconds=15, clock=lambda: now[0])
    now[0] += 20
    heartbeat.beat()  # raises nothing


def test_a_command_is_overheard_and_its_streams_come_back(capsys: pytest.CaptureFixture[str]):
    before = sys.stdout, sys.stderr
    with signs_of_life("prepare"):
        assert (sys.stdout, sys.stderr) != before
        print("a result")
        print("a step", file=sys.stderr)
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a result\n", "a step\n")


def test_the_output_of_env_is_left_alone():
    before = sys.stdout, sys.stderr
    with signs_of_life("env"):
        assert (sys.stdout, sys.stderr) == before
