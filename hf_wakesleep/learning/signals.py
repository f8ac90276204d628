"""StopSignals: the first SIGTERM or SIGINT asks to stop after the step at hand, the second acts at once."""

import signal
import threading

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes signals while its `with` block runs; elsewhere than in the main thread it notes none.

    Attributes:
        received (`int`): Number of the signal that came; 0 for none.
    """

    def __init__(self):
        self.received = 0
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def _receive(self, number: int, frame) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}


def exit_by(number: int, message: str) -> None:
    """End the program as it ends by that signal: `KeyboardInterrupt` for SIGINT, else exit status 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)
