"""StopSignals and how a program ends by a signal."""

import contextlib
import os
import signal
import threading

import pytest

from hf_wakesleep.learning.stopping import StopSignals, exit_by


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    came = []
    before = signal.signal(number, lambda *_: came.append(number))
    try:
        with StopSignals() as signals:
            assert signals.received == 0
            os.kill(os.getpid(), number)
            assert signals.received == number
            assert came == []
            os.kill(os.getpid(), number)
            assert came == [number]
        os.kill(os.getpid(), number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(KeyError), StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_noted():
    received = []

    def run():
        with StopSignals() as signals:
            received.append(signals.received)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert received == [0]


def test_a_program_ends_by_its_signal():
    with pytest.raises(KeyboardInterrupt):
        exit_by(signal.SIGINT, "")
    with pytest.raises(SystemExit) as caught:
        exit_by(signal.SIGTERM, "")
    assert caught.value.code == 143
