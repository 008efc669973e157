from __future__ import annotations

import os
import signal
import threading

import pytest

from nnunet_ssp.signals import ENDS, ending_at_once, woken_by_signals


@pytest.mark.parametrize("number", ENDS)
def test_the_exit_status_is_that_of_the_signal(number: int, capsys: pytest.CaptureFixture[str]):
    before = [signal.getsignal(n) for n in ENDS]
    with pytest.raises(SystemExit) as ended, ending_at_once(lambda: "go on with --val"):
        os.kill(os.getpid(), number)
        threading.Event().wait(60)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().out == f"{signal.Signals(number).name}: go on with --val\n"
    assert [signal.getsignal(n) for n in ENDS] == before


@pytest.mark.parametrize("code", [0, 3, None, "a message"])
def test_an_exit_of_its_own_says_nothing(code: object, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended, ending_at_once(lambda: "never said"):
        raise SystemExit(code)
    assert ended.value.code == code
    assert capsys.readouterr().out == ""


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_at_once(lambda: "never said"):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_leaves_the_handlers_alone():
    found = []

    def work() -> None:
        with ending_at_once(lambda: "never said"):
            found.append([signal.getsignal(n) for n in ENDS])

    before = [signal.getsignal(n) for n in ENDS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_each_signal_with_a_handler_calls():
    heard: list[int] = []
    both = threading.Semaphore(0)

    def call(number: int) -> None:
        heard.append(number)
        both.release()

    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    try:
        with woken_by_signals(call):
            for number in numbers:
                os.kill(os.getpid(), number)
            assert both.acquire(timeout=10) and both.acquire(timeout=10)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert sorted(heard) == sorted(numbers)
    assert signal.set_wakeup_fd(wakeup) == wakeup
