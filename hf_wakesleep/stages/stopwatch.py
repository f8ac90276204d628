"""Stopwatch: how long each phase of a task takes, over all calls that work on it."""

import json
import time
from pathlib import Path

SECONDS_NAME = "seconds.json"


class Stopwatch:
    """Counts the seconds of a task by phase: awake at first.

    What was done between the last checkpoint and a stop is done again, and counts once.
    """

    def __init__(self):
        self._seconds = {"awake": 0.0, "napping": 0.0, "asleep": 0.0}
        self._phase, self._since = "awake", time.perf_counter()

    def enter(self, phase: str) -> None:
        """End the phase at hand and begin another."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase so far."""
        self.enter(self._phase)
        return dict(self._seconds)

    def save(self, folder: Path) -> None:
        """Write `seconds.json`."""
        (folder / SECONDS_NAME).write_text(json.dumps(self.read()))

    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote, if it did, instead of what was counted here."""
        path = Path(folder) / SECONDS_NAME
        if path.is_file():
            self._seconds = json.loads(path.read_text())
